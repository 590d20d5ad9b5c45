"""Inbox and outbox under kill -9: a program that is killed, and a model with a crash rule."""

import asyncio
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from june.messages import Delivered
from june.sections import PROJECT_ROOT
from june.store import open_store
from tests.stored import ANNA, BERT, Clock, claim, explain, inbound, receive, reply, take

WORKER = """
import asyncio, itertools, sys
from pathlib import Path
from june.messages import Inbound, Outbound
from june.store import Placed, open_store

def place(message, role, ties):
    return Placed(message, "assistant", None, "june")

async def main():
    prefix = sys.argv[2]
    async with open_store(Path(sys.argv[1])) as store:
        recovered = await store.upkeep.recover(max_attempts=1000, explain=lambda received: None)
        print("ready", recovered, flush=True)
        for number in itertools.count():
            chat = f"telegram:{number % 5}"
            name = f"{prefix}-{number}"
            message = Inbound("telegram", name, chat, chat, "A", "text", "x" * (number % 3000))
            cursor = ("telegram", name)
            for new in await store.inbox.receive([(message, "owner")], place=place, cursor=cursor):
                print("received", new.id, name, flush=True)
            claimed = await store.inbox.claim(exclude_chats=(), lease_s=60)
            if claimed is not None and number % 7:
                reply = Outbound(claimed.message.chat, "text", str(claimed.id))
                await store.inbox.finish(claimed.id, [reply], outcome="answered")
                print("finished", claimed.id, "-", flush=True)
            elif claimed is not None:
                await store.inbox.release(claimed.id)
            for due in await store.outbox.take_due(exclude_chats=(), group_window_s=0):
                await store.outbox.mark_sent([due.id])
                print("sent", due.id, due.message.text, flush=True)

asyncio.run(main())
"""


def live_and_be_killed(path: Path, name: str, after_lines: int, after_s: float) -> list[list[str]]:
    """Run a program that works on the file, kill it, and return the lines that it printed.

    It is killed `after_s` after it has printed `after_lines` lines, wherever it is then.
    """
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), name], stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        lines = [process.stdout.readline() for _ in range(after_lines)]
        killer = threading.Timer(after_s, process.kill)
        killer.start()
        lines += process.stdout.read().splitlines(keepends=True)
        killer.join()
    assert process.returncode == -signal.SIGKILL
    return [line.split() for line in lines if line.endswith("\n")]  # the last line may be cut off


async def test_nothing_acknowledged_is_lost_by_kill_9(path: Path) -> None:
    moment = random.Random(3)  # noqa: S311 - when to kill, not a secret
    events: dict[str, dict[int, str]] = {"received": {}, "finished": {}, "sent": {}}
    for life in range(10):
        lines = live_and_be_killed(path, str(life), moment.randint(10, 60), moment.uniform(0, 0.05))
        for event, message_id, detail in lines:
            events[event][int(message_id)] = detail
        async with open_store(path, read_only=True) as reader:  # with the files that the crash left
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
    # Exactly the messages that are done have a reply: both were one transaction.
    assert sorted(replies) == sorted(entry.id for entry in inbox if entry.status == "RESPONDED")
    # The last message and the cursor were one transaction, too.
    assert max(inbox, key=lambda entry: entry.id).platform_message_id == last_cursor


async def test_a_message_that_a_kill_interrupts_is_tried_again_until_its_attempts_are_used_up(
    path: Path, clock: Clock
) -> None:
    for attempt in (1, 2):
        async with open_store(path, clock=clock) as store:
            await receive(store, inbound(1), inbound(2, BERT))
            assert await store.upkeep.recover(max_attempts=2, explain=explain) == attempt - 1
            received = await claim(store)
            assert (received.message.chat, received.attempts) == (ANNA, attempt)
    async with open_store(path, clock=clock) as store:
        assert await store.upkeep.recover(max_attempts=2, explain=explain) == 1
        assert await store.upkeep.recover(max_attempts=2, explain=explain) == 0
        spent = (await store.history.entries(chat=ANNA))[0]
        assert (spent.status, spent.error, spent.outcome) == ("ERROR", "attempts_spent", "failed")
        (explained,) = await take(store)
        assert (explained.message, explained.answers) == (reply("I gave up"), spent.id)
        assert (await claim(store)).message.chat == BERT


