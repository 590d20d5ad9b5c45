"""Spans at a real receiver: their names, their parents, and what they must never hold."""

import asyncio
import json
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from aiohttp import ClientSession
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from june.app import serve
from june.bench.recordings import Question
from june.chat.apps import token_shapes
from june.errors import StageError
from june.sections import TelemetrySettings
from june.settings import load_settings
from june.store import HistoryEntry, open_store
from june.telemetry import (
    close_traces,
    configure_logging,
    finish_trace,
    following,
    new_trace_context,
    note_wait,
    open_traces,
    stage,
    trace_id,
)
from june.workers import try_for
from tests.collector import Collector, attributes, collecting
from tests.conftest import LLM, STT, TTS
from tests.program import running, write_settings
from tests.telegram_server import ALICE, TelegramServer, bad_request

STARTED = {"platform": "telegram", "message_id": "7", "kind": "voice", "role": "owner"}


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@pytest.fixture
def _sending(collector: Collector) -> Iterator[None]:
    open_traces(TelemetrySettings(otlp_endpoint=collector.endpoint))
    yield
    close_traces()


@pytest.fixture
def _unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


async def flushed() -> None:
    """Wait until all spans are sent; the receiver needs this event loop in the meantime."""
    assert await try_for(30, close_traces)


def root_of(spans: list[Span]) -> Span:
    (root,) = [span for span in spans if not span.parent_span_id]
    return root


def assert_one_trace(spans: list[Span], trace: str) -> Span:
    """Check that all spans belong to this trace, under one root that begins first; return the root."""
    assert {span.trace_id.hex() for span in spans} == {trace}
    root = root_of(spans)
    assert {span.parent_span_id for span in spans if span is not root} == {root.span_id}
    assert len({span.span_id for span in spans}) == len(spans)
    assert min(span.start_time_unix_nano for span in spans) == root.start_time_unix_nano
    return root


@pytest.mark.usefixtures("_sending")
async def test_stages_of_one_message_are_children_of_a_root_that_comes_when_its_turn_ends(
    collector: Collector,
) -> None:
    context = new_trace_context()
    with following(context, turn=7, chat=f"telegram:{ALICE}"):
        note_wait(time.time() - 2)
        with stage("llm", {}, model="qwen3", backend="llama_cpp") as facts:
            facts.update(prompt_tokens=9, completion_tokens=4, finish_reason="stop", other="words")
        finish_trace(time.time() - 3, turn_s=1, outcome="answered", **STARTED)
    await flushed()
    await collector.until(lambda spans: len(spans) == 3)
    root = assert_one_trace(collector.spans, trace_id(context))
    assert root.span_id.hex() == context.split("-")[2]
    assert (root.name, root.kind) == ("process telegram", Span.SPAN_KIND_CONSUMER)
    assert root.end_time_unix_nano - root.start_time_unix_nano >= 3e9
    chat = await collector.named("chat qwen3")
    conversation = attributes(root)["gen_ai.conversation.id"]
    assert attributes(root) == {
        "messaging.system": "telegram",
        "messaging.operation.type": "process",
        "messaging.message.id": "7",
        "june.message.kind": "voice",
        "june.sender.role": "owner",
        "june.outcome": "answered",
        "gen_ai.conversation.id": conversation,
    }
    assert attributes(chat) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.output.type": "text",
        "gen_ai.provider.name": "llama_cpp",
        "gen_ai.request.model": "qwen3",
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.conversation.id": conversation,
    }
    assert str(ALICE) not in str(conversation)


@pytest.mark.parametrize(
    ("error", "status", "more"),
    [
        (StageError("stt", "timeout", "words"), Status.STATUS_CODE_ERROR, {"error.type": "timeout"}),
        (ValueError("words"), Status.STATUS_CODE_ERROR, {"error.type": "ValueError"}),
        (asyncio.CancelledError("words"), Status.STATUS_CODE_UNSET, {"june.outcome": "cancelled"}),
    ],
)
@pytest.mark.usefixtures("_sending")
async def test_of_what_fails_a_span_tells_the_kind_and_no_text(
    collector: Collector, error: BaseException, status: "Status.StatusCode.ValueType", more: dict[str, str]
) -> None:
    with (
        following(new_trace_context(), turn=7, chat="telegram:1"),
        suppress(type(error)),
        stage("decode", {}),
    ):
        raise error
    await flushed()
    span = await collector.named("decode")
    assert (span.status.code, span.status.message, list(span.events)) == (status, "", [])
    assert attributes(span) == more


