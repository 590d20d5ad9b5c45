"""What is deleted and what stays, copies that a kill interrupts, and a backup of a june at work."""

import asyncio
import math
import random
import signal
import sqlite3
import sys
import tempfile
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from june.errors import StoreError
from june.messages import Outbound, Voice
from june.sections import PROJECT_ROOT, StoreSettings
from june.store import Pruned, Store, open_store, schema
from june.store.retention import keep_tidy
from june.store.schema import MIGRATIONS, VERSION
from june.store.transactions import Transaction
from tests.program import running, write_settings
from tests.stored import ANNA, BERT, Clock, claim, inbound, receive, reply
from tests.telegram_server import ALICE, TelegramServer

DAY_S = 86_400
NOW_S = 1_000 * DAY_S


# --- what is deleted ---

MESSAGE = st.fixed_dictionaries(
    {
        "direction": st.sampled_from(["in", "in", "out"]),
        "chat": st.sampled_from([ANNA, BERT]),
        "status": st.sampled_from(["NEW", "PROCESSING", "DONE", "DONE", "DONE", "ERROR"]),
        "outcome": st.sampled_from(["answered", "answered", "command"]),
        "age_days": st.integers(0, 20),
        "refers_back": st.integers(0, 4),
        "has_voice": st.booleans(),
    }
)


def insert(sql: Transaction, messages: list[dict[str, Any]], forgotten: int) -> None:
    """The messages as rows 1, 2, …; what is sent refers to what stands `refers_back` before it."""
    for number, message in enumerate(messages, 1):
        is_in = message["direction"] == "in"
        target = number - message["refers_back"]
        is_reference = not is_in and message["refers_back"] and target > 0
        column = "answers" if is_reference and messages[target - 1]["direction"] == "in" else "edits"
        done = "RESPONDED" if is_in else "SENT"
        sql.execute(
            "INSERT INTO messages (direction, platform, chat, kind, text, status, claimed_by, attempts,"
            " outcome, answer, platform_message_id, created_at_s, updated_at_s, answers, edits)"
            " VALUES (:direction, 'telegram', :chat, 'text', :text, :status, :claimed_by, 1, :outcome,"
            " 'Blue.', :text, :at_s, :at_s, :answers, :edits)",
            direction=message["direction"],
            chat=message["chat"],
            text=str(number),
            status=done if message["status"] == "DONE" else message["status"],
            claimed_by="june" if message["status"] == "PROCESSING" else "",
            outcome=message["outcome"] if is_in and message["status"] == "DONE" else "",
            at_s=NOW_S - message["age_days"] * DAY_S,
            answers=target if is_reference and column == "answers" else None,
            edits=target if is_reference and column == "edits" else None,
        )
        if message["has_voice"] and not is_in:
            sql.execute("INSERT INTO voices VALUES (:id, x'4f', x'00')", id=number)
    sql.execute("INSERT INTO chats (chat, forgotten_up_to_id) VALUES (:chat, :id)", chat=BERT, id=forgotten)


