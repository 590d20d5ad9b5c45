"""The outbox, sent: parts, retries, refusals, groups, edits, many chats, and stopping in the middle."""

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from structlog.testing import capture_logs
from structlog.typing import EventDict

from june.chat.delivery import FINISH_S, MAX_CHATS, Delivery
from june.chat.posting import BACK_OFF
from june.chat.telegram.adapter import Telegram
from june.chat.telegram.formatting import telegram_parts, visible_telegram
from june.chat.telegram.settings import TelegramSettings
from june.chat.wording import GIVEN_UP, VOICE_REFUSED, with_echo
from june.errors import DeliveryError, Refusal
from june.messages import Outbound, Platform, Purpose, Voice
from june.sections import DeliverySettings
from june.store import DueMessage, Store, open_store
from tests.fakes import FakeAdapter
from tests.telegram_server import TelegramServer

CHAT = "telegram:1"
PATIENCE_S = 10
"""A test gives up after this long, so that a failing test ends."""


def refusal(reason: Refusal, retry_after_s: float | None = None) -> DeliveryError:
    return DeliveryError(reason, "no", retry_after_s=retry_after_s)


def text(words: str, chat: str = CHAT, **more: str | int | bool) -> Outbound:
    return Outbound(chat, "text", words, **more)  # type: ignore[arg-type]  # a test's own keywords


def voice(words: str, *, echo: str = "", text_is_sent: bool = False) -> Outbound:
    note = Voice(f"({words})".encode(), 1.0, bytes(3))
    return Outbound(CHAT, "voice", words, note, reply_to="7", echo=echo, text_is_sent=text_is_sent)


@dataclass
class Desk:
    """A store, an app and the delivery between them; time passes when the test says so."""

    store: Store
    path: Path
    now_s: float = 1_000.0
    app: FakeAdapter = field(default_factory=FakeAdapter)
    settings: DeliverySettings = field(default_factory=lambda: DeliverySettings(max_attempts=3))

    def clock(self) -> float:
        """Seconds since 1970."""
        return self.now_s

    def delivery(self) -> Delivery:
        """Return a delivery that is not running."""
        return Delivery(self.store, {self.app.platform: self.app}, self.settings, clock=self.clock)

    @asynccontextmanager
    async def delivering(self) -> AsyncIterator[Delivery]:
        """Run a delivery during the block."""
        delivery = self.delivery()
        running = asyncio.create_task(delivery.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield delivery
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def put(self, *messages: Outbound) -> list[int]:
        """Enqueue messages."""
        return await self.store.outbox.add(messages)

    async def send_due(self) -> None:
        """Send what is due now, and nothing that is due later."""
        async with self.delivering() as delivery:
            await delivery.drain(PATIENCE_S)

    async def due_s(self) -> float | None:
        """In how many seconds something is due."""
        return await self.store.outbox.next_due_s(exclude_chats=(), group_window_s=0)

    async def send_all(self) -> None:
        """Send until nothing waits, however long that takes."""
        async with self.delivering() as delivery:
            await delivery.drain(PATIENCE_S)
            while (pause_s := await self.due_s()) is not None:
                self.now_s += pause_s
                await delivery.drain(PATIENCE_S)

    async def statuses(self) -> list[str]:
        """Of all messages, in order."""
        return [entry.status for entry in await self.store.history.entries()]

    async def row(self, row_id: int) -> DueMessage:
        """One message."""
        row = await self.store.outbox.message(row_id)
        assert row is not None
        return row


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "june.db") as desk:
        yield desk


@asynccontextmanager
async def open_desk(path: Path) -> AsyncIterator[Desk]:
    times_s: list[Desk] = []
    async with open_store(path, clock=lambda: times_s[0].now_s) as store:
        times_s.append(Desk(store, path))
        yield times_s[0]


async def some_steps() -> None:
    """Let what can go on without a thread or a timer go on."""
    for _ in range(10):
        await asyncio.sleep(0)


def recover_with(received: object) -> Outbound:
    raise AssertionError(received)


async def restart(desk: Desk) -> None:
    await desk.store.upkeep.recover(max_attempts=9, explain=recover_with)


A_LONG_TEXT = "first " * 6 + "***" + " second" * 5 + " end"
PARTS = FakeAdapter().parts(A_LONG_TEXT)