@pytest.mark.usefixtures("_sending")
async def test_a_message_that_was_received_while_nothing_was_sent_has_an_id_and_no_spans(
    collector: Collector,
) -> None:
    close_traces()
    context = new_trace_context()
    assert len(trace_id(context)) == 32
    open_traces(TelemetrySettings(otlp_endpoint=collector.endpoint))
    for each in (context, "", "00-nonsense"):
        with following(each, turn=7, chat="telegram:1"), stage("decode", {}):
            pass
    with following(new_trace_context(), turn=8, chat="telegram:1"), stage("encode", {}):
        pass
    await flushed()
    await collector.named("encode")
    assert [span.name for span in collector.spans] == ["encode"]


async def test_a_spoken_question_is_one_trace_from_its_receipt_to_its_delivery(
    tmp_path: Path, collector: Collector, questions: tuple[Question, ...]
) -> None:
    async with TelegramServer() as server:
        file = settings(tmp_path, server, collector.endpoint)
        async with running(file) as june:
            server.push_file("voice", questions[0].audio)
            await june.logged("reply.sent", count=2)
            assert await june.terminate() == 0
        await collector.until(lambda spans: len(spans) >= 10)
    (turn,) = [event for event in june.events if event["event"] == "turn.finished"]
    root = assert_one_trace(collector.spans, turn["trace_id"])
    assert turn["chat"] == attributes(root)["gen_ai.conversation.id"]
    names = Counter(span.name for span in collector.spans if span is not root)
    assert names.keys() == {
        "queue_wait",
        "download",
        "decode",
        f"speech_to_text {STT}",
        f"chat {LLM}",
        f"text_to_speech {TTS}",
        "encode",
        "send telegram",
    }
    assert names["send telegram"] == 2
    sent = await collector.named("send")
    assert sent.kind == Span.SPAN_KIND_PRODUCER
    heard = attributes(await collector.named("speech_to_text"))
    assert heard["june.stt.language"] == "en"
    assert heard["june.audio.duration_s"] == pytest.approx(5.9, abs=0.5)
    assert attributes(await collector.named("chat"))["gen_ai.usage.output_tokens"] == 40
    rows = await history(tmp_path)
    assert {trace_id(row.trace_context) for row in rows} == {turn["trace_id"]}
    assert {event["trace_id"] for event in june.events if event["event"] == "reply.sent"} == {
        turn["trace_id"]
    }


async def test_a_turn_that_june_was_killed_over_goes_on_in_its_trace(
    tmp_path: Path, collector: Collector, questions: tuple[Question, ...]
) -> None:
    async with TelegramServer() as server:
        story = "Tell me a story about the sea, the wind and the sand. " * 60
        slowly: dict[str, object] = {"threads": 1, "prefill_chunk_tokens": 16}  # it is read for seconds
        file = settings(tmp_path, server, collector.endpoint, **{"llm.llama_cpp": slowly})
        async with running(file) as june:
            server.push_file("voice", questions[0].audio, caption=story)
            await collector.named("speech_to_text")
            await june.kill()
        first = list(collector.spans)
        settings(tmp_path, server, collector.endpoint, llm={"max_tokens": 12})
        async with running(file) as june:
            await june.logged("reply.sent", count=2)
            assert await june.terminate() == 0
    await collector.until(lambda spans: any(not span.parent_span_id for span in spans))
    (row, *_) = await history(tmp_path)
    assert row.attempts == 2
    assert_one_trace(collector.spans, trace_id(row.trace_context))
    names = Counter(span.name.partition(" ")[0] for span in collector.spans)
    assert {span.name.partition(" ")[0] for span in first} == {
        "queue_wait",
        "download",
        "decode",
        "speech_to_text",
    }
    assert names["speech_to_text"] == names["chat"] == names["process"] == 1
    assert names["queue_wait"] == names["send"] == 2
    again = max(collector.spans, key=lambda span: span.name == "queue_wait" and span.start_time_unix_nano)
    assert all(span.end_time_unix_nano <= again.start_time_unix_nano for span in first)


