"""The queue against kill -9: a model of it with a crash rule, and june itself under load."""

import asyncio
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import ClientError
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from june.errors import QueueError
from june.messages import Delivered, Outbound
from june.store import Filter, Letter, Message, Once, open_store
from tests.api_client import Client, read_events, talking_to
from tests.program import running, write_settings
from tests.stored import ANNA, BERT, Clock, explain, inbound, place_in_queue
from tests.telegram_server import ALICE, Call, TelegramServer

# The model

MAX_ATTEMPTS = 2
LEASE_S = 10.0
QUESTION_S = 15.0
USERS = (ANNA, BERT)


@dataclass
class Row:
    """What the model knows of one message."""

    user: str
    status: str = "NEW"
    attempts: int = 0
    lease_until_s: float = 0.0
    expires_at_s: float = 0.0
    """When the question expires; 0: it is not a question."""
    answer: int | None = None


@dataclass
class Model:
    """The simplest description of the queue."""

    queue: dict[int, Row] = field(default_factory=dict)
    answers: dict[int, Row] = field(default_factory=dict)
    """Messages that answered questions."""
    outbox: dict[int, Row] = field(default_factory=dict)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Claims by their idempotency key: the message, and its attempts."""


def tell(message: Message) -> Outbound:
    """Return what the owner is told about a message that was given up."""
    return Outbound(ANNA, "text", f"gave up {message.id}")


class Queues(RuleBasedStateMachine):
    """Programs use the queue, and june may be killed between any two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="june-queue-"))
        self.clock = Clock()
        self.model = Model()
        self.numbers = iter(range(1, 10**6))
        self.lives = 0
        self.open()

    def open(self) -> None:
        """Open the newest copy of the file."""
        self.stack = AsyncExitStack()
        path = self.folder / str(self.lives) / "june.db"
        path.parent.mkdir(exist_ok=True)
        self.store = self.runner.run(self.stack.enter_async_context(open_store(path, clock=self.clock)))

    def queued(self, *statuses: str) -> list[int]:
        """Return the messages of the queue with one of these statuses."""
        return [key for key, row in self.model.queue.items() if row.status in statuses]

    def outbox_ids(self) -> set[int]:
        """Return the ids of all messages in the outbox."""
        entries = self.runner.run(self.store.history.entries(limit=10**6))
        return {entry.id for entry in entries if entry.direction == "out"}

    def note_sent(self, before: set[int], user: str) -> None:
        """Add what is new in the outbox to the model."""
        self.model.outbox |= {new: Row(user) for new in sorted(self.outbox_ids() - before)}

    @rule(user=st.sampled_from(USERS), replies=st.booleans(), data=st.data())
    def receives(self, user: str, replies: bool, data: st.DataObject) -> None:
        """Receive a message. It may answer a question: the one it replies to, or the one asked last."""
        asked = [
            key
            for key, row in self.model.outbox.items()
            if row.user == user
            and row.expires_at_s > self.clock.now_s
            and row.answer is None
            and row.status == "SENT"
        ]
        question = data.draw(st.sampled_from(asked)) if asked and replies else max(asked, default=None)
        reply_to = f"p{question}" if question is not None and replies else ""
        message = inbound(next(self.numbers), user, "Hello", reply_to=reply_to)
        (received,) = self.runner.run(self.store.inbox.receive([(message, "owner")], place=place_in_queue))
        if question is None:
            self.model.queue[received.id] = Row(user)
        else:
            self.model.answers[received.id] = Row(user, "RESPONDED")
            row = self.model.outbox[question]
            row.answer, row.status = received.id, "RESPONDED"

    @rule(key=st.sampled_from(["", "", "a", "b"]), user=st.sampled_from([None, *USERS]))
    def claims(self, key: str, user: str | None) -> None:
        """Claim the oldest NEW message. A used key returns the first claim while that lasts."""
        key = key and f"{key} {user}"
        earlier = self.model.keys.get(key)
        claim = self.store.queue.claim(
            Filter(user=user), lease_s=LEASE_S, once=Once(key, key) if key else None
        )
        if earlier is not None:
            row = self.model.queue[earlier[0]]
            if (row.status, row.attempts) == ("PROCESSING", earlier[1]):
                again = self.runner.run(claim)
                assert again is not None
                assert again.id == earlier[0]
            else:
                with pytest.raises(QueueError):
                    self.runner.run(claim)
            return
        claimed = self.runner.run(claim)
        new = [each for each in self.queued("NEW") if user in (None, self.model.queue[each].user)]
        assert (claimed.id if claimed else None) == min(new, default=None)
        if claimed is not None:
            row = self.model.queue[claimed.id]
            row.status, row.attempts = "PROCESSING", row.attempts + 1
            row.lease_until_s = self.clock.now_s + LEASE_S
            if key:
                self.model.keys[key] = (claimed.id, row.attempts)

    @precondition(lambda self: self.model.queue)
    @rule(data=st.data(), action=st.sampled_from(["extend", "respond", "fail", "retry"]), stale=st.booleans())
    def ends(self, data: st.DataObject, action: str, stale: bool) -> None:
        """End or extend a claim, sometimes one that never existed or that is over."""
        key = data.draw(st.sampled_from(list(self.model.queue)))
        row, before = self.model.queue[key], self.outbox_ids()
        attempts = max(row.attempts - 1, 1) if stale else None
        may = row.status == "PROCESSING" and attempts in (None, row.attempts)
        if action == "extend":
            call: Any = self.store.queue.extend(key, lease_s=2 * LEASE_S, attempts=attempts)
        elif action == "respond":
            call = self.store.queue.respond(key, "Hi", attempts=attempts)
        else:
            call = self.store.queue.fail(
                key,
                error="",
                retry=action == "retry",
                max_attempts=MAX_ATTEMPTS,
                explain=tell,
                attempts=attempts,
            )
        try:
            self.runner.run(call)
        except QueueError:
            assert not may
            return
        assert may
        if action == "extend":
            row.lease_until_s = self.clock.now_s + 2 * LEASE_S
        elif action == "respond":
            row.status = "RESPONDED"
            self.note_sent(before, row.user)
        else:
            is_spent = action == "fail" or row.attempts >= MAX_ATTEMPTS
            row.status = "ERROR" if is_spent else "NEW"
            self.note_sent(before, ANNA)

    @precondition(lambda self: self.model.queue)
    @rule(data=st.data(), status=st.sampled_from(["NEW", "PROCESSING", "RESPONDED", "ERROR", "SENT"]))
    def sets(
        self,
        data: st.DataObject,
        status: Literal["NEW", "PROCESSING", "RESPONDED", "ERROR", "SENT"],
    ) -> None:
        """Change a status by compare-and-set."""
        key = data.draw(st.sampled_from(list(self.model.queue)))
        row = self.model.queue[key]
        allowed = {
            "NEW": ("PROCESSING", "RESPONDED", "ERROR"),
            "PROCESSING": ("NEW", "RESPONDED", "ERROR"),
            "ERROR": ("NEW",),
        }
        try:
            self.runner.run(
                self.store.queue.change_status(key, status, if_status=row.status, lease_s=LEASE_S)  # type: ignore[arg-type]
            )
        except QueueError:
            assert status not in allowed.get(row.status, ())
            return
        assert status in allowed[row.status]
        if status == "PROCESSING":
            row.attempts += 1
            row.lease_until_s = self.clock.now_s + LEASE_S
        if row.status == "ERROR":
            row.attempts = 0
        row.status = status

    @rule(user=st.sampled_from(USERS), is_question=st.booleans())
    def sends(self, user: str, is_question: bool) -> None:
        """Send a message or a question of a program."""
        letter = Letter(user, user, "Shall I?", expires_in_s=QUESTION_S if is_question else None)
        sent = self.runner.run(self.store.queue.send(letter))
        expires_at_s = self.clock.now_s + QUESTION_S if is_question else 0.0
        self.model.outbox[sent.id] = Row(user, expires_at_s=expires_at_s)

    @rule()
    def delivers(self) -> None:
        """Everything that is due is sent."""
        while rows := self.runner.run(self.store.outbox.take_due(exclude_chats=(), group_window_s=0)):
            for row in rows:
                self.runner.run(self.store.outbox.note_delivered(row.id, Delivered(f"p{row.id}", "text")))
                self.runner.run(self.store.outbox.mark_sent([row.id]))
                self.model.outbox[row.id].status = "SENT"

    @rule(seconds=st.sampled_from([1.0, 6.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        """Time passes, and leases and questions run out."""
        self.clock.now_s += seconds
        before = self.outbox_ids()
        self.runner.run(self.store.queue.expire(max_attempts=MAX_ATTEMPTS, explain=tell))
        assert not self.runner.run(self.store.queue.has_run_out())
        for row in self.model.queue.values():
            if row.status == "PROCESSING" and row.lease_until_s <= self.clock.now_s:
                row.status = "ERROR" if row.attempts >= MAX_ATTEMPTS else "NEW"
        for row in self.model.outbox.values():
            is_over = row.expires_at_s and row.expires_at_s <= self.clock.now_s
            if is_over and row.status in ("NEW", "SENT"):
                row.status = "TIMEOUT"
        self.note_sent(before, ANNA)

    @rule()
    def crashes(self) -> None:
        """Go on with what is on the disk now, as after kill -9; programs keep their claims."""
        old = self.folder / str(self.lives)
        self.lives += 1
        new = self.folder / str(self.lives)
        new.mkdir()
        for name in ("june.db", "june.db-wal"):
            shutil.copyfile(old / name, new / name)
        self.runner.run(self.stack.aclose())
        self.open()
        assert self.runner.run(self.store.upkeep.recover(max_attempts=1, explain=explain)) == 0

    @invariant()
    def is_as_the_model_says(self) -> None:
        """Compare the status, attempts, lease and answer of every message."""
        entries, _ = self.runner.run(self.store.feed.messages(Filter(), limit=10**6))
        known = self.model.queue | self.model.answers | self.model.outbox
        assert {entry.id for entry in entries} == known.keys()
        for entry in entries:
            row = known[entry.id]
            assert (entry.status, entry.user) == (row.status, row.user if entry.user else "")
            assert entry.answered_by == row.answer
            if entry.id in self.model.queue:
                assert entry.attempts == row.attempts
                lease = row.lease_until_s if row.status == "PROCESSING" else None
                assert entry.lease_until_s == lease

    def teardown(self) -> None:
        """Close the last copy."""
        self.runner.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)


TestQueues = Queues.TestCase
TestQueues.settings = hypothesis_settings(max_examples=20, stateful_step_count=30, deadline=None)


# june under load


@dataclass
class Load:
    """What programs do with june, and what june has acknowledged."""

    server: TelegramServer
    numbers: Any = field(default_factory=lambda: iter(range(10**6)))
    pushed: list[str] = field(default_factory=list)
    posted: dict[int, str] = field(default_factory=dict)
    responded: dict[int, str] = field(default_factory=dict)

    async def run(self, client: Client) -> None:
        """Write to june, and send and answer through it, until it is killed."""
        ends = await asyncio.gather(self._post(client), self._answer(client), return_exceptions=True)
        assert all(end is None or isinstance(end, ClientError) for end in ends), ends

    async def _post(self, client: Client) -> None:
        for _ in range(60):
            text = f"sent {next(self.numbers)}"
            self.pushed.append(f"asked {next(self.numbers)}")
            self.server.push(self.pushed[-1])
            sent = await client.post("/v1/messages", {"to": "owner", "text": text})
            assert sent.status == 202
            self.posted[sent.body["id"]] = text

    async def _answer(self, client: Client) -> None:
        while True:
            claimed = await client.post("/v1/messages/claim", {"lease_s": 1})
            if claimed.status == 204:
                await read_events(client, 1)
                continue
            text = f"answer {next(self.numbers)}"
            responded = await client.post(f"/v1/messages/{claimed.body['id']}/respond", {"text": text})
            if responded.status == 200:
                self.responded[claimed.body["id"]] = text


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
async def test_nothing_that_was_acknowledged_is_lost_by_kill_9(tmp_path: Path, kills: int) -> None:
    moment = random.Random(11)  # noqa: S311 - no secret
    async with TelegramServer() as server:
        file = write_settings(
            tmp_path,
            telegram={"token": server.token, "api_base": server.base_url},
            access={"owners": [f"telegram:{ALICE}"]},
            routes={"owner": "queue"},
            queue={"max_attempts": 100},
            store={"path": str(tmp_path / "june.db")},
        )
        load = Load(server)
        for _ in range(kills):
            async with running(file) as june:
                port = int((await june.logged("api.opened", timeout_s=180))["port"])
                async with talking_to(port) as client:
                    working = asyncio.create_task(load.run(client))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(moment.uniform(0.2, 2.0)):
                            await asyncio.shield(working)
                    await june.kill()
                    await working
        assert min(len(load.posted), len(load.responded)) > kills
        async with running(file) as june:
            port = int((await june.logged("api.opened", timeout_s=180))["port"])
            for text in (*load.posted.values(), *load.responded.values()):
                await server.wait_for(partial(shows, text), timeout_s=60)
            async with talking_to(port) as client:
                stored = await all_messages(client)
            assert await june.terminate() == 0
    texts = Counter(message["text"] for message in stored.values() if message["direction"] == "in")
    assert texts == Counter(load.pushed)  # Telegram keeps what june has not acknowledged
    assert {key: stored[key]["text"] for key in load.posted} == load.posted
    assert {stored[key]["status"] for key in load.responded} == {"RESPONDED"}
    answers = {message["reply_to"]: message["text"] for message in stored.values() if message["reply_to"]}
    assert answers.items() >= load.responded.items()
    with sqlite3.connect(tmp_path / "june.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def shows(text: str, call: Call) -> bool:
    """Return whether a call shows exactly this text."""
    return call.ok and call.method == "sendMessage" and call.text == text


async def all_messages(client: Client) -> dict[int, dict[str, Any]]:
    """Read all messages page by page; return them by id."""
    found: dict[int, dict[str, Any]] = {}
    cursor = ""
    while True:
        page = (await client.get(f"/v1/messages?limit=200{cursor}")).body
        found |= {message["id"]: message for message in page["messages"]}
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"
