"""`python -m june messages`, run as its owner runs it, on a real file."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from typer.testing import CliRunner, Result

from june.chat.discord.formatting import discord_parts
from june.chat.formatting import visible
from june.chat.telegram.formatting import telegram_parts
from june.chat.wording import with_echo
from june.commands.messages import app
from june.errors import JuneError, StoreError
from june.messages import Attachment, Delivered, Inbound, Outbound, Transcript, Voice
from june.sections import PROJECT_ROOT
from june.store import Store, open_store
from tests.stored import place_by_default

CHAT, OTHER = "telegram:77", "discord:4711"
START_S = 1_800_000_000.0
MARKDOWN = (
    "**Bold** & `code`\n\n- one\n- [two](https://example.com)\n\n```py\nx < 1\n```\n\n" + "word " * 1200
)
QUESTION = Inbound("telegram", "5", CHAT, "telegram:1", "Ann", "voice", "", Attachment("file", 900, 2.5))


@dataclass
class Cabinet:
    """A file of messages, and the command that reads it."""

    path: Path
    now_s: float = START_S

    def write(self, work: Callable[[Store], Coroutine[Any, Any, None]]) -> None:
        """Do something with the file open, as june has it."""

        async def run() -> None:
            async with open_store(self.path / "june.db", clock=lambda: self.now_s) as store:
                await work(store)

        asyncio.run(run())

    def send(
        self, *messages: Outbound, delivered: list[Delivered], end: Literal["SENT", "NEW", "ERROR"] = "SENT"
    ) -> None:
        """Enqueue messages, and note their deliveries."""

        async def work(store: Store) -> None:
            ids = await store.outbox.add(messages)
            await store.outbox.take_due(exclude_chats=(), group_window_s=0)
            for message_id in ids:
                for one in delivered:
                    await store.outbox.note_delivered(message_id, one)
            if end == "SENT":
                await store.outbox.mark_sent(ids)
            elif end == "ERROR":
                await store.outbox.give_up(ids, error="refused: bot was blocked by the user.")

        self.write(work)

    def run(self, *arguments: str) -> Result:
        """Return the command's output on a wide terminal."""
        settings = self.path / "settings.toml"
        settings.write_text('[store]\npath = "june.db"\n')
        return CliRunner().invoke(app, [*arguments, "--settings", str(settings)], env={"COLUMNS": "200"})


@pytest.fixture
def cabinet(tmp_path: Path) -> Cabinet:
    return Cabinet(tmp_path)


def delivered(parts: list[str], parse_mode: Literal["", "html", "markdown"] = "html") -> list[Delivered]:
    return [Delivered(f"s{number}", "text", part, parse_mode) for number, part in enumerate(parts)]


async def a_turn(store: Store) -> None:
    """Receive a spoken question, and enqueue its answer."""
    (question,) = await store.inbox.receive([(QUESTION, "owner")], place=place_by_default)
    await store.inbox.claim(exclude_chats=(), lease_s=60)
    await store.inbox.note_transcript(question.id, Transcript("What is the sky?", "en", 2.5))
    reply = Outbound(CHAT, "text", "**Blue.**", reply_to="5", echo="What is the sky?")
    await store.inbox.finish(question.id, [reply], outcome="answered", answer="**Blue.**")


# --- history ---


def test_history_shows_both_directions_with_all_that_is_kept(cabinet: Cabinet) -> None:
    cabinet.write(a_turn)
    question, answer = json.loads(cabinet.run("history", "--json").stdout)
    assert (question["direction"], question["transcript"], question["answer"], question["role"]) == (
        "in",
        "What is the sky?",
        "**Blue.**",
        "owner",
    )
    assert len(question["trace_id"]) == 32
    assert answer["trace_id"] == question["trace_id"] == question["trace_context"].split("-")[1]
    assert (answer["direction"], answer["answers"], answer["text"], answer["delivered"]) == (
        "out",
        question["id"],
        "**Blue.**",
        [],
    )
    table = cabinet.run("history").stdout
    for shown in ("Ann", "june", "What is the sky?", "**Blue.**", "RESPONDED", "NEW", "2.5 s", "answers 1"):
        assert shown in table


