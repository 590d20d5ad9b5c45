"""What shows while june works: previews as messages and drafts, and the sign."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from june.chat.progress import PREVIEW_INTERVAL_S, SIGN_RETRY_S, GrowingMessage, working
from june.errors import DeliveryError, Refusal
from june.messages import Inbound
from june.store import Received, Store, open_store
from tests.fakes import FakeAdapter
from tests.stored import place_by_default

CHAT = "telegram:1"
LONG = "long " * 20
PATIENCE_S = 30
"""A test gives up after this long, so that a failing test ends."""


@dataclass
class LoopClock:
    """The event loop's own clock, which the test moves; after `PATIENCE_S` all time is over."""

    now_s: float
    begin_s: float = field(default_factory=time.monotonic)

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s if time.monotonic() - self.begin_s < PATIENCE_S else self.now_s + 10**6


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> LoopClock:
    loop = asyncio.get_running_loop()
    clock = LoopClock(loop.time())
    monkeypatch.setattr(loop, "time", clock)
    return clock


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "june.db") as store:
        yield store


@pytest.fixture
def app() -> FakeAdapter:
    return FakeAdapter()


@pytest.fixture
async def received(store: Store) -> Received:
    question = Inbound("telegram", "7", CHAT, "telegram:5", "Ann", "text", "why?")
    await store.inbox.receive([(question, "owner")], place=place_by_default)
    return await claimed(store)


async def claimed(store: Store) -> Received:
    received = await store.inbox.claim(exclude_chats=(), lease_s=60)
    assert received is not None
    return received


async def passes(clock: LoopClock, seconds: float) -> None:
    """Let time pass, and everything happen that then does without the store's thread."""
    clock.now_s += seconds
    for _ in range(20):
        await asyncio.sleep(0)


async def shown(app: FakeAdapter, texts: list[str]) -> None:
    """Wait for the chat to show this."""
    await app.until(lambda: app.shown(CHAT) == texts)


async def test_the_first_text_shows_at_once_and_then_the_newest_once_a_second(
    store: Store, app: FakeAdapter, received: Received, clock: LoopClock
) -> None:
    preview = GrowingMessage(store, app, received)
    preview.show("The")
    await shown(app, ["The"])
    await noted(store, received)
    for text in ("The sky", "The sky is", "The sky is blue"):
        preview.show(text)
        await passes(clock, PREVIEW_INTERVAL_S / 4)
    assert app.shown(CHAT) == ["The"]
    await passes(clock, PREVIEW_INTERVAL_S / 4)
    assert app.shown(CHAT) == ["The sky is blue"]
    assert [name for name, _ in app.requests] == ["send_text", "edit_text"]
    assert list(app.replies.values()) == ["7"]
    assert await preview.finish() == next(iter(app.chats[CHAT]))


async def noted(store: Store, received: Received) -> None:
    """Wait until the preview's request is over, with what it commits: the store's thread works in order."""
    await store.inbox.cursor(str(received.id))


async def test_a_turn_that_is_repeated_goes_on_with_the_message_of_its_first_attempt(
    store: Store, app: FakeAdapter, received: Received
) -> None:
    preview = GrowingMessage(store, app, received)
    preview.show("The")
    await shown(app, ["The"])
    message_id = await preview.finish()
    await store.inbox.release(received.id)
    again = await claimed(store)
    assert again.preview_id == message_id
    app.knows_drafts = True
    preview = GrowingMessage(store, app, again)
    preview.show("A sky")
    await shown(app, ["A sky"])
    assert await preview.finish() == message_id


async def test_a_text_shows_as_a_draft_where_the_chat_knows_drafts(
    store: Store, app: FakeAdapter, received: Received, clock: LoopClock
) -> None:
    app.knows_drafts = True
    preview = GrowingMessage(store, app, received)
    preview.show("The")
    await app.requested(1)
    preview.show("The sky")
    await passes(clock, PREVIEW_INTERVAL_S)
    assert app.drafts == [(received.id, "The"), (received.id, "The sky")]
    assert await preview.finish() == ""
    assert app.shown(CHAT) == []


async def test_only_the_first_part_shows_and_only_when_it_changes(
    store: Store, app: FakeAdapter, received: Received, clock: LoopClock
) -> None:
    preview = GrowingMessage(store, app, received)
    preview.show(LONG)
    await shown(app, app.parts(LONG)[:1])
    await noted(store, received)
    for text in (LONG + "and longer", " "):
        preview.show(text)
        await passes(clock, PREVIEW_INTERVAL_S)
    await preview.finish()
    assert len(app.requests) == 1


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
async def test_nothing_is_sent_while_there_is_nothing_to_see(
    store: Store, app: FakeAdapter, received: Received, clock: LoopClock, texts: list[str]
) -> None:
    preview = GrowingMessage(store, app, received)
    for text in texts:
        preview.show(text)
        await passes(clock, PREVIEW_INTERVAL_S)
    assert await preview.finish() == ""
    assert app.requests == []


async def test_a_preview_waits_as_long_as_the_app_asks_for(
    store: Store, app: FakeAdapter, received: Received, clock: LoopClock
) -> None:
    app.failures.append(DeliveryError("try_again", "no", retry_after_s=30))
    preview = GrowingMessage(store, app, received)
    preview.show("The")
    await app.requested(1)
    await passes(clock, 29)
    assert len(app.requests) == 1
    await passes(clock, 1)
    assert app.shown(CHAT) == ["The"]
    await preview.finish()