async def test_a_long_text_arrives_in_its_parts_and_only_the_first_is_a_reply(desk: Desk) -> None:
    [row_id] = await desk.put(text(A_LONG_TEXT, reply_to="7"))
    await desk.send_due()
    assert len(PARTS) == 2
    assert desk.app.shown(CHAT) == PARTS
    assert list(desk.app.replies.values()) == ["7", ""]
    assert (await desk.row(row_id)).delivered == tuple(desk.app.chats[CHAT].values())
    assert await desk.statuses() == ["SENT"]


async def test_what_was_heard_stands_above_the_answer(desk: Desk) -> None:
    desk.app.max_characters = 400
    await desk.put(text("No.", echo="is 2 *less*\nthan 1?"))
    await desk.send_due()
    assert desk.app.shown(CHAT) == ["> 🎤 is 2 \\*less\\* than 1\\?\n\nNo."]


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])))
def test_what_was_heard_is_shown_literally(echo: str) -> None:
    heard = " ".join(echo.split())
    parts = telegram_parts(with_echo("A *b* c.", echo), limit=10**6)
    assert [visible_telegram(part) for part in parts] == [f"🎤 {heard}\n\nA b c." if heard else "A b c."]


async def test_a_text_without_anything_to_see_counts_as_sent(desk: Desk) -> None:
    await desk.put(text(" \n "))
    with capture_logs() as logs:
        await desk.send_due()
    assert desk.app.requests == []
    assert await desk.statuses() == ["SENT"]
    assert [entry["parts"] for entry in logs if entry["event"] == "reply.sent"] == [0]


async def test_a_retry_goes_on_after_the_parts_that_arrived(desk: Desk) -> None:
    await desk.put(text(A_LONG_TEXT))
    desk.app.failures.extend([None, refusal("try_again")])
    await desk.send_due()
    assert desk.app.shown(CHAT) == PARTS[:1]
    await desk.send_all()
    assert desk.app.shown(CHAT) == PARTS
    assert len(desk.app.requests) == 3


@pytest.mark.parametrize(
    ("attempts", "pause_s"), [(1, 1), (2, 2), (3, 4), (6, 32), (9, 256), (10, 300), (5000, 300)]
)
def test_the_pauses_double_up_to_five_minutes(attempts: int, pause_s: float) -> None:
    pauses_s = [BACK_OFF.pause_s(attempts) for _ in range(50)]
    assert min(pauses_s) >= pause_s
    assert max(pauses_s) <= 1.25 * pause_s
    assert len(set(pauses_s)) > 40


async def test_a_chat_that_moved_is_followed_with_all_that_is_due(desk: Desk) -> None:
    await desk.put(text("one"), text("two"), text("elsewhere", "telegram:2"))
    desk.app.failures.append(DeliveryError("moved", "no", moved_to="telegram:-100"))
    await desk.send_due()
    assert await desk.statuses() == ["SENT"] * 3
    assert [desk.app.shown(chat) for chat in ("telegram:-100", CHAT)] == [["one", "two"], []]


async def test_a_chat_that_moves_for_ever_is_given_up(desk: Desk) -> None:
    await desk.put(text("hello"))
    desk.app.refuses["send_text"] = DeliveryError("moved", "no", moved_to=CHAT)
    await desk.send_all()
    assert (await desk.statuses())[0] == "ERROR"
    assert desk.app.requests.count(("send_text", CHAT)) <= 2 * desk.settings.max_attempts


async def test_a_reply_to_a_group_that_became_a_supergroup_arrives_in_the_supergroup(desk: Desk) -> None:
    async with TelegramServer() as server:
        server.upgrade(-5, -1005)
        settings = TelegramSettings(token=SecretStr(server.token), api_base=server.base_url)
        app = Telegram(settings, DeliverySettings())
        await desk.put(Outbound("telegram:-5", "text", "Hello", reply_to="7"))
        delivery = Delivery(desk.store, {"telegram": app}, desk.settings, clock=desk.clock)
        running = asyncio.create_task(delivery.run())
        await delivery.drain(PATIENCE_S)
        running.cancel()
        await asyncio.wait([running])
        await app.close()
    assert [(call.chat, call.text) for call in server.sent("sendMessage")] == [(-1005, "Hello")]