def test_history_is_of_one_chat_and_of_the_newest(cabinet: Cabinet) -> None:
    for number in range(3):
        cabinet.send(
            Outbound(CHAT, "text", f"t{number}"), Outbound(OTHER, "text", f"d{number}"), delivered=[]
        )

    def texts(*arguments: str) -> list[str]:
        return [entry["text"] for entry in json.loads(cabinet.run("history", "--json", *arguments).stdout)]

    assert texts("--chat", CHAT) == ["t0", "t1", "t2"]
    assert texts("--chat", OTHER, "--limit", "2") == ["d1", "d2"]
    assert texts("--limit", "1") == ["d2"]
    assert texts("--chat", "telegram:5") == []


def test_history_begins_at_a_date_a_time_or_an_age(cabinet: Cabinet) -> None:
    now = datetime.now().astimezone()
    for days in (9, 2, 0):
        cabinet.now_s = (now - timedelta(days=days)).timestamp()
        cabinet.send(Outbound(CHAT, "text", f"{days} days"), delivered=[])

    def count(since: str) -> int:
        return len(json.loads(cabinet.run("history", "--json", "--since", since).stdout))

    counts = [count(since) for since in ("2w", "3d", "49h", "47h", "10m", "60s")]
    assert counts == [3, 2, 2, 1, 1, 1]
    assert count((now - timedelta(days=5)).date().isoformat()) == 2
    assert count((now - timedelta(days=1)).isoformat()) == 1
    assert count((now + timedelta(days=1)).isoformat()) == 0


@pytest.mark.parametrize("since", ["yesterday", "5x", "-3d", "2026-13-01", "0001-01-01", "9999999d"])
def test_a_since_that_is_none_is_said_to_be_so(cabinet: Cabinet, since: str) -> None:
    error = cabinet.run("history", "--since", since).exception
    assert isinstance(error, JuneError)
    assert str(error) == "--since: expected a date such as 2026-11-01, or an age such as 24h."


def test_what_people_write_cannot_steer_the_terminal(cabinet: Cabinet) -> None:
    cabinet.send(Outbound(CHAT, "text", "a\x1b[2Jb\x9bc [red]d[/] :smile:"), delivered=[])
    table = cabinet.run("history").stdout
    assert "a\ufffd[2Jb\ufffdc [red]d[/] :smile:" in table
    assert "\x1b[2J" not in cabinet.run("history", "--json").stdout


def test_history_can_be_read_while_june_runs(cabinet: Cabinet) -> None:
    settings = cabinet.path / "settings.toml"
    settings.write_text('[store]\npath = "june.db"\n')
    command = [sys.executable, "-m", "june", "messages", "history", "--json", "--settings", str(settings)]

    async def work(store: Store) -> None:
        await a_turn(store)
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, cwd=PROJECT_ROOT, env=os.environ
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert len(json.loads(output)) == 2

    cabinet.write(work)


def test_where_june_never_ran_there_is_nothing_to_read(cabinet: Cabinet) -> None:
    assert isinstance(cabinet.run("history").exception, StoreError)
    assert not (cabinet.path / "june.db").exists()


# --- check ---


@pytest.mark.parametrize(
    ("chat", "parts"),
    [
        (CHAT, delivered(telegram_parts(with_echo(MARKDOWN, "What *is* that?")))),
        (OTHER, delivered(discord_parts(with_echo(MARKDOWN, "What *is* that?")), "markdown")),
        (CHAT, delivered(visible(with_echo(MARKDOWN, "What *is* that?")).splitlines(), "")),
    ],
)
def test_a_message_that_arrived_whole_and_valid_is_right(
    cabinet: Cabinet, chat: str, parts: list[Delivered]
) -> None:
    assert len(parts) > 1
    cabinet.send(Outbound(chat, "text", MARKDOWN, echo="What *is* that?"), delivered=parts)
    result = cabinet.run("check", "1")
    assert result.exit_code == 0
    assert "It arrived as intended." in result.stdout
    report = json.loads(cabinet.run("check", "1", "--json").stdout)
    assert (report["id"], report["right"], report["faults"]) == (1, True, [])
    assert len(report["shown"]) == len(parts)


