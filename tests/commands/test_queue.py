"""`python -m june messages` over the API: a real server, and the commands as scripts call them."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientSession, TraceConfig, TraceRequestEndParams
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from june.api.client import ApiClient, open_client
from june.commands.messages import app
from june.errors import ApiError, SettingsError
from june.sections import PROJECT_ROOT, ApiSettings
from tests.api_client import BERT, OWNER, STRANGER, Office, read_events
from tests.documents import code_blocks, section
from tests.program import running, write_settings
from tests.telegram_server import ALICE, TelegramServer

TOKEN = "a-token-of-the-owners"  # noqa: S105 - of this test


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with Office(tmp_path, api=ApiSettings(port=0, token=SecretStr(TOKEN))) as opened:
        yield opened


async def call(office: Office, *arguments: str, text: str | bytes = "", token: str = TOKEN) -> Result:
    """Run one command while the server keeps running."""
    command = [*arguments, "--url", f"http://127.0.0.1:{office.port}"]
    env = {"JUNE_API__TOKEN": token, "COLUMNS": "200"}
    return await asyncio.to_thread(CliRunner().invoke, app, command, input=text, env=env)


async def message(office: Office, *arguments: str, text: str = "") -> Any:
    """Run a command and return the JSON that it prints."""
    done = await call(office, *arguments, "--json", text=text)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def shell_loop() -> str:
    """Return the loop that docs/api.md shows."""
    (loop,) = code_blocks(section("docs/api.md", "From a shell"), "sh")
    return loop


def executable(file: Path, *lines: str) -> None:
    file.write_text("\n".join(("#!/bin/sh", *lines)))
    file.chmod(0o700)


async def test_the_documented_loop_answers_the_owner_and_asks_before_it_deploys(tmp_path: Path) -> None:
    executable(tmp_path / "june", f'exec "{sys.executable}" -m june "$@" --url "$ADDRESS"')
    executable(tmp_path / "agent", "tr a-z A-Z")
    async with TelegramServer() as server:
        file = write_settings(
            tmp_path,
            telegram={"token": server.token, "api_base": server.base_url},
            access={"owners": [f"telegram:{ALICE}"]},
            routes={"owner": "queue"},
            api={"token": TOKEN},
        )
        async with running(file) as june:
            port = (await june.logged("api.opened"))["port"]
            loop = await asyncio.create_subprocess_exec(
                *("timeout", "120", "sh", "-c", shell_loop()),  # which would go on for ever
                env={
                    **os.environ,
                    "PATH": f"{tmp_path}:{os.environ['PATH']}",
                    "PYTHONPATH": str(PROJECT_ROOT),
                    "ADDRESS": f"http://127.0.0.1:{port}",
                    "JUNE_API__TOKEN": TOKEN,
                },
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                deploy = server.push("Deploy it")
                await server.wait_for(lambda call: call.ok and "production?" in call.text, timeout_s=60)
                server.push("yes")
                done = await server.wait_for(lambda call: call.ok and "DEPLOY IT" in call.text, timeout_s=60)
                assert (done.chat, done.reply_to) == (ALICE, deploy)
            finally:
                os.killpg(loop.pid, signal.SIGKILL)
                await loop.wait()
        assert TOKEN not in june.output


async def test_a_message_is_listed_claimed_extended_and_answered(office: Office) -> None:
    first, second = await office.arrive("Lights off", "And on")
    listed = await message(office, "list", "--status", "NEW", "--oldest-first", "--limit", "1")
    assert [one["id"] for one in listed] == [first.id]
    claimed = await message(office, "claim", "--lease", "1h")
    assert (claimed["id"], claimed["lease_until"]) == (first.id, "1970-01-01T01:16:40.000Z")
    extended = await message(office, "extend", str(first.id), "--lease", "2h", "--attempts", "1")
    assert extended["lease_until"] == "1970-01-01T02:16:40.000Z"
    assert (await call(office, "show", str(first.id), "--field", "status")).stdout == "PROCESSING\n"
    responded = await message(office, "respond", str(first.id), "-", text="They are off.\n")
    assert responded["status"] == "RESPONDED"
    assert (await message(office, "claim", "--id", str(second.id)))["id"] == second.id
    failed = await message(office, "fail", str(second.id), "--error", "no lamp", "--retry")
    assert (failed["status"], failed["error"]) == ("NEW", "no lamp")
    assert await office.deliver() == ["They are off.\n"]


async def test_lists_go_over_pages_and_read_well_on_a_terminal(office: Office) -> None:
    await office.arrive(*(f"number {number}" for number in range(205)), "\x1b[2J\x1b]0;title\x07")
    assert len(await message(office, "list", "--limit", "1000", "--user", OWNER)) == 206
    table = (await call(office, "list", "--limit", "2")).stdout
    assert "number 204" in table
    assert "\x1b" not in table
    assert "\x07" not in table


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("claim",), 1, ""),
        (("claim", "--wait", "1s"), 1, ""),
        (("list", "--chat", BERT), 1, ""),
        (("show", "99"), 1, "june: There is no message 99."),
        (("respond", "1", "Late"), 1, "june: Message 1 is NEW, and not claimed by a program."),
        (("ask", "Well?", "--wait", "1s"), 1, "june: No answer came."),
    ],
)
async def test_exit_status_1_says_that_there_is_nothing(
    office: Office, arguments: tuple[str, ...], status: int, sentence: str
) -> None:
    if arguments[0] == "respond":
        await office.arrive("Hello")
    done = await call(office, *arguments)
    assert (done.exit_code, done.stdout, done.stderr.strip()) == (status, "", sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("send", "Hello", "--to", STRANGER), f"{STRANGER} has no access."),
        (("send", "Hello", "--kind", "poem"), "kind: Input should be 'message'"),
        (("claim", "--wait", "soon"), "--wait: expected a duration such as 90s or 1h."),
        (
            ("list", "--since", "soon"),
            "--since: expected a date such as 2026-11-01, or an age such as 24h.",
        ),
        (("send", "-"), "Standard input: expected UTF-8 text."),
        (("show", "1", "--field", "colour"), "A message has no field 'colour'; it has attempts, chat, "),
    ],
)
async def test_wrong_use_is_one_sentence(office: Office, arguments: tuple[str, ...], sentence: str) -> None:
    await office.arrive("Hello")
    done = await call(office, *arguments, text=b"caf\xe9")
    assert done.stdout == ""
    assert str(done.exception).startswith(sentence)


async def test_a_june_out_of_reach_or_a_wrong_token_is_exit_status_2(office: Office) -> None:
    for url, token, sentence in (
        ("http://127.0.0.1:1", TOKEN, "june: june is out of reach at http://127.0.0.1:1.\n"),
        (
            f"http://127.0.0.1:{office.port}",
            "wrong",
            "june: june does not accept the token; set api.token, or the variable JUNE_API__TOKEN.\n",
        ),
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "june", "messages", "claim", "--url", url),
            env={**os.environ, "JUNE_API__TOKEN": token},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=PROJECT_ROOT,
        )
        output, error = await process.communicate()
        assert (process.returncode, output, error.decode()) == (2, b"", sentence)


async def test_ask_prints_the_owners_answer(office: Office) -> None:
    asking = asyncio.create_task(call(office, "ask", "Shall I?", "--wait", "1h"))
    ((_, _, asked),) = await read_events(office.client, 1, last="0")
    assert (asked["text"], asked["kind"]) == ("Shall I?", "clarification")
    assert await office.deliver() == ["Shall I?"]
    await office.arrive("Yes, do")
    answered = await asking
    assert (answered.exit_code, answered.stdout) == (0, "Yes, do\n")


async def test_the_same_key_asks_and_sends_once(office: Office) -> None:
    for _ in range(2):
        await message(office, "send", "Done", "--key", "job-7")
        done = await call(office, "ask", "Well?", "--wait", "1s", "--key", "job-7-question")
        assert done.exit_code == 1
    assert await office.deliver() == ["Done", "Well?"]


async def test_a_claim_waits_for_the_message_to_come(office: Office) -> None:
    was_refused = asyncio.Event()

    async def note(_: ClientSession, __: SimpleNamespace, ended: TraceRequestEndParams) -> None:
        if ended.response.status == 204:
            was_refused.set()

    trace = TraceConfig()
    trace.on_request_end.append(note)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with ClientSession(headers=headers, trace_configs=[trace]) as session:
        june = ApiClient(session, f"http://127.0.0.1:{office.port}")
        claiming = asyncio.create_task(june.claim({"user": OWNER}, wait_s=60))
        await was_refused.wait()
        await office.arrive("Not from the owner", user=BERT)
        (arrived,) = await office.arrive("At last")
        claimed = await claiming
    assert claimed is not None
    assert claimed["id"] == arrived.id


async def test_a_watch_misses_nothing_while_june_is_started_again(tmp_path: Path) -> None:
    seen: asyncio.Queue[Any] = asyncio.Queue()

    async def watch(port: int) -> None:
        async with open_client(ApiSettings(port=port)) as june:
            async for event in june.events():
                seen.put_nowait(event.name if event.message is None else event.message["text"])

    async with Office(tmp_path) as office:
        port = office.port
        watching = asyncio.create_task(watch(port))
        assert await seen.get() == "open"
    async with Office(tmp_path) as office:  # elsewhere, so that nobody hears of it
        await office.arrive("in between")
    async with Office(tmp_path, api=ApiSettings(port=port)) as office:
        assert [await seen.get() for _ in range(2)] == ["open", "in between"]
        await office.arrive("afterwards")
        assert await seen.get() == "afterwards"
        watching.cancel()
        await asyncio.wait([watching])


async def test_an_answer_is_waited_for_while_june_is_started_again(tmp_path: Path) -> None:
    has_asked = asyncio.Event()

    async def note(*_: object) -> None:
        has_asked.set()

    trace = TraceConfig()
    trace.on_request_headers_sent.append(note)
    async with ClientSession(trace_configs=[trace]) as session:
        async with Office(tmp_path) as office:
            port = office.port
            question = {"to": "owner", "text": "Shall I?", "wait_for_reply": True}
            asked = (await office.client.post("/v1/messages", question)).body["id"]
            await office.deliver()
            june = ApiClient(session, f"http://127.0.0.1:{port}")
            waiting = asyncio.create_task(june.reply(asked, wait_s=600))
            await has_asked.wait()
        async with Office(tmp_path, api=ApiSettings(port=port)) as office:
            await office.arrive("Yes")
            assert (await waiting)["reply"]["text"] == "Yes"


async def test_what_is_watched_can_be_resumed_behind_an_event(office: Office) -> None:
    await office.arrive("one", "two")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "june", "messages", "watch", "--json", "--after", "1"),
        *("--url", f"http://127.0.0.1:{office.port}"),
        env={**os.environ, "JUNE_API__TOKEN": TOKEN},
        stdout=asyncio.subprocess.PIPE,
        cwd=PROJECT_ROOT,
    )
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    process.kill()
    await process.communicate()
    assert (first["event_id"], first["message"]["text"]) == (2, "two")


@pytest.mark.parametrize(
    "url",
    ["june.example.org", "ftp://example.org", "https://name:secret@example.org", "http://[::1", "http://"],
)
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="--url: expected an address"):
        async with open_client(ApiSettings(), url=url):
            pass


async def test_another_server_is_told_from_june() -> None:
    async with TelegramServer() as server, open_client(ApiSettings(), url=server.base_url) as client:
        with pytest.raises(ApiError, match="is not june"):
            await client.get("")
        with pytest.raises(ApiError, match="is not june"):
            await anext(client.events())