async def test_the_pauses_of_a_failing_preview_grow_until_it_succeeds(
    store: Store, app: FakeAdapter, received: Received, clock: LoopClock
) -> None:
    app.refuses["send_text"] = DeliveryError("try_again", "no")
    preview = GrowingMessage(store, app, received)
    preview.show("The")
    await app.requested(1)
    for pause_s in (1, 2, 4, 8, 16, 32, 60, 60):
        requests = len(app.requests)
        await passes(clock, pause_s - 0.5)
        assert len(app.requests) == requests
        await passes(clock, 0.5)
        assert len(app.requests) == requests + 1
    del app.refuses["send_text"]
    await passes(clock, 60)
    await shown(app, ["The"])
    await noted(store, received)
    app.failures.append(DeliveryError("try_again", "no"))
    for text in ("The sky", "The sky is"):
        preview.show(text)
        await passes(clock, PREVIEW_INTERVAL_S)
    assert app.shown(CHAT) == ["The sky is"]
    await preview.finish()


@pytest.mark.parametrize("reason", ["moved", "gone", "refused"])
async def test_a_preview_ends_when_the_app_wants_none(
    store: Store, app: FakeAdapter, received: Received, clock: LoopClock, reason: Refusal
) -> None:
    app.failures.append(DeliveryError(reason, "no"))
    preview = GrowingMessage(store, app, received)
    for text in ("The", "The sky"):
        preview.show(text)
        await passes(clock, PREVIEW_INTERVAL_S)
    assert await preview.finish() == ""
    assert len(app.requests) == 1


async def test_an_unexpected_error_ends_the_preview_and_nothing_else(
    store: Store, app: FakeAdapter, received: Received
) -> None:
    app.failures.append(ValueError())
    preview = GrowingMessage(store, app, received)
    preview.show("The")
    await app.requested(1)
    preview.show("The sky")
    assert await preview.finish() == ""
    assert len(app.requests) == 1


async def test_finishing_waits_for_a_request_in_flight_and_for_no_pause(
    store: Store, app: FakeAdapter, received: Received, clock: LoopClock
) -> None:
    app.gates[CHAT] = asyncio.Event()
    preview = GrowingMessage(store, app, received)
    preview.show("The")
    await app.requested(1)
    finishing = asyncio.create_task(preview.finish())
    await passes(clock, 100)
    finishing.cancel()
    await passes(clock, 100)
    assert not finishing.done()
    app.gates[CHAT].set()
    await asyncio.wait([finishing])
    assert finishing.cancelled()
    preview.show("The sky")
    message_id = await preview.finish()
    assert app.shown(CHAT) == ["The"]
    await store.inbox.release(received.id)
    assert (await claimed(store)).preview_id == message_id != ""


@settings(deadline=None, max_examples=30)  # each opens a file
@given(fates=st.lists(st.sampled_from(["", "try_again", "markup", "gone", "refused"]), max_size=8))
async def test_whatever_fails_there_is_never_a_second_preview(
    fates: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    app = FakeAdapter()
    app.failures.extend(DeliveryError(fate, "no") if fate else None for fate in fates)  # type: ignore[arg-type]
    question = Inbound("telegram", "7", CHAT, "telegram:5", "Ann", "text", "why?")
    loop = asyncio.get_running_loop()
    clock = LoopClock(loop.time())
    async with open_store(tmp_path_factory.mktemp("any") / "june.db") as store:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "time", clock)
            await store.inbox.receive([(question, "owner")], place=place_by_default)
            preview = GrowingMessage(store, app, await claimed(store))
            for number in range(len(fates) + 1):
                preview.show(f"The sky {number}")
                await passes(clock, 0)
                await store.inbox.cursor("")
                await passes(clock, 300)
            message_id = await preview.finish()
    assert list(app.chats[CHAT]) == [message_id] * bool(message_id)


async def test_the_sign_is_repeated_as_long_as_june_works(app: FakeAdapter, clock: LoopClock) -> None:
    async with working(app, CHAT, "recording"):
        await app.requested(1)
        await passes(clock, app.sign_s - 0.5)
        assert len(app.requests) == 1
        await passes(clock, 0.5)
        assert app.requests == [("recording", CHAT)] * 2
    await passes(clock, 100)
    assert len(app.requests) == 2


@pytest.mark.parametrize(
    ("failure", "pause_s"),
    [
        (DeliveryError("refused", "no"), SIGN_RETRY_S),
        (DeliveryError("try_again", "no", retry_after_s=1), SIGN_RETRY_S),
        (DeliveryError("try_again", "no", retry_after_s=30), 30),
        (ValueError(), SIGN_RETRY_S),
    ],
)
async def test_a_sign_that_fails_is_shown_again_later(
    app: FakeAdapter, clock: LoopClock, failure: Exception, pause_s: float
) -> None:
    app.failures.append(failure)
    async with working(app, CHAT, "typing"):
        await app.requested(1)
        await passes(clock, pause_s - 0.5)
        assert len(app.requests) == 1
        await passes(clock, 0.5)
        assert len(app.requests) == 2


async def test_a_sign_in_flight_ends_with_the_work(app: FakeAdapter) -> None:
    async def fail_at_work() -> None:
        async with working(app, CHAT, "typing"):
            await app.requested(1)
            raise ZeroDivisionError

    app.gates[CHAT] = asyncio.Event()
    with pytest.raises(ZeroDivisionError):
        await fail_at_work()
    assert app.running[CHAT] == 0
