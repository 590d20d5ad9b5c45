"""The file of messages as a file: who may open it, cancelled callers, kill -9, and a model of it all."""

import asyncio
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from june.errors import StoreError
from june.sections import PROJECT_ROOT
from june.store import Store, open_store
from june.store.schema import VERSION
from june.store.transactions import Transaction
from tests.stored import ANNA, BERT, Clock, claim, explain, inbound, receive, reply, take


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "june.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with open_store(path) as opened:
        yield opened


# The file


def publish(path: Path) -> None:
    path.chmod(0o644)


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


async def test_the_file_is_its_owners_only(path: Path) -> None:
    async with open_store(path):
        pass
    publish(path)  # as a copy from elsewhere may be
    async with open_store(path) as store:
        await receive(store, inbound(1))
        found = modes(path.parent)
    assert found == dict.fromkeys(["june.db", "june.db-wal", "june.db-shm", "june.db.lock"], 0o600)


async def test_a_second_june_on_the_same_file_is_refused(store: Store, path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    for same in (path, link):
        with pytest.raises(StoreError, match=r"^/.*june\.db is in use by another june$"):
            async with open_store(same):
                pass
    await receive(store, inbound(1))


async def test_a_file_can_be_opened_again_when_it_was_closed(path: Path) -> None:
    async with open_store(path) as store:
        await receive(store, inbound(1))
    async with open_store(path) as store:
        assert (await claim(store)).message == inbound(1)


async def test_reading_needs_a_file(path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        async with open_store(path, read_only=True):
            pass
    assert modes(path.parent) == {}


async def test_a_reader_reads_beside_the_writer_and_writes_nothing(store: Store, path: Path) -> None:
    await receive(store, inbound(1))
    async with open_store(path, read_only=True) as reader:
        assert len(await reader.history.entries()) == 1
        await receive(store, inbound(2))
        assert len(await reader.history.entries()) == 2
        with pytest.raises(StoreError, match="readonly"):
            await receive(reader, inbound(3))
        assert len(await reader.history.entries()) == 2


async def test_a_newer_file_is_refused(path: Path) -> None:
    async with open_store(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(StoreError, match="newer june"):
            async with open_store(path, read_only=read_only):
                pass


async def test_a_file_that_is_not_junes_yet_is_not_read(path: Path) -> None:
    sqlite3.connect(path).executescript("CREATE TABLE diary (entry)").connection.close()
    with pytest.raises(StoreError, match="older june"):
        async with open_store(path, read_only=True):
            pass


async def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "letters.db").write_text("Dear diary, " * 1000)
    (tmp_path / "folder.db").mkdir()
    for name, reason in [
        ("letters.db", "not a database"),
        ("folder.db", "Is a directory"),
        ("missing/june.db", "No such file"),
    ]:
        with pytest.raises(StoreError, match=reason):
            async with open_store(tmp_path / name):
                pass
        with pytest.raises(StoreError):
            async with open_store(tmp_path / name, read_only=True):
                pass


async def test_an_impossible_id_is_a_store_error(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.history.entry(2**63)
    assert await store.history.entry(2**63 - 1) is None


async def test_damaged_letters_neither_hide_a_message_nor_show_in_an_error(path: Path) -> None:
    async with open_store(path) as store:
        await receive(store, inbound(1, text="secret"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE messages SET text = CAST(x'736563726574ff' AS TEXT)")
    connection.close()
    async with open_store(path) as store:
        assert (await claim(store)).message.text == "secret\ufffd"


async def test_every_commit_reaches_the_disk(store: Store) -> None:
    def settings(sql: Transaction) -> list[int | str]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [sql.one(f"PRAGMA {name}")[0] for name in names]

    assert await store.transact(settings) == ["wal", 2, 1]


# Cancelling


async def test_a_failing_transaction_leaves_nothing_behind(store: Store) -> None:
    def fail(sql: Transaction) -> None:
        sql.execute("INSERT INTO cursors VALUES ('a', 'b')")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.transact(fail)
    assert await store.inbox.cursor("a") == ""


async def test_a_cancelled_caller_leaves_no_open_transaction(store: Store) -> None:
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()
    go_on = threading.Event()

    def write_slowly(sql: Transaction) -> None:
        sql.execute("INSERT INTO cursors VALUES ('a', '1')")
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(10)
        sql.execute("INSERT INTO cursors VALUES ('b', '2')")

    running = asyncio.create_task(store.transact(write_slowly))
    waiting = asyncio.create_task(store.inbox.receive([(inbound(1), "owner")]))
    await begun.wait()
    running.cancel()
    waiting.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    go_on.set()
    for task in (running, waiting):
        with pytest.raises(asyncio.CancelledError):
            await task
    # What had begun was done whole, what had not was not begun, and the store goes on.
    assert (await store.inbox.cursor("a"), await store.inbox.cursor("b")) == ("1", "2")
    assert len(await receive(store, inbound(1))) == 1


async def test_cancelling_the_block_closes_the_file(path: Path) -> None:
    opened = asyncio.Event()

    async def hold() -> None:
        async with open_store(path):
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await opened.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # an impatient caller, while it closes
    with pytest.raises(asyncio.CancelledError):
        await task
    async with open_store(path) as store:
        await receive(store, inbound(1))


# kill -9

WORKER = """
import asyncio, itertools, sys
from pathlib import Path
from june.messages import Inbound, Outbound
from june.store import open_store

async def main():
    prefix = sys.argv[2]
    async with open_store(Path(sys.argv[1])) as store:
        recovered = await store.upkeep.recover(max_attempts=1000, explain=lambda received: None)
        print("ready", recovered, flush=True)
        for number in itertools.count():
            chat = f"telegram:{number % 5}"
            name = f"{prefix}-{number}"
            message = Inbound("telegram", name, chat, chat, "A", "text", "x" * (number % 3000))
            for new in await store.inbox.receive([(message, "owner")], cursor=("telegram", name)):
                print("received", new.id, name, flush=True)
            claimed = await store.inbox.claim(exclude_chats=(), lease_s=60)
            if claimed is not None and number % 7:
                reply = Outbound(claimed.message.chat, "text", str(claimed.id))
                await store.inbox.finish(claimed.id, [reply], outcome="answered")
                print("finished", claimed.id, "-", flush=True)
            elif claimed is not None:
                await store.inbox.release(claimed.id)
            for queued in await store.outbox.take_due(exclude_chats=(), group_window_s=0):
                await store.outbox.mark_sent([queued.id])
                print("sent", queued.id, queued.message.text, flush=True)

asyncio.run(main())
"""


def live_and_be_killed(path: Path, name: str, after_s: float) -> list[list[str]]:
    """What a program at work on the file printed until it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), name], stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        killer = threading.Timer(after_s, process.kill)
        killer.start()
        lines = process.stdout.read().splitlines(keepends=True)
        killer.join()
    assert process.returncode == -signal.SIGKILL
    return [line.split() for line in lines if line.endswith("\n")]  # the last may be cut


async def test_nothing_acknowledged_is_lost_by_kill_9(path: Path) -> None:
    seconds = random.Random(3)  # noqa: S311 - when to kill, not a secret
    events: dict[str, dict[int, str]] = {"received": {}, "finished": {}, "sent": {}}
    for life in range(10):
        for event, message_id, detail in live_and_be_killed(path, str(life), seconds.uniform(0.01, 0.3)):
            events[event][int(message_id)] = detail
        async with open_store(path, read_only=True) as reader:  # with the leftovers of a crash
            assert await reader.history.entry(max(events["received"])) is not None
    assert min(map(len, events.values())) > 50

    async with open_store(path) as store:
        entries = {entry.id: entry for entry in await store.history.entries(limit=10**6)}
        last_cursor = await store.inbox.cursor("telegram")
        assert await store.transact(lambda sql: sql.one("PRAGMA integrity_check")[0]) == "ok"
    inbox = [entry for entry in entries.values() if entry.direction == "in"]
    replies = [entry.answers for entry in entries.values() if entry.direction == "out"]
    assert {i: entries[i].platform_message_id for i in events["received"]} == events["received"]
    assert {entries[i].status for i in events["finished"]} == {"RESPONDED"}
    assert {entries[i].status for i in events["sent"]} == {"SENT"}
    assert {i: str(entries[i].answers) for i in events["sent"]} == events["sent"]
    # A reply for each message that is done, and for no other: both were one transaction.
    assert sorted(replies) == sorted(entry.id for entry in inbox if entry.status == "RESPONDED")
    # So were the last message and the cursor.
    assert max(inbox, key=lambda entry: entry.id).platform_message_id == last_cursor


# The model


@dataclass
class Row:
    """What the model knows of one message."""

    chat: str
    status: str = "NEW"
    attempts: int = 0
    answers: int = 0


MAX_ATTEMPTS = 3
CHATS = (ANNA, BERT, "discord:3")


@dataclass
class Model:
    """The store, as simple as it can be said."""

    inbox: dict[int, Row] = field(default_factory=dict)
    outbox: dict[int, Row] = field(default_factory=dict)

    def next(self, rows: dict[int, Row]) -> int | None:
        """The oldest that is NEW in a chat that nothing is PROCESSING in."""
        busy = {row.chat for row in rows.values() if row.status == "PROCESSING"}
        free = [key for key, row in rows.items() if row.status == "NEW" and row.chat not in busy]
        return min(free, default=None)

    def processing(self, rows: dict[int, Row]) -> list[int]:
        """Those in work."""
        return [key for key, row in rows.items() if row.status == "PROCESSING"]


class Crashes(RuleBasedStateMachine):
    """Inbox and outbox, with june killed between any two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="june-store-"))
        self.clock = Clock()
        self.model = Model()
        self.known: set[tuple[str, int]] = set()
        self.lives = 0
        self.open()

    def open(self) -> None:
        """Open the newest copy of the file."""
        self.stack = AsyncExitStack()
        path = self.folder / str(self.lives) / "june.db"
        path.parent.mkdir(exist_ok=True)
        self.store = self.runner.run(self.stack.enter_async_context(open_store(path, clock=self.clock)))

    @rule(
        batch=st.lists(st.tuples(st.sampled_from(CHATS), st.integers(0, 20)), max_size=4),
    )
    def receives(self, batch: list[tuple[str, int]]) -> None:
        """Known messages among new ones."""
        new = self.runner.run(receive(self.store, *(inbound(number, chat) for chat, number in batch)))
        fresh = [one for one in dict.fromkeys(batch) if one not in self.known]
        assert [(row.message.chat, int(row.message.message_id)) for row in new] == fresh
        self.known |= set(fresh)
        self.model.inbox |= {row.id: Row(row.message.chat) for row in new}

    @rule()
    def claims(self) -> None:
        """One message, if one is free."""
        received = self.runner.run(self.store.inbox.claim(exclude_chats=(), lease_s=1))
        expected = self.model.next(self.model.inbox)
        assert (received.id if received else None) == expected
        if expected is not None and received is not None:
            row = self.model.inbox[expected]
            row.status, row.attempts = "PROCESSING", row.attempts + 1
            assert (received.message.chat, received.attempts) == (row.chat, row.attempts)

    @rule(data=st.data(), replies=st.integers(0, 2), status=st.sampled_from(["RESPONDED", "ERROR"]))
    def finishes(self, data: st.DataObject, replies: int, status: Literal["RESPONDED", "ERROR"]) -> None:
        """Any message, also one that is done or was given back: a turn that was thought dead."""
        key = data.draw(st.sampled_from([*self.model.processing(self.model.inbox), *self.model.inbox, 10**6]))
        row = self.model.inbox.get(key, Row(ANNA, status="none"))
        before = self.outbox_ids()
        is_done = self.runner.run(
            self.store.inbox.finish(
                key, [reply(str(n), row.chat) for n in range(replies)], outcome="answered", status=status
            )
        )
        assert is_done == (row.status == "PROCESSING")
        added = self.outbox_ids() - before
        assert len(added) == (replies if is_done else 0)
        if is_done:
            row.status = status
            self.model.outbox |= {new: Row(row.chat, answers=key) for new in sorted(added)}

    @precondition(lambda self: self.model.processing(self.model.inbox))
    @rule(data=st.data())
    def releases(self, data: st.DataObject) -> None:
        """A turn is given back."""
        key = data.draw(st.sampled_from(self.model.processing(self.model.inbox)))
        self.runner.run(self.store.inbox.release(key))
        row = self.model.inbox[key]
        row.status, row.attempts = "NEW", row.attempts - 1

    @rule(chat=st.sampled_from(CHATS), count=st.integers(1, 3))
    def enqueues(self, chat: str, count: int) -> None:
        """Messages that answer nothing."""
        ids = self.runner.run(self.store.outbox.enqueue([reply(chat=chat)] * count))
        assert ids == sorted(ids)
        self.model.outbox |= {new: Row(chat) for new in ids}

    @rule()
    def takes(self) -> None:
        """One message, if one is free."""
        rows = self.runner.run(take(self.store))
        expected = self.model.next(self.model.outbox)
        assert [row.id for row in rows] == ([] if expected is None else [expected])
        for queued in rows:
            row = self.model.outbox[queued.id]
            row.status, row.attempts = "PROCESSING", row.attempts + 1
            assert (queued.message.chat, queued.attempts, queued.answers) == (
                row.chat,
                row.attempts,
                row.answers,
            )

    @precondition(lambda self: self.model.processing(self.model.outbox))
    @rule(data=st.data(), ends=st.sampled_from(["SENT", "ERROR", "NEW"]))
    def sends(self, data: st.DataObject, ends: str) -> None:
        """A message was sent, given up or postponed."""
        key = data.draw(st.sampled_from(self.model.processing(self.model.outbox)))
        if ends == "SENT":
            self.runner.run(self.store.outbox.mark_sent([key]))
        elif ends == "ERROR":
            self.runner.run(self.store.outbox.give_up([key], error="403"))
        else:
            self.runner.run(self.store.outbox.postpone([key], due_at_s=self.clock.now_s, error="502"))
        self.model.outbox[key].status = ends

    @rule()
    def crashes(self) -> None:
        """Go on with what is on the disk at this moment, as after kill -9."""
        old = self.folder / str(self.lives)
        self.lives += 1
        new = self.folder / str(self.lives)
        new.mkdir()
        for name in ("june.db", "june.db-wal"):
            shutil.copyfile(old / name, new / name)
        self.runner.run(self.stack.aclose())
        self.open()
        before = self.outbox_ids()
        interrupted = self.model.processing(self.model.inbox)
        recovered = self.runner.run(self.store.upkeep.recover(max_attempts=MAX_ATTEMPTS, explain=explain))
        assert recovered == len(interrupted)
        for key in interrupted:
            row = self.model.inbox[key]
            row.status = "ERROR" if row.attempts >= MAX_ATTEMPTS else "NEW"
        for key in self.model.processing(self.model.outbox):
            self.model.outbox[key].status = "NEW"
        given_up = [key for key in sorted(interrupted) if self.model.inbox[key].status == "ERROR"]
        added = sorted(self.outbox_ids() - before)
        self.model.outbox |= {
            new: Row(self.model.inbox[key].chat, answers=key)
            for new, key in zip(added, given_up, strict=True)
        }

    @invariant()
    def is_as_the_model_says(self) -> None:
        """Status, attempts and question of every message."""
        entries = self.runner.run(self.store.history.entries(limit=10**6))
        found = {entry.id: Row(entry.chat, entry.status, entry.attempts, entry.answers) for entry in entries}
        assert found == self.model.inbox | self.model.outbox

    def outbox_ids(self) -> set[int]:
        """All of them."""
        entries = self.runner.run(self.store.history.entries(limit=10**6))
        return {entry.id for entry in entries if entry.direction == "out"}

    def teardown(self) -> None:
        """Close the last copy."""
        self.runner.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)


TestCrashes = Crashes.TestCase
TestCrashes.settings = hypothesis_settings(max_examples=30, stateful_step_count=30, deadline=None)