async def test_a_message_that_was_being_sent_is_sent_after_a_crash(path: Path) -> None:
    async with open_store(path) as store:
        (message_id,) = await store.outbox.add([reply()])
        await take(store)
        await store.outbox.note_delivered(message_id, Delivered("1", "text", "H"))
    async with open_store(path) as store:
        assert await take(store) == ()
        await store.upkeep.recover(max_attempts=5, explain=explain)
        (due,) = await take(store)
        assert (due.attempts, due.delivered) == (2, (Delivered("1", "text", "H"),))


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
    """The simplest description of the inbox and the outbox."""

    inbox: dict[int, Row] = field(default_factory=dict)
    outbox: dict[int, Row] = field(default_factory=dict)

    def next(self, rows: dict[int, Row]) -> int | None:
        """Return the oldest NEW message of all chats in which nothing is PROCESSING."""
        busy = {row.chat for row in rows.values() if row.status == "PROCESSING"}
        free = [key for key, row in rows.items() if row.status == "NEW" and row.chat not in busy]
        return min(free, default=None)

    def processing(self, rows: dict[int, Row]) -> list[int]:
        """Return the messages that are PROCESSING."""
        return [key for key, row in rows.items() if row.status == "PROCESSING"]


class Crashes(RuleBasedStateMachine):
    """june uses inbox and outbox, and may be killed between any two calls."""

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
        """Receive a batch, some of whose messages may be known."""
        new = self.runner.run(receive(self.store, *(inbound(number, chat) for chat, number in batch)))
        fresh = [one for one in dict.fromkeys(batch) if one not in self.known]
        assert [(row.message.chat, int(row.message.message_id)) for row in new] == fresh
        self.known |= set(fresh)
        self.model.inbox |= {row.id: Row(row.message.chat) for row in new}

    @rule()
    def claims(self) -> None:
        """June claims a message, if one is free."""
        received = self.runner.run(self.store.inbox.claim(exclude_chats=(), lease_s=1))
        expected = self.model.next(self.model.inbox)
        assert (received.id if received else None) == expected
        if expected is not None and received is not None:
            row = self.model.inbox[expected]
            row.status, row.attempts = "PROCESSING", row.attempts + 1
            assert (received.message.chat, received.attempts) == (row.chat, row.attempts)

    @rule(data=st.data(), replies=st.integers(0, 2), status=st.sampled_from(["RESPONDED", "ERROR"]))
    def finishes(self, data: st.DataObject, replies: int, status: Literal["RESPONDED", "ERROR"]) -> None:
        """End a turn, sometimes one whose message is already done or released."""
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
        """Release the message of a turn."""
        key = data.draw(st.sampled_from(self.model.processing(self.model.inbox)))
        self.runner.run(self.store.inbox.release(key))
        row = self.model.inbox[key]
        row.status, row.attempts = "NEW", row.attempts - 1

    @rule(chat=st.sampled_from(CHATS), count=st.integers(1, 3))
    def enqueues(self, chat: str, count: int) -> None:
        """June enqueues messages that answer nothing."""
        ids = self.runner.run(self.store.outbox.add([reply(chat=chat)] * count))
        assert ids == sorted(ids)
        self.model.outbox |= {new: Row(chat) for new in ids}

    @rule()
    def takes(self) -> None:
        """June takes a message to send, if one is free."""
        rows = self.runner.run(take(self.store))
        expected = self.model.next(self.model.outbox)
        assert [row.id for row in rows] == ([] if expected is None else [expected])
        for due in rows:
            row = self.model.outbox[due.id]
            row.status, row.attempts = "PROCESSING", row.attempts + 1
            assert (due.message.chat, due.attempts, due.answers) == (
                row.chat,
                row.attempts,
                row.answers,
            )

    @precondition(lambda self: self.model.processing(self.model.outbox))
    @rule(data=st.data(), ends=st.sampled_from(["SENT", "ERROR", "NEW"]))
    def sends(self, data: st.DataObject, ends: str) -> None:
        """June marks a message as sent, gives it up or postpones it."""
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
        """Go on with what is on the disk now, as after kill -9."""
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
        """Compare the status, attempts and question of every message."""
        entries = self.runner.run(self.store.history.entries(limit=10**6))
        found = {entry.id: Row(entry.chat, entry.status, entry.attempts, entry.answers) for entry in entries}
        assert found == self.model.inbox | self.model.outbox

    def outbox_ids(self) -> set[int]:
        """Return the ids of all messages in the outbox."""
        entries = self.runner.run(self.store.history.entries(limit=10**6))
        return {entry.id for entry in entries if entry.direction == "out"}

    def teardown(self) -> None:
        """Close the last copy."""
        self.runner.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)


TestCrashes = Crashes.TestCase

TestCrashes.settings = hypothesis_settings(max_examples=30, stateful_step_count=30, deadline=None)