@hypothesis_settings(max_examples=60, deadline=None)
@given(messages=st.lists(MESSAGE, max_size=25), forgotten=st.integers(0, 25), keep_turns=st.integers(0, 3))
def test_pruning_takes_all_that_is_old_and_done_and_nothing_that_is_needed(
    messages: list[dict[str, Any]], forgotten: int, keep_turns: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before, after, pruned, faults = asyncio.run(prune_all(Path(folder), messages, forgotten, keep_turns))
    assert faults == []
    assert pruned.messages == len(before) - len(after)
    assert all(after[key] == before[key] for key in after)  # nothing else changed

    def is_turn(row: sqlite3.Row) -> bool:
        said = row["direction"] == "in" and row["outcome"] == "answered"
        return said and not (row["chat"] == BERT and row["id"] <= forgotten)

    turns = {
        chat: [key for key in before if before[key]["chat"] == chat and is_turn(before[key])]
        for chat in (ANNA, BERT)
    }
    remembered = {key for keys in turns.values() for key in keys[len(keys) - min(keep_turns, len(keys)) :]}
    needed = set(remembered)
    for key, row in before.items():
        is_old = row["updated_at_s"] < NOW_S - 10 * DAY_S
        if not is_old or row["status"] in {"NEW", "PROCESSING"}:
            needed.add(key)
    for key in sorted(before, reverse=True):  # what is needed needs what it refers to
        if key in needed:
            needed |= {before[key][column] for column in ("answers", "edits") if before[key][column]}
    assert set(after) == needed


async def prune_all(
    folder: Path, messages: list[dict[str, Any]], forgotten: int, keep_turns: int
) -> tuple[dict[int, sqlite3.Row], dict[int, sqlite3.Row], Pruned, list[str]]:
    """The rows before and after, what was deleted, and what is wrong with the file then."""

    def rows(sql: Transaction) -> dict[int, sqlite3.Row]:
        return {row["id"]: row for row in sql.rows("SELECT * FROM entries ORDER BY id")}

    async with open_store(folder / "june.db", clock=lambda: NOW_S) as store:
        await store.transact(partial(insert, messages=messages, forgotten=forgotten))
        before = await store.transact(rows)
        pruned = await store.upkeep.prune(messages_age_s=10 * DAY_S, keep_turns=keep_turns)
        return before, await store.transact(rows), pruned, await store.upkeep.faults()


async def test_a_long_history_is_pruned_in_small_transactions_with_others_in_between(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "june.db", clock=clock) as store:
        await store.outbox.enqueue([reply(str(number)) for number in range(2_000)])
        await store.transact(lambda sql: sql.execute("UPDATE messages SET status = 'SENT'"))
        clock.now_s += 100
        sizes = []
        pruning = asyncio.create_task(store.upkeep.prune(messages_age_s=50, keep_turns=0))
        while not pruning.done():
            sizes.append((await store.upkeep.contents()).messages)
        assert await pruning == Pruned(messages=2_000, voices=0, chats=frozenset({ANNA}))
    steps = [one - other for one, other in pairwise(sizes)]
    assert len({size for size in sizes if 0 < size < 2_000}) > 5
    assert max(steps) <= 400


async def test_retention_begins_at_once_and_spares_what_the_settings_keep(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "june.db", clock=clock) as store:
        for number in range(4):
            await receive(store, inbound(number, text=f"question {number}"))
            await store.inbox.finish((await claim(store)).id, [], outcome="answered", answer="Blue.")
        voice = Outbound(ANNA, "voice", "spoken", Voice(b"OggS", 1, b""))
        await store.outbox.enqueue([voice])
        await store.transact(
            lambda sql: sql.execute("UPDATE messages SET status = 'SENT' WHERE direction = 'out'")
        )
        clock.now_s += 8 * DAY_S
        for settings, texts, voices in (
            (StoreSettings(keep_audio_days=9), 5, 1),
            (StoreSettings(keep_audio_days=7), 5, 0),
            (StoreSettings(keep_messages_days=9), 5, 0),
            (StoreSettings(keep_messages_days=7), 2, 0),
        ):
            forgotten = asyncio.get_running_loop().create_future()

            async def forget(*what: object, told: asyncio.Future[object] = forgotten) -> None:
                told.set_result(what)

            tidying = asyncio.create_task(keep_tidy(store.upkeep, settings, keep_turns=2, forget=forget))
            found = await reaches(store, (texts, voices))
            age_s = settings.keep_messages_days * DAY_S or math.inf
            assert await forgotten == (age_s, {ANNA} if texts == 2 else set())
            assert not tidying.done()  # until tomorrow
            tidying.cancel()
            assert found == (texts, voices)
        assert [message.content for message in await store.conversations.messages(ANNA, 4)][::2] == [
            "question 2",
            "question 3",
        ]


async def reaches(store: Store, expected: tuple[int, int]) -> tuple[int, int]:
    """The numbers of messages and voices once they are as expected, or after many looks."""
    found = (-1, -1)
    for _ in range(200):
        contents = await store.upkeep.contents()
        found = (contents.messages, contents.voices)
        if found == expected:
            break
    return found


# --- a copy before a migration ---


def add_a_step(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Make june one that knows one more step than it does."""
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, step))
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


async def test_a_file_is_copied_before_it_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copy = tmp_path / "june.db", tmp_path / f"june.db.schema-{VERSION}.backup"
    async with open_store(path) as store:
        await receive(store, inbound(1))
    assert not copy.exists()  # a new file is not converted
    with monkeypatch.context() as context:
        add_a_step(context, "ALTER TABLE messages ADD COLUMN mood TEXT")
        async with open_store(path) as store:
            assert [entry.text for entry in await store.history.entries()] == ["Hello"]
        assert version_of(path) == VERSION + 1
    assert (version_of(copy), oct(copy.stat().st_mode)[-3:]) == (VERSION, "600")
    with pytest.raises(StoreError, match="newer june"):
        async with open_store(path):
            pass
    async with open_store(copy, read_only=True) as store:
        assert await store.upkeep.faults() == []
        assert await store.put_in_place_of(path)
    async with open_store(path) as store:  # back with the older june
        assert [entry.text for entry in await store.history.entries()] == ["Hello"]


async def test_a_conversion_that_fails_leaves_the_file_and_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copy = tmp_path / "june.db", tmp_path / f"june.db.schema-{VERSION}.backup"
    async with open_store(path) as store:
        await receive(store, inbound(1))
    with monkeypatch.context() as context:
        add_a_step(context, "ALTER TABLE messages ADD COLUMN mood TEXT; DROP TABLE gone")
        for _ in range(2):  # the second time replaces the copy
            with pytest.raises(StoreError, match="no such table: gone"):
                async with open_store(path):
                    pass
    assert version_of(path) == version_of(copy) == VERSION
    async with open_store(path) as store:
        assert await store.upkeep.faults() == []
        await receive(store, inbound(2))


async def test_a_backup_of_an_older_file_can_be_made_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copy = tmp_path / "june.db", tmp_path / "copy.db"
    async with open_store(path) as store:
        await receive(store, inbound(1))
    add_a_step(monkeypatch, "ALTER TABLE messages ADD COLUMN mood TEXT")
    async with open_store(path, read_only=True, any_schema=True) as store:
        await store.back_up(copy)
        assert await store.upkeep.faults() == []
    async with open_store(copy, read_only=True, any_schema=True) as store:
        assert (await store.upkeep.contents()).schema == VERSION
        await store.put_in_place_of(path)
    async with open_store(path) as store:
        assert (await store.upkeep.contents()).schema == VERSION + 1


# --- kill -9 and load ---


async def fill(path: Path, messages: int, size: int) -> None:
    """So many recordings of so many random bytes, which are sent."""
    moment = random.Random(5)  # noqa: S311 - no secret
    async with open_store(path) as store:
        await store.outbox.enqueue(
            [
                Outbound(BERT, "voice", "spoken", Voice(moment.randbytes(size), 1, b""))
                for _ in range(messages)
            ]
        )
        await store.transact(lambda sql: sql.execute("UPDATE messages SET status = 'SENT'"))


async def data(settings: Path, *arguments: str | Path) -> asyncio.subprocess.Process:
    """`june data …`, begun."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "june", "data", *map(str, arguments), "--settings", str(settings)),
        cwd=PROJECT_ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def done(process: asyncio.subprocess.Process) -> str:
    """What a command printed that did what it was asked."""
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_a_backup_that_is_killed_leaves_no_half_file_under_its_name(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, store={"path": "june.db"})
    await fill(tmp_path / "june.db", 150, 100_000)
    copy = tmp_path / "copy.db"
    for least_bytes in (0, 8_000_000):
        process = await data(settings, "backup", copy)
        while not any(half.stat().st_size >= least_bytes for half in halves(copy)):
            assert process.returncode is None
            await asyncio.sleep(0)
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        assert not copy.exists()
        for half in halves(copy):
            half.unlink()
    await done(await data(settings, "backup", copy))
    assert "150 recordings" in await done(await data(settings, "verify", copy))


def halves(copy: Path) -> list[Path]:
    """What of a copy is not whole."""
    return list(copy.parent.glob(f"{copy.name}.*.partial"))


def rows(path: Path, table: str = "messages") -> dict[Any, dict[str, Any]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()  # noqa: S608
    return {row[0]: dict(row) for row in found}


async def test_a_backup_under_load_is_of_one_moment_and_comes_back_as_it_was(tmp_path: Path) -> None:
    people = [ALICE + number for number in range(10)]
    path = tmp_path / "june.db"
    await fill(path, 100, 50_000)
    async with TelegramServer() as server:
        settings = write_settings(
            tmp_path,
            telegram={"token": server.token, "api_base": server.base_url},
            access={"owners": [f"telegram:{person}" for person in people]},
            store={"path": "june.db"},
            delivery={"group_window_s": 0},
        )
        copies = [tmp_path / f"copy-{number}.db" for number in range(2)]
        async with running(settings) as june:
            await june.logged("june.ready")
            pushing = asyncio.create_task(keep_asking(server, people))
            for copy in copies:
                answered = len(server.sent("sendMessage"))
                await done(await data(settings, "backup", copy))
                assert len(server.sent("sendMessage")) > answered + 5  # june went on meanwhile
            pushing.cancel()
            await asyncio.wait([pushing])
            assert await june.terminate() == 0
        live = rows(path)
        for copy in copies:
            assert_is_of_one_moment(rows(copy), live)
        assert len(rows(copies[0])) < len(rows(copies[1])) < len(live)
        assert rows(copies[1], "voices") == rows(path, "voices")

        await done(await data(settings, "restore", copies[1]))
        for table in ("messages", "voices", "cursors", "chats", "people", "sqlite_sequence"):
            assert rows(path, table) == rows(copies[1], table)
        async with running(settings) as june:
            await june.logged("june.ready")
            asked_last = server.push("/help", user=ALICE)
            await server.wait_for(lambda call: call.ok and call.reply_to == asked_last, timeout_s=60)
            assert await june.terminate() == 0
        assert "verified" in await done(await data(settings, "verify"))


async def keep_asking(server: TelegramServer, people: list[int]) -> None:
    """Keep june busy with commands, which take no model: some wait always."""
    for number in range(100_000):
        server.push("/help", user=people[number % len(people)])
        await server.wait_for(
            lambda call: call.ok and call.method == "sendMessage", count=max(number - 20, 1)
        )


def assert_is_of_one_moment(copy: dict[int, dict[str, Any]], live: dict[int, dict[str, Any]]) -> None:
    """The copy has the first rows without a gap, and each row that did not change later is as it is now."""
    assert list(copy) == list(live)[: len(copy)]
    moment_s = max(row["updated_at_s"] for row in copy.values())
    for key, row in live.items():
        if row["updated_at_s"] < moment_s:
            assert copy[key] == row
    same = ("direction", "chat", "user", "kind", "text", "platform_message_id", "created_at_s", "answers")
    assert all(copy[key][column] == live[key][column] for key in copy for column in same)