def check(cabinet: Cabinet) -> list[str]:
    """Check message 1, which must have faults, and return them."""
    result = cabinet.run("check", "1", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert report["right"] is False
    plain = cabinet.run("check", "1")
    assert plain.exit_code == 1
    assert all(fault in plain.stdout for fault in report["faults"])
    faults: list[str] = report["faults"]
    return faults


def test_a_text_that_was_cut_is_not_right(cabinet: Cabinet) -> None:
    cabinet.send(
        Outbound(CHAT, "text", "One two **three** four."), delivered=delivered(["One two <b>three</b>"])
    )
    assert check(cabinet) == ["The last 5 of 16 characters are missing."]
    cabinet.send(Outbound(CHAT, "text", "Nothing of it."), delivered=[])
    assert cabinet.run("check", "2").exit_code == 1


def test_a_text_that_was_changed_is_not_right(cabinet: Cabinet) -> None:
    cabinet.send(
        Outbound(OTHER, "text", "One two three."), delivered=delivered(["One too three."], "markdown")
    )
    assert check(cabinet) == ["After 4 characters the chat shows “oothree.” where “wothree.” was meant."]


def test_a_text_that_came_with_more_is_not_right_unless_it_is_a_notice(cabinet: Cabinet) -> None:
    notice = Outbound(CHAT, "text", "Second.", may_group=True)
    both = delivered(["First.\n\nSecond."])
    cabinet.send(replace(notice, may_group=False), delivered=both)
    assert check(cabinet) == ["After 0 characters the chat shows “First.Second.” where “Second.” was meant."]
    cabinet.send(notice, delivered=both)
    assert cabinet.run("check", "2").exit_code == 0
    cabinet.send(notice, delivered=delivered(["First."]))
    assert cabinet.run("check", "3").exit_code == 1


def test_markup_that_the_app_does_not_take_is_not_right(cabinet: Cabinet) -> None:
    cabinet.send(Outbound(CHAT, "text", "One two."), delivered=delivered(["One", "<b>two."]))
    (fault,) = check(cabinet)
    assert fault.startswith("Part 2: ")
    cabinet.send(Outbound(OTHER, "text", "@everyone"), delivered=delivered(["@everyone"], "markdown"))
    assert json.loads(cabinet.run("check", "2", "--json").stdout)["faults"] == ["Part 1: A mention is alive."]


def test_a_message_that_waits_or_was_given_up_is_not_right(cabinet: Cabinet) -> None:
    cabinet.send(Outbound(CHAT, "text", "Hi."), delivered=delivered(["Hi."]), end="NEW")
    assert check(cabinet) == ["It is not completely sent yet."]
    cabinet.send(Outbound(OTHER, "text", "Hi."), delivered=[], end="ERROR")
    report = json.loads(cabinet.run("check", "2", "--json").stdout)
    assert report["faults"] == [
        "june gave it up: refused: bot was blocked by the user.",
        "The last 3 of 3 characters are missing.",
    ]


def test_a_voice_message_is_right_if_the_chat_got_it(cabinet: Cabinet) -> None:
    message = Outbound(CHAT, "voice", "Spoken.", voice=Voice(b"OggS", 1.5, b"\x01"))
    cabinet.send(message, delivered=[])
    assert check(cabinet) == ["The chat got no voice message."]
    cabinet.send(message, delivered=[Delivered("s1", "voice")])
    assert cabinet.run("check", "2").exit_code == 0


@pytest.mark.parametrize("message_id", ["1", "99"])
def test_only_what_june_sent_can_be_checked(cabinet: Cabinet, message_id: str) -> None:
    cabinet.write(a_turn)
    error = cabinet.run("check", message_id).exception
    assert isinstance(error, JuneError)
    assert str(error).startswith(f"june sent no message {message_id};")


# --- stats ---


def test_stats_count_and_time_what_was_received_and_sent(cabinet: Cabinet) -> None:
    cabinet.send(Outbound(OTHER, "text", "Hi."), delivered=[], end="ERROR")
    cabinet.write(a_turn)
    found = json.loads(cabinet.run("stats", "--json").stdout)
    assert sorted((one["direction"], one["platform"], one["status"]) for one in found["counts"]) == [
        ("in", "telegram", "RESPONDED"),
        ("out", "discord", "ERROR"),
        ("out", "telegram", "NEW"),
    ]
    assert found["response_p50_s"] == 0
    table = cabinet.run("stats").stdout
    for shown in ("received", "RESPONDED", "discord", "Half of the answers were ready within 0.00 s"):
        assert shown in table


def test_stats_begin_at_a_time_too(cabinet: Cabinet) -> None:
    cabinet.now_s = time.time() - 7200
    cabinet.write(a_turn)
    assert json.loads(cabinet.run("stats", "--json", "--since", "1h").stdout) == {
        "counts": [],
        "response_p50_s": None,
        "response_p95_s": None,
    }
    assert cabinet.run("stats", "--since", "1h").exit_code == 0
