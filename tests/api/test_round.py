"""The whole way of a message: june as people run it, a program that uses HTTP, and Telegram."""

import asyncio
import json
from pathlib import Path
from typing import Any

from june.audio import decode
from june.bench.recordings import Question, wrong_words
from june.chat.telegram.formatting import visible_telegram
from june.settings import Settings
from june.stt.faster_whisper import FasterWhisper
from tests.api_client import Client, read_events, talking_to
from tests.program import Program, running, write_settings
from tests.telegram_server import ALICE, TelegramServer

BERT = 1002
TOKEN = "a-token-of-the-owners"  # noqa: S105 - of this test


def settings_of(folder: Path, server: TelegramServer, **sections: Any) -> Path:
    return write_settings(
        folder,
        telegram={"token": server.token, "api_base": server.base_url},
        access={"owners": [f"telegram:{ALICE}"], "allowed": [f"telegram:{BERT}"]},
        **sections,
    )


async def port_of(june: Program) -> int:
    return int((await june.logged("api.opened"))["port"])


def says(text: str) -> Any:
    """Return a predicate: whether a call shows this text in a chat."""
    return lambda call: call.ok and call.method == "sendMessage" and visible_telegram(call.text) == text


async def curl(port: int, method: str, path: str, body: Any = None, *options: str) -> tuple[int, Any]:
    """Run curl and return the status and the JSON."""
    content = ["-H", "Content-Type: application/json", "-d", json.dumps(body)] if body is not None else []
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "-X", method, "-w", "\n%{http_code}", *options, *content),
        f"http://127.0.0.1:{port}{path}",
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    text, _, status = output.decode().rpartition("\n")
    return int(status), json.loads(text) if text else None


async def test_curl_does_the_whole_round_while_the_models_are_loading(tmp_path: Path) -> None:
    async with TelegramServer() as server:
        file = settings_of(tmp_path, server, routes={"owner": "queue"}, api={"port": 0, "token": TOKEN})
        async with running(file) as june:
            port = await port_of(june)
            bearer = ("-H", f"Authorization: Bearer {TOKEN}")
            assert (await curl(port, "GET", "/v1/messages"))[0] == 401
            asked = server.push("What is on today?")
            async with talking_to(port, token=TOKEN) as client:
                ((_, _, arrived),) = await read_events(client, 1, last="0")
                assert arrived["status"] == "NEW"
            status, claimed = await curl(port, "POST", "/v1/messages/claim", {}, *bearer)
            assert (status, claimed["text"], claimed["status"]) == (200, "What is on today?", "PROCESSING")
            path = f"/v1/messages/{claimed['id']}"
            status, responded = await curl(port, "POST", f"{path}/respond", {"text": "**Nothing.**"}, *bearer)
            assert (status, responded["status"]) == (200, "RESPONDED")
            call = await server.wait_for(says("Nothing."))
            assert (call.chat, call.reply_to) == (ALICE, asked)
            assert (await curl(port, "GET", path, None, *bearer))[1] == responded
            assert await june.terminate() == 0
        assert TOKEN not in june.output
        assert "Nothing" not in june.output


async def test_health_fails_while_june_answers_nobody(tmp_path: Path) -> None:
    async with TelegramServer() as server:
        file = settings_of(tmp_path, server, llm={"timeout_s": 0.001})
        async with running(file) as june:
            async with talking_to(await port_of(june)) as client:
                await june.logged("june.started")
                assert (await client.get("/health")).status == 200
                for count in range(1, 4):
                    server.push(f"Question {count}")
                    await june.logged("turn.refused", count=count)
                failing = await client.get("/health")
            assert await june.terminate() == 0
    assert (failing.status, failing.body["status"]) == (503, "failing")
    (stage,) = failing.body["failing_stages"]
    assert (stage["stage"], stage["error"], stage["failures"]) == ("llm", "timeout", 3)