async def test_a_pause_is_as_long_as_the_app_asks_for(desk: Desk) -> None:
    await desk.put(text("hello"))
    desk.app.failures.extend([refusal("try_again"), refusal("try_again", 500)])
    await desk.send_due()
    pause_s = await desk.due_s()
    assert pause_s is not None
    assert 1 <= pause_s <= 1.25
    desk.now_s += pause_s
    await desk.send_due()
    pause_s = await desk.due_s()
    assert pause_s is not None
    assert 500 <= pause_s <= 500.5


async def test_what_was_postponed_is_sent_when_it_is_due(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.put(text("hello"))
    desk.app.failures.append(refusal("try_again"))
    async with desk.delivering() as delivery:
        await delivery.drain(PATIENCE_S)
        assert desk.app.shown(CHAT) == []
        desk.now_s += 2
        pass_time(monkeypatch, 2)
        await desk.app.until(lambda: desk.app.shown(CHAT) == ["hello"])


def pass_time(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the event loop believe that time has passed."""
    loop = asyncio.get_running_loop()
    now_s = loop.time
    monkeypatch.setattr(loop, "time", lambda: now_s() + seconds)


async def test_what_waits_for_another_attempt_holds_back_its_own_chat_only(desk: Desk) -> None:
    await desk.put(text("first"), text("second"))
    desk.app.failures.append(refusal("try_again"))
    await desk.send_due()
    await desk.put(text("elsewhere", "telegram:2"))
    await desk.send_due()
    assert (desk.app.shown(CHAT), desk.app.shown("telegram:2")) == ([], ["elsewhere"])
    await desk.send_all()
    assert desk.app.shown(CHAT) == ["first", "second"]


async def test_after_the_last_attempt_the_chat_is_told_with_a_sentence(desk: Desk) -> None:
    desk.app.max_characters = 400
    await desk.put(text("lost", reply_to="7"), text("next"))
    desk.app.failures.extend([refusal("try_again")] * desk.settings.max_attempts)
    with capture_logs() as logs:
        await desk.send_all()
    assert desk.app.shown(CHAT) == ["next", GIVEN_UP]
    assert list(desk.app.replies.values()) == ["", "7"]
    assert [entry.status for entry in await desk.store.history.entries()] == ["ERROR", "SENT", "SENT"]
    assert [entry["event"] for entry in logs].count("reply.postponed") == desk.settings.max_attempts - 1
    assert "lost" not in str(logs)


async def test_a_refusal_that_is_final_is_not_repeated(desk: Desk) -> None:
    desk.app.max_characters = 400
    await desk.put(text("lost"))
    desk.app.failures.append(refusal("refused"))
    await desk.send_all()
    assert desk.app.shown(CHAT) == [GIVEN_UP]


async def test_nothing_is_explained_to_a_chat_that_is_gone(desk: Desk) -> None:
    await desk.put(text("lost"))
    desk.app.failures.append(refusal("gone"))
    await desk.send_all()
    assert await desk.statuses() == ["ERROR"]


async def test_that_an_explanation_was_refused_is_not_explained(desk: Desk) -> None:
    await desk.put(text("lost"))
    desk.app.refuses["send_text"] = refusal("refused")
    await desk.send_all()
    assert await desk.statuses() == ["ERROR", "ERROR"]


async def test_markup_that_is_not_understood_is_sent_as_its_visible_text(desk: Desk) -> None:
    await desk.put(text("<b>1 &lt; 2</b>"))
    desk.app.failures.append(refusal("markup"))
    await desk.send_due()
    assert desk.app.shown(CHAT) == ["1 < 2"]
    assert await desk.statuses() == ["SENT"]


async def test_the_first_part_takes_the_place_of_its_preview(desk: Desk) -> None:
    preview = await desk.app.send_text(CHAT, "fir")
    await desk.put(text(A_LONG_TEXT, preview_id=preview.message_id))
    await desk.send_due()
    assert desk.app.shown(CHAT) == PARTS
    assert preview.message_id in desk.app.chats[CHAT]


@pytest.mark.parametrize("reason", ["gone", "refused", "markup"])
async def test_a_preview_that_cannot_become_the_answer_is_replaced_by_it(desk: Desk, reason: Refusal) -> None:
    preview = await desk.app.send_text(CHAT, "hel")
    await desk.put(text("hello", preview_id=preview.message_id))
    desk.app.failures.append(refusal(reason))
    await desk.send_due()
    assert desk.app.shown(CHAT) == ["hello"]
    assert preview.message_id not in desk.app.chats[CHAT]


async def test_a_voice_message_is_sent_as_a_reply(desk: Desk) -> None:
    [row_id] = await desk.put(voice("one"))
    await desk.send_due()
    assert desk.app.shown(CHAT) == ["(one)"]
    assert list(desk.app.replies.values()) == ["7"]
    assert [one.kind for one in (await desk.row(row_id)).delivered] == ["voice"]


async def test_a_voice_message_that_arrived_before_a_crash_is_not_sent_again(desk: Desk) -> None:
    await desk.put(voice("one"))
    [row] = await desk.store.outbox.take_due(exclude_chats=(), group_window_s=0)
    assert row.message.voice is not None
    await desk.store.outbox.note_delivered(row.id, await desk.app.send_voice(CHAT, row.message.voice))
    await restart(desk)
    await desk.send_due()
    assert desk.app.shown(CHAT) == ["(one)"]
    assert await desk.statuses() == ["SENT"]


@pytest.mark.parametrize("reason", ["voice_forbidden", "too_large"])
async def test_the_words_of_a_refused_voice_arrive_and_the_reason_once(desk: Desk, reason: Refusal) -> None:
    desk.app.max_characters = 400
    desk.app.refuses["send_voice"] = refusal(reason)
    await desk.put(voice("one"), voice("two"), text("three"))
    await desk.send_all()
    assert desk.app.shown(CHAT) == ["three", f"{VOICE_REFUSED[reason]}\n\none", "two"]
    assert list(desk.app.replies.values()) == ["", "7", "7"]
    assert desk.app.requests.count(("send_voice", CHAT)) == 2


async def test_a_refused_voice_whose_words_are_sent_anyway_costs_one_sentence(desk: Desk) -> None:
    desk.app.max_characters = 400
    desk.app.refuses["send_voice"] = refusal("voice_forbidden")
    await desk.put(text("one two"), voice("one", text_is_sent=True), voice("two", text_is_sent=True))
    await desk.send_all()
    assert desk.app.shown(CHAT) == ["one two", VOICE_REFUSED["voice_forbidden"]]


async def test_the_words_of_a_voice_that_never_gets_through_arrive(desk: Desk) -> None:
    desk.app.refuses["send_voice"] = refusal("try_again")
    await desk.put(voice("one", echo="two"))
    await desk.send_all()
    assert desk.app.shown(CHAT) == ["> 🎤 two\n\none"]
    assert desk.app.requests.count(("send_voice", CHAT)) == desk.settings.max_attempts


@pytest.mark.parametrize("new", ["short", A_LONG_TEXT, "x" * 200])
async def test_an_edit_replaces_what_was_sent_part_by_part(desk: Desk, new: str) -> None:
    [row_id] = await desk.put(text("a" * 100))
    await desk.send_due()
    before = list(desk.app.chats[CHAT])
    await desk.put(Outbound(CHAT, "edit", new, edits=row_id))
    desk.app.failures.extend([None, refusal("try_again")])
    await desk.send_all()
    parts = desk.app.parts(new)
    assert desk.app.shown(CHAT) == parts
    assert list(desk.app.chats[CHAT])[: len(before)] == before[: len(parts)]


async def test_an_edit_replaces_what_an_edit_before_it_added(desk: Desk) -> None:
    [row_id] = await desk.put(text("a"))
    await desk.put(*(Outbound(CHAT, "edit", words, edits=row_id) for words in ("b" * 100, "c" * 90, "d")))
    await desk.send_due()
    assert desk.app.shown(CHAT) == ["d"]


async def test_an_edit_of_what_never_arrived_is_sent(desk: Desk) -> None:
    [row_id] = await desk.put(text("a", may_group=True))
    desk.app.failures.append(refusal("refused"))
    await desk.put(Outbound(CHAT, "edit", "b", edits=row_id))
    await desk.send_due()
    assert desk.app.shown(CHAT) == ["b"]


@pytest.mark.parametrize(
    ("failure", "attempts"), [(refusal("try_again"), 3), (TimeoutError(), 3), (refusal("refused"), 1)]
)
async def test_an_edit_holds_though_a_superfluous_message_cannot_be_deleted(
    desk: Desk, failure: Exception, attempts: int
) -> None:
    [row_id] = await desk.put(text("a" * 80))
    await desk.put(Outbound(CHAT, "edit", "b", edits=row_id))
    desk.app.refuses["delete"] = failure
    await desk.send_all()
    assert await desk.statuses() == ["SENT", "SENT"]
    assert desk.app.requests.count(("delete", CHAT)) == attempts


async def test_notices_to_one_chat_go_as_one_message(desk: Desk) -> None:
    ids = await desk.put(text("one", may_group=True), text("two", may_group=True))
    async with desk.delivering() as delivery:
        await asyncio.sleep(0)
        desk.now_s += desk.settings.group_window_s
        delivery.wake()
        await desk.app.requested(1)
    assert desk.app.shown(CHAT) == ["one\n\ntwo"]
    assert [(await desk.row(row_id)).delivered for row_id in ids] == [
        tuple(desk.app.chats[CHAT].values())
    ] * 2
    assert await desk.statuses() == ["SENT", "SENT"]


async def test_notices_that_do_not_fit_in_one_message_go_one_by_one(desk: Desk) -> None:
    notices = ["1" * 30, "2" * 60, "3"]
    await desk.put(*(text(notice, may_group=True) for notice in notices))
    desk.app.failures.extend([None, None, refusal("try_again"), None, refusal("refused")])
    await desk.send_all()
    assert desk.app.shown(CHAT) == ["1" * 30, "2" * 40, "2" * 20]
    assert await desk.statuses() == ["SENT", "SENT", "ERROR"]


async def test_a_notice_that_arrived_before_a_crash_is_not_repeated_with_the_next(desk: Desk) -> None:
    await desk.put(text("one", may_group=True))
    [row] = await desk.store.outbox.take_due(exclude_chats=(), group_window_s=0)
    await desk.store.outbox.note_delivered(row.id, await desk.app.send_text(CHAT, "one"))
    await restart(desk)
    await desk.put(text("two", may_group=True))
    await desk.send_due()
    assert desk.app.shown(CHAT) == ["one", "two"]


async def test_a_slow_chat_holds_up_no_other_and_sends_one_message_at_a_time(desk: Desk) -> None:
    desk.app.gates[CHAT] = asyncio.Event()
    await desk.put(text("slow"), text("behind it"))
    others = [f"telegram:{number}" for number in range(2, 60)]
    await desk.put(*(text("quick", chat) for chat in others))
    async with desk.delivering() as delivery:
        draining = asyncio.create_task(delivery.drain(PATIENCE_S))
        await desk.app.until(lambda: all(desk.app.shown(chat) == ["quick"] for chat in others))
        assert desk.app.shown(CHAT) == []
        desk.app.gates[CHAT].set()
        await draining
    assert desk.app.shown(CHAT) == ["slow", "behind it"]
    assert desk.app.most_running[CHAT] == 1


async def test_only_so_many_chats_are_sent_to_at_a_time(desk: Desk) -> None:
    chats = [f"telegram:{number}" for number in range(1, MAX_CHATS + 5)]
    gate = asyncio.Event()
    desk.app.gates = dict.fromkeys(chats, gate)
    await desk.put(*(text("hello", chat) for chat in chats))
    async with desk.delivering() as delivery:
        draining = asyncio.create_task(delivery.drain(PATIENCE_S))
        await desk.app.requested(MAX_CHATS)
        await desk.put(text("one more", "telegram:99"))
        delivery.wake()
        assert await desk.statuses() == ["PROCESSING"] * MAX_CHATS + ["NEW"] * 5
        gate.set()
        await draining
    assert await desk.statuses() == ["SENT"] * (MAX_CHATS + 5)


async def test_an_unexpected_error_costs_an_attempt_and_its_text_stays_out_of_the_log(desk: Desk) -> None:
    await desk.put(text("one"), text("two"))
    desk.app.failures.append(ValueError("what was said"))
    with capture_logs() as logs:
        await desk.send_all()
    assert desk.app.shown(CHAT) == ["one", "two"]
    assert [entry["detail"] for entry in logs if entry["event"] == "reply.postponed"] == ["ValueError"]
    assert "what was said" not in str(logs)


async def test_a_request_without_an_answer_ends_at_its_time_limit(desk: Desk) -> None:
    desk.settings = DeliverySettings(max_attempts=1, timeout_s=0.01)
    desk.app.gates[CHAT] = asyncio.Event()
    await desk.put(text("one", may_group=True))
    await desk.send_due()
    assert [entry.error for entry in await desk.store.history.entries()] == ["TimeoutError"]


async def test_what_goes_to_an_app_that_is_switched_off_waits_until_june_starts_with_it(desk: Desk) -> None:
    await desk.put(text("one", "discord:1"), text("two", "discord:1"), text("three"))
    with capture_logs() as logs:
        await desk.send_all()
    assert [entry["platform"] for entry in logs if entry["event"] == "reply.held"] == ["discord"]
    assert await desk.statuses() == ["PROCESSING", "NEW", "SENT"]
    desk.app = FakeAdapter(platform="discord")
    await restart(desk)
    await desk.send_all()
    assert desk.app.shown("discord:1") == ["one", "two"]


async def test_what_was_sent_is_not_sent_again_when_the_file_fails_for_a_moment(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = asyncio.Event()

    def notice(_: object, __: str, entry: EventDict) -> EventDict:
        if entry["event"] == "outbox.failed":
            failed.set()
        return entry

    await desk.put(text("one"))
    desk.app.gates[CHAT] = asyncio.Event()
    async with desk.delivering() as delivery:
        with capture_logs([notice]):
            await desk.app.requested(1)
            fail_updates(desk.path, "delivered")
            desk.app.gates[CHAT].set()
            await failed.wait()
            allow_updates(desk.path)
        pass_time(monkeypatch, 2)
        await delivery.drain(PATIENCE_S)
    assert desk.app.shown(CHAT) == ["one"]
    assert await desk.statuses() == ["SENT"]


def fail_updates(path: Path, column: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(
            f"CREATE TRIGGER failing BEFORE UPDATE OF {column} ON messages"
            " WHEN NEW.status <> 'PROCESSING' OR OLD.status = NEW.status"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    connection.close()


def allow_updates(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER failing")
    connection.close()


async def test_draining_waits_for_what_is_being_sent_and_not_for_what_is_due_later(desk: Desk) -> None:
    await desk.put(text("later"))
    desk.app.failures.append(refusal("try_again"))
    await desk.send_due()
    desk.app.gates["telegram:2"] = asyncio.Event()
    await desk.put(text("now", "telegram:2"))
    async with desk.delivering() as delivery:
        await delivery.drain(0.01)
        assert desk.app.shown("telegram:2") == []
        draining = asyncio.create_task(delivery.drain(PATIENCE_S))
        desk.app.gates["telegram:2"].set()
        await draining
        assert desk.app.shown("telegram:2") == ["now"]
    assert await desk.statuses() == ["NEW", "SENT"]


async def test_draining_sends_notices_that_would_have_waited_for_more(desk: Desk) -> None:
    await desk.put(text("one", may_group=True))
    await desk.send_due()
    assert desk.app.shown(CHAT) == ["one"]


async def test_a_send_in_flight_is_finished_and_committed_when_the_delivery_is_stopped(desk: Desk) -> None:
    await desk.put(text("one"), text("two"))
    desk.app.gates[CHAT] = asyncio.Event()
    running = asyncio.create_task(desk.delivery().run())
    await desk.app.requested(1)
    for _ in range(2):  # an impatient owner changes nothing
        running.cancel()
        await some_steps()
    assert not running.done()
    desk.app.gates[CHAT].set()
    await asyncio.wait([running], timeout=PATIENCE_S)
    assert running.cancelled()
    assert desk.app.shown(CHAT) == ["one"]
    assert await desk.statuses() == ["SENT", "NEW"]


async def test_a_send_that_does_not_end_is_left_for_the_next_start(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.put(text("one"))
    desk.app.gates[CHAT] = asyncio.Event()
    running = asyncio.create_task(desk.delivery().run())
    await desk.app.requested(1)
    running.cancel()
    await some_steps()
    pass_time(monkeypatch, FINISH_S)
    await asyncio.wait([running], timeout=PATIENCE_S)
    assert running.cancelled()
    assert await desk.statuses() == ["PROCESSING"]
    assert desk.app.running[CHAT] == 0
    desk.app.gates.clear()
    await restart(desk)
    await desk.send_due()
    assert desk.app.shown(CHAT) == ["one"]


FATES = st.sampled_from(["sent", "try_again", "crash", "ValueError"])


@settings(deadline=None, max_examples=30)  # each opens a file
@given(
    texts=st.lists(st.tuples(st.sampled_from([CHAT, "telegram:2"]), st.integers(1, 130)), max_size=6),
    fates=st.lists(FATES, max_size=12),
)
async def test_whatever_fails_each_text_arrives_once_and_in_order(
    texts: list[tuple[str, int]], fates: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with open_desk(tmp_path_factory.mktemp("any") / "june.db") as desk:
        desk.settings = DeliverySettings(max_attempts=len(fates) + 1)
        failures = {"sent": None, "try_again": refusal("try_again"), "ValueError": ValueError()}
        messages = [
            text(chr(ord("a") + number) * length, chat) for number, (chat, length) in enumerate(texts)
        ]
        await desk.put(*messages)
        for crashed, group in itertools.groupby(fates, lambda fate: fate == "crash"):
            if not crashed:
                desk.app.failures.extend(failures[fate] for fate in group)
                await desk.send_due()
            else:
                await desk.store.outbox.take_due(exclude_chats=(), group_window_s=0)
                await restart(desk)
        await desk.send_all()
        for chat in (CHAT, "telegram:2"):
            wanted = [desk.app.parts(message.text) for message in messages if message.chat == chat]
            assert desk.app.shown(chat) == list(itertools.chain(*wanted))
        assert set(await desk.statuses()) <= {"SENT"}


# To whom else

OWNERS = ("telegram:1", "discord:9")


def to_the_owner(text: str = "Hello") -> Outbound:
    return Outbound(OWNERS[0], "text", text, user=OWNERS[0], other_users=OWNERS[1:], purpose="help_request")


@asynccontextmanager
async def on_both_apps(desk: Desk) -> AsyncIterator[FakeAdapter]:
    """Return a delivery to two apps; the second is given."""
    discord = FakeAdapter("discord")
    apps: dict[Platform, FakeAdapter] = {"telegram": desk.app, "discord": discord}
    delivery = Delivery(desk.store, apps, desk.settings, clock=desk.clock)
    running = asyncio.create_task(delivery.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield discord
            await delivery.drain(PATIENCE_S)
            while (pause_s := await desk.due_s()) is not None:
                desk.now_s += pause_s
                await delivery.drain(PATIENCE_S)
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.parametrize(("reason", "tries"), [("gone", 1), ("refused", 1), ("try_again", 3)])
async def test_the_owner_gets_on_discord_what_telegram_does_not_take(
    desk: Desk, reason: Refusal, tries: int
) -> None:
    desk.settings = DeliverySettings(max_attempts=20)
    desk.app.refuses["send_text"] = DeliveryError(reason, "no")
    (row_id,) = await desk.put(to_the_owner())
    async with on_both_apps(desk) as discord:
        pass
    assert desk.app.requests == [("send_text", OWNERS[0])] * tries
    assert discord.requests == [("private_chat", OWNERS[1]), ("send_text", OWNERS[1])]
    assert discord.shown(OWNERS[1]) == ["🆘 **Help is needed**\n\nHello"]
    row = await desk.row(row_id)
    assert (row.message.chat, row.message.user, row.message.other_users) == (OWNERS[1], OWNERS[1], ())
    assert await desk.statuses() == ["SENT"]


async def test_what_no_app_takes_is_given_up(desk: Desk) -> None:
    desk.app.refuses["send_text"] = DeliveryError("refused", "no")
    (row_id,) = await desk.put(to_the_owner())
    async with on_both_apps(desk) as discord:
        discord.refuses["send_text"] = DeliveryError("gone", "no")
    assert (await desk.store.feed.message(row_id)).status == "ERROR"


@pytest.mark.parametrize(
    ("purpose", "shown"),
    [
        ("message", "Hello"),
        ("clarification", "❓ **Question**\n\nHello"),
        ("help_request", "🆘 **Help is needed**\n\nHello"),
        ("progress", "⏳ **Progress**\n\nHello"),
        ("feedback_request", "📝 **What do you think?**\n\nHello"),
    ],
)
async def test_the_kinds_of_what_programs_send_look_different(
    desk: Desk, purpose: Purpose, shown: str
) -> None:
    (row_id,) = await desk.put(Outbound(CHAT, "text", "Hello", purpose=purpose))
    await desk.send_due()
    assert desk.app.shown(CHAT) == [shown]
    await desk.store.queue.change_text(row_id, "Bye")
    await desk.send_due()
    assert desk.app.shown(CHAT) == [shown.replace("Hello", "Bye")]
