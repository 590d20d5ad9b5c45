"""Promises of logs, and of the timing of stages."""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog

from june.chat.apps import token_shapes
from june.errors import DeliveryError, TranscriptionError
from june.sections import TelemetrySettings
from june.settings import complete_settings
from june.telemetry import (
    configure_logging,
    exposition,
    following,
    hashed,
    log,
    new_trace_context,
    report_repeats,
    stage,
    trace_id,
)
from june.telemetry.logs import MAX_COUNTED, MINUTE_S, REPEATS_PER_MINUTE, Repeats
from june.workers import ModelThread

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the events on standard error, each a line of JSON."""
    written = capsys.readouterr()
    assert written.out == ""
    return [json.loads(line) for line in written.err.splitlines()]


def test_json_logs_are_one_object_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(TelemetrySettings(log_format="json"))
    log.info("turn.finished", outcome="answered", total_s=1.5)
    log.warning("speech.failed", detail="two\nlines, “quoted”")
    first, second = logged(capsys)
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "turn.finished", "level": "info", "outcome": "answered", "total_s": 1.5}
    assert (second["level"], second["detail"]) == ("warning", "two\nlines, “quoted”")


@pytest.mark.parametrize("least", LEVELS)
def test_only_events_from_the_level_that_is_set_are_logged(
    least: Level, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(TelemetrySettings(log_format="json", log_level=least))
    for level in LEVELS:
        getattr(log, level)("something.happened")
    assert tuple(event["level"] for event in logged(capsys)) == LEVELS[LEVELS.index(least) :]


def test_console_logs_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(TelemetrySettings(log_format="console"))
    log.info("models.loaded", ready_s=2.5)
    line = capsys.readouterr().err
    assert "models.loaded" in line
    assert "2.5" in line
    assert "{" not in line


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_logs_are_for_people_on_a_terminal_and_json_elsewhere(
    *, on_a_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.openpty() if on_a_terminal else os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as screen, os.fdopen(writer, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        configure_logging(TelemetrySettings())
        log.info("models.loaded")
        line = screen.read(1000)
    assert b"models.loaded" in line
    assert line.startswith(b"{") is not on_a_terminal


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_logged_exception_shows_no_local_variables(
    log_format: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    def transcribe() -> None:
        words = "my-secret-diary"
        raise TranscriptionError("stt_failed", f"Whisper failed on {len(words)} characters.")

    configure_logging(TelemetrySettings(log_format=log_format))
    try:
        transcribe()
    except TranscriptionError:
        log.exception("turn.failed")
    written = capsys.readouterr().err
    assert "TranscriptionError" in written
    assert "Whisper failed on 15 characters." in written
    assert "my-secret-diary" not in written


async def test_what_is_bound_to_a_turn_is_logged_on_a_models_thread_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(TelemetrySettings(log_format="json"))
    thread = ModelThread("stt")
    with structlog.contextvars.bound_contextvars(turn="7f"):
        await thread.run(lambda _: log.info("model.moved"))
    await thread.close()
    assert [event["turn"] for event in logged(capsys)] == ["7f"]


TELEGRAM_TOKEN = "123456789:AAH-a-token-that-nobody-may-see"  # noqa: S105 (of no bot)
SECRETS = ('pass"word\\ünd/more', TELEGRAM_TOKEN)


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    "told",
    [
        f"cannot reach https://api.telegram.org/file/bot{TELEGRAM_TOKEN}/voice.oga",
        "bot987654321:AAHAnotherBotsTokenThatIsNotInTheSettings",
        "bot987654321%3AAAHAnotherBotsTokenThatIsNotInTheSettings",
        "Authorization: Bot MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs-xyz",
        "hf_abcdefghijklmnopqrstuvwxyz",
        'a pass"word\\ünd/more',
        "a pass%22word%5C%C3%BCnd%2Fmore",
    ],
)
def test_a_secret_stands_in_no_line_wherever_it_was_written(
    told: str, log_format: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(TelemetrySettings(log_format=log_format), SECRETS, token_shapes())

    def reach() -> None:
        raise ConnectionError(told)

    try:
        reach()
    except ConnectionError:
        log.exception("adapter.failed", details={"nested": [told]})
    written = capsys.readouterr().err
    assert written.count("[redacted]") >= 2
    for piece in ("nobody-may-see", "AnotherBots", "ZnCjm1XVW7", "abcdefghij", "nd/more", "nd%2Fmore"):
        assert piece not in written
    if log_format == "json":
        assert json.loads(written)["event"] == "adapter.failed"


def test_every_secret_of_the_settings_is_known_to_the_log() -> None:
    sections = {"telegram": {"token": "one", "webhook_secret": "two"}, "discord": {"token": "three"}}
    settings = complete_settings().model_validate(sections)
    assert settings.secret_values() == ("one", "two", "three")


@pytest.mark.parametrize("log_user_ids", [False, True])
def test_who_it_was_is_a_hash_unless_the_owner_wants_to_know(
    capsys: pytest.CaptureFixture[str], *, log_user_ids: bool
) -> None:
    configure_logging(TelemetrySettings(log_format="json", log_user_ids=log_user_ids), ["a bot's token"])
    context = new_trace_context()
    with following(context, turn=7, chat="telegram:1001"):
        log.info("stranger.ignored", user="telegram:1002")
    (event,) = logged(capsys)
    names = ["telegram:1001", "telegram:1002"]
    assert [event["chat"], event["user"]] == (names if log_user_ids else [hashed(name) for name in names])
    assert (event["turn"], event["trace_id"]) == (7, trace_id(context))
    configure_logging(TelemetrySettings(), ["another token"])
    assert hashed("telegram:1001") != event["chat"]
    configure_logging(TelemetrySettings(), ["a bot's token"])
    assert log_user_ids or hashed("telegram:1001") == event["chat"]


def test_what_repeats_is_shown_some_times_a_minute_and_then_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(TelemetrySettings(log_format="json"))
    for number in range(REPEATS_PER_MINUTE + 30):
        log.warning("reply.postponed", number=number)
        log.info("reply.sent")
    log.error("adapter.failed")
    report_repeats()  # the minute is not over
    report_repeats(is_last=True)
    *events, last = logged(capsys)
    shown = [event["number"] for event in events if event["event"] == "reply.postponed"]
    assert shown == list(range(REPEATS_PER_MINUTE))
    assert sum(event["event"] == "reply.sent" for event in events) == REPEATS_PER_MINUTE + 30
    assert events[-1]["event"] == "adapter.failed"
    assert (last["event"], last["of"], last["count"]) == ("log.repeated", "reply.postponed", 30)


def test_a_repeated_event_is_shown_again_in_the_next_minute_and_kinds_are_kept_within_bounds() -> None:
    now_s = [0.0]
    repeats = Repeats(lambda: now_s[0])

    def shown(event: str) -> bool:
        try:
            repeats(None, "", {"event": event, "level": "warning"})
        except structlog.DropEvent:
            return False
        return True

    assert [shown("a") for _ in range(REPEATS_PER_MINUTE + 2)][-3:] == [True, False, False]
    assert repeats.take(is_last=False) == []
    now_s[0] += MINUTE_S
    assert repeats.take(is_last=False) == [("a", 2)]
    assert shown("a")
    for number in range(10 * MAX_COUNTED):
        for _ in range(REPEATS_PER_MINUTE + 1):
            shown(f"event {number}")
    assert len(repeats._minutes) == MAX_COUNTED  # noqa: SLF001 - the bound is a promise, and shown by nothing
    assert len(repeats.take(is_last=True)) <= MAX_COUNTED


@pytest.mark.parametrize("log_content", [False, True])
def test_what_a_library_warns_of_is_an_event_that_keeps_its_text_to_itself(
    capsys: pytest.CaptureFixture[str], *, log_content: bool
) -> None:
    configure_logging(TelemetrySettings(log_format="json", log_content=log_content))
    library = logging.getLogger("aiosomething")
    library.info("not worth a line")
    try:
        int("words")
    except ValueError:
        library.exception("cannot send %s", "words")
    (event,) = logged(capsys)
    assert (event["event"], event["level"], event["logger"]) == ("library.warned", "error", "aiosomething")
    assert event["type"] == "ValueError"
    assert event["where"].startswith("test_telemetry.py:")
    assert ("words" in str(event)) is log_content


def test_a_stage_is_timed_in_seconds() -> None:
    timings_s: dict[str, float] = {}
    begin = time.perf_counter()
    with stage("stt", timings_s):
        begin_inside = time.perf_counter()
        sum(range(100_000))
        inside_s = time.perf_counter() - begin_inside
    assert inside_s <= timings_s["stt"] <= time.perf_counter() - begin


def test_a_stage_entered_again_adds_up() -> None:
    timings_s = {"tts": 100.0, "stt": 1.0}
    with stage("tts", timings_s):
        pass
    first = timings_s["tts"]
    with stage("tts", timings_s):
        pass
    assert 100 < first < timings_s["tts"] < 101
    assert timings_s["stt"] == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (TranscriptionError("stt_failed", "Whisper failed."), "stt_failed"),
        (DeliveryError("gone", "The chat is gone."), "gone"),
        (ValueError("wrong"), "ValueError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_a_stage_counts_and_logs_its_outcome_whatever_it_is(
    error: BaseException | None, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(timings_s: dict[str, float]) -> None:
        with stage("stt", timings_s):
            if error is not None:
                raise error

    configure_logging(TelemetrySettings(log_format="json", log_level="debug"))
    timings_s: dict[str, float] = {}
    if error is None:
        run(timings_s)
    else:
        with pytest.raises(type(error)) as raised:
            run(timings_s)
        assert raised.value is error
    (event,) = logged(capsys)
    assert (event["event"], event["stage"], event["outcome"]) == ("stage.finished", "stt", outcome)
    assert event["seconds"] == round(timings_s["stt"], 4)
    assert timings_s["stt"] > 0


def value(sample: str) -> float:
    """Return a sample of `/metrics` as a scraper reads it; 0 if there is none."""
    lines = exposition()[0].decode().splitlines()
    found = [line.rpartition(" ")[2] for line in lines if line.rpartition(" ")[0] == sample]
    return float(found[0]) if found else 0.0


def test_one_stage_feeds_every_metric_that_it_knows_something_of() -> None:
    names = (
        'june_stage_duration_seconds_count{outcome="ok",stage="llm"}',
        "june_llm_time_to_first_token_seconds_sum",
        "june_llm_tokens_per_second_count",
        'june_llm_tokens_total{direction="prompt"}',
        'june_llm_tokens_total{direction="completion"}',
    )
    before = [value(name) for name in names]
    with stage("llm", {}) as facts:
        assert value('june_inflight{stage="llm"}') == 1
        facts.update(prompt_tokens=9, completion_tokens=4, time_to_first_token_s=1e-9)
    grown = [value(name) - old for name, old in zip(names, before, strict=True)]
    assert grown == [1, pytest.approx(1e-9), 1, 9, 4]
    assert value('june_inflight{stage="llm"}') == 0