async def test_a_program_asks_and_hears_and_people_are_forwarded_with_the_real_models(
    tmp_path: Path, settings: Settings, stt: FasterWhisper, questions: tuple[Question, ...]
) -> None:
    async with TelegramServer() as server:
        file = settings_of(tmp_path, server, routes={"owner": "queue", "allowed": "forward"})
        async with running(file) as june:
            async with talking_to(await port_of(june)) as client:
                await asks(server, client, stt, settings)
                await hears(server, client, stt, settings, questions[0])
                await forwards(server, client, questions[1])
            assert await june.terminate() == 0
        assert "yellow" not in june.output


async def asks(server: TelegramServer, client: Client, stt: FasterWhisper, settings: Settings) -> None:
    """Check that a question is written, spoken, and answered by a reply on Telegram."""
    body = {
        "to": "owner",
        "text": "Shall I paint the door yellow?",
        "kind": "clarification",
        "voice": True,
        "wait_for_reply": True,
    }
    asked = await client.post("/v1/messages", body)
    assert asked.status == 202
    shown = await server.wait_for(says("❓ Question\n\nShall I paint the door yellow?"))
    bubble = await server.wait_for(lambda call: call.ok and call.method == "sendVoice", timeout_s=60)
    heard = await stt.transcribe(decode(bubble.voice, settings.audio))
    assert wrong_words("Shall I paint the door yellow?", heard.text) <= 2
    waiting = asyncio.create_task(client.get(f"/v1/messages/{asked.body['id']}/reply?wait_s=60"))
    server.push("Yes, yellow", reply_to=shown.message_id)
    reply = (await waiting).body
    assert (reply["status"], reply["reply"]["text"]) == ("RESPONDED", "Yes, yellow")
    await client.call("PUT", f"/v1/messages/{asked.body['id']}", {"text": "It is painted."})
    edit = await server.wait_for(lambda call: call.ok and call.method == "editMessageText")
    assert (edit.message_id, visible_telegram(edit.text)) == (
        shown.message_id,
        "❓ Question\n\nIt is painted.",
    )


async def hears(
    server: TelegramServer, client: Client, stt: FasterWhisper, settings: Settings, question: Question
) -> None:
    """Check that a voice note reaches a program with its transcript and its recording."""
    server.push_file("voice", question.audio)
    last = "0"
    async with asyncio.timeout(60):
        while (claimed := await client.post("/v1/messages/claim", {})).status == 204:
            ((last, _, _),) = await read_events(client, 1, last=last)
    message = claimed.body
    assert (message["kind"], message["has_audio"]) == ("voice", True)
    assert wrong_words(question.text, message["text"]) <= 3
    audio = await client.get(f"/v1/messages/{message['id']}/audio")
    assert audio.content_type == "audio/ogg"
    again = await stt.transcribe(decode(audio.body, settings.audio))
    assert wrong_words(question.text, again.text) <= 3
    await client.post(f"/v1/messages/{message['id']}/respond", {"text": "I see."})
    await server.wait_for(says("I see."))


async def forwards(server: TelegramServer, client: Client, question: Question) -> None:
    """Check that the owner gets another person's message with their name, and that the reply goes back."""
    asked = server.push_file("voice", question.audio, user=BERT)
    passed_on = await server.wait_for(
        lambda call: (
            call.ok and call.method == "sendMessage" and call.chat == ALICE and "Person" in call.text
        ),
        timeout_s=60,
    )
    heading, _, words = visible_telegram(passed_on.text).partition("\n\n")
    assert heading == f"✉️ Person {BERT} (telegram:{BERT})"
    assert wrong_words(question.text, words) <= 3
    server.push("Tell you *later*", reply_to=passed_on.message_id)
    returned = await server.wait_for(says("Tell you *later*"))
    assert (returned.chat, returned.reply_to) == (BERT, asked)
    (message,) = (await client.get(f"/v1/messages?user=telegram:{BERT}&direction=in")).body["messages"]
    assert message["status"] == "RESPONDED"