async def test_a_receiver_that_hangs_costs_a_line_and_no_turn_and_does_not_keep_june_from_ending(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        async with TelegramServer() as server:
            file = settings(tmp_path, server, f"http://127.0.0.1:{deaf.getsockname()[1]}")
            async with running(file) as june:
                server.push("hello")
                await server.wait_for(lambda call: call.method == "sendMessage" and call.ok)
                await june.logged("reply.sent")
                assert await june.terminate() == 0
    events = Counter(event["event"] for event in june.events)
    assert events["traces.lost"] == 1
    assert events["traces.interrupted"] <= 1
    assert events["library.warned"] == 0
    assert all(line.startswith("{") for line in june.output.splitlines())


def settings(folder: Path, server: TelegramServer, endpoint: str, **sections: dict[str, object]) -> Path:
    return write_settings(
        folder,
        telegram={"token": server.token, "api_base": server.base_url},
        access={"owners": [f"telegram:{ALICE}", f"telegram:{MARKED_USER}"]},
        telemetry={"otlp_endpoint": endpoint, "log_format": "json"},
        **sections,
    )


async def history(folder: Path) -> list[HistoryEntry]:
    async with open_store(folder / "june.db", read_only=True) as store:
        return await store.history.entries()


async def scraped(logs: str) -> str:
    """Return `/metrics` of the june with this log, in the format that Prometheus asks for."""
    events = [json.loads(line) for line in logs.splitlines()]
    port = next(event["port"] for event in events if event["event"] == "api.opened")
    headers = {
        "Authorization": f"Bearer {MARKED_API_TOKEN}",
        "Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
    }
    url = f"http://127.0.0.1:{port}/metrics"
    async with ClientSession(headers=headers) as client, client.get(url) as response:
        assert response.content_type == "application/openmetrics-text"
        return await response.text()


MARKED_USER = 987_650_123
MARKER = "xylophonquarz"
MARKED_TOKEN = "987654321:AAH-marked-token-that-nobody-may-see"  # noqa: S105 (of the test's own server)
MARKED_API_TOKEN = "kaleidoskop-of-the-api"  # noqa: S105 (as above)
METRICS = {
    "june_voice_turn_duration_seconds",
    "june_stage_duration_seconds",
    "june_queue_wait_seconds",
    "june_llm_time_to_first_token_seconds",
    "june_llm_tokens_per_second",
    "june_tts_time_to_first_audio_seconds",
    "june_llm_tokens",
    "june_audio_seconds",
    "june_messages",
    "june_dropped",
    "june_errors",
    "june_queue_messages",
    "june_queue_oldest_new_age_seconds",
    "june_inflight",
    "june_event_loop_lag_seconds",
    "june_adapter_up",
    "june_model_loaded",
    "june_build",
    "june_disk_free_bytes",
}


@pytest.mark.usefixtures("_unconfigured")
async def test_nothing_that_is_said_nor_who_said_it_nor_a_token_stands_in_logs_spans_or_metrics(
    tmp_path: Path,
    collector: Collector,
    questions: tuple[Question, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop = asyncio.Event()
    async with TelegramServer(MARKED_TOKEN) as server:
        file = settings(
            tmp_path,
            server,
            collector.endpoint,
            llm={"max_tokens": 12, "context_tokens": 256},
            api={"port": 0, "token": MARKED_API_TOKEN},
        )
        chosen = load_settings(file)
        telemetry = chosen.telemetry.model_copy(update={"log_level": "debug"})
        configure_logging(telemetry, chosen.secret_values(), token_shapes())
        serving = asyncio.create_task(serve(chosen, stop))
        server.push_file("voice", questions[0].audio, caption=MARKER, user=MARKED_USER)
        await server.wait_for(lambda call: call.method == "sendVoice" and call.ok)
        refused = bad_request(f'can\'t parse entities: "{MARKER}" is no markup')
        server.fail("sendMessage", refused, refused)
        for failing in (f"/language {MARKER}", f"{MARKER} " * 400):
            server.push(failing, user=MARKED_USER)
        server.push_file("voice", f"OggS{MARKER}".encode(), user=MARKED_USER)
        await server.wait_for(lambda call: "cannot read" in call.text and call.ok)
        server.push(f"I am {MARKER}", user=MARKED_USER + 1)  # a stranger
        server.push("/status", user=MARKED_USER)
        await server.wait_for(lambda call: "messages waiting" in call.text and call.ok)
        logs = capsys.readouterr().err
        metrics = await scraped(logs)
        stop.set()
        await serving
    await collector.until(lambda spans: sum(not span.parent_span_id for span in spans) == 5)
    logs += capsys.readouterr().err
    spans = "\n".join(str(span) for span in collector.spans)
    rows = await history(tmp_path)
    (answer,) = [row.answer for row in rows if row.kind == "voice" and row.answer]
    heard = next(row.transcript for row in rows if row.transcript)
    outcomes = {attributes(span).get("error.type") for span in collector.spans if not span.parent_span_id}
    assert outcomes == {None, "context_overflow", "audio_unreadable"}
    named = {line.split()[2] for line in metrics.splitlines() if line.startswith("# TYPE june_")}
    assert named >= METRICS
    voice_turn = 'june_voice_turn_duration_seconds_count{outcome="%s",platform="telegram"} '
    assert all(voice_turn % outcome in metrics for outcome in ("ok", "audio_unreadable"))
    assert f'june_model_loaded{{model="{LLM}",stage="llm"}} 1.0' in metrics
    exemplars = set(re.findall(r'# {trace_id="(\w+)"}', metrics))
    assert exemplars & {span.trace_id.hex() for span in collector.spans}
    people, tokens = (str(MARKED_USER), str(MARKED_USER + 1)), (MARKED_TOKEN, MARKED_API_TOKEN)
    for told in (logs, metrics, spans):
        assert len(told) > 1000
        for hidden in (MARKER, heard, answer, *people, *tokens):
            assert hidden not in told
            assert json.dumps(hidden)[1:-1] not in told
