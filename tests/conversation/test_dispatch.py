"""Which message is answered when, and what of it is kept: a real store, models and apps that tests hold."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from structlog.testing import capture_logs

from june.audio import decode
from june.bench.recordings import Question
from june.conversation.answering import choose_mode
from june.conversation.attending import Desk
from june.conversation.deciding import Rules, place
from june.conversation.dispatch import Dispatcher
from june.conversation.failing import TurnRecord
from june.conversation.hearing import Hearing
from june.conversation.speaking import Speaker
from june.errors import DeliveryError, QueueError, Refusal, StoreError, SynthesisError
from june.lineup import create_pipeline
from june.messages import (
    Address,
    Attachment,
    ChatMessage,
    ChatPreferences,
    Delivered,
    Inbound,
    Outbound,
    Transcript,
    Voice,
)
from june.settings import Settings
from june.store import DueMessage, Filter, Letter, Message, Received, Role, Store, open_store
from tests.fakes import FakeLlm, FakeStt, FakeTts
from tests.stored import ANNA, BERT, inbound, place_by_default, place_in_queue

ANSWER = "The sky is blue. The sea is too."


@dataclass
class FakeApps:
    """`ChatApps` of an app that holds one recording; previews are messages if they have an id."""

    audio: bytes
    preview_id: str = ""
    failure: Exception | None = None
    working_failure: Exception | None = None
    before_download: asyncio.Event | None = None
    downloads: int = 0
    downloads_running: int = 0
    shown: list[str] = field(default_factory=list)
    working_in: list[tuple[str, str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def download(self, _: Inbound) -> bytes:
        """See the Protocol."""
        self.downloads += 1
        self.downloads_running += 1
        try:
            if self.before_download is not None:
                await self.before_download.wait()
        finally:
            self.downloads_running -= 1
        if self.failure is not None:
            raise self.failure
        return self.audio

    def preview(self, _: Received, __: str) -> "FakeApps":
        """See the Protocol."""
        return self

    def working(
        self, message: Inbound, doing: Literal["recording", "typing"]
    ) -> AbstractAsyncContextManager[None]:
        """See the Protocol."""
        self.working_in.append((message.chat, doing))
        if self.working_failure is not None:
            raise self.working_failure
        return nullcontext()

    def literal(self, text: str) -> str:
        """See the Protocol."""
        return f"literally {text}"

    def show(self, text: str) -> None:
        """See `Preview`."""
        self.shown.append(text)
        self.changed.set()

    async def shows(self, count: int) -> None:
        """Wait until so many texts were shown."""
        async with asyncio.timeout(20):
            while len(self.shown) < count:
                self.changed.clear()
                await self.changed.wait()

    async def finish(self) -> str:
        """See `Preview`."""
        return self.preview_id


@dataclass
class FakeAddresses:
    """`Addresses` of a house that belongs to Anna, and that everyone may enter."""

    failure: QueueError | None = None
    strangers: set[str] = field(default_factory=set)

    async def role_of(self, user: str) -> Role | None:
        """See the Protocol."""
        return None if user in self.strangers else "owner" if user == ANNA else "allowed"

    async def owner(self) -> Address:
        """See the Protocol."""
        if self.failure is not None:
            raise self.failure
        return Address(ANNA, ANNA)


class House:
    """A dispatcher over a store, with everything that it needs."""

    def __init__(self, store: Store, settings: Settings, apps: FakeApps) -> None:
        self.store, self.settings, self.apps = store, settings, apps
        self.stt, self.llm, self.tts = FakeStt(), FakeLlm(), FakeTts()
        self.outbox_changed = asyncio.Event()
        self.pipeline = create_pipeline(settings, self.stt, self.llm, self.tts, cores=2)
        self.addresses = FakeAddresses()
        self.rules = Rules(settings.routes, settings.chat.names)
        self.desk = Desk(
            settings.chat,
            settings.reply,
            settings.llm,
            self.rules,
            store,
            self.pipeline,
            apps,
            self.addresses,
            self.run_command,
            self.outbox_changed.set,
        )
        self.dispatcher = Dispatcher(self.desk)
        self.running = asyncio.create_task(self.dispatcher.run())

    async def run_command(self, received: Received) -> str:
        """Say which command it was."""
        return f"did {received.message.text}"

    async def arrive(self, *messages: Inbound) -> list[Received]:
        """Messages are stored, and noticed."""
        arrived = await self.store.inbox.receive(
            [(message, "owner") for message in messages], place=partial(place, rules=self.rules)
        )
        self.dispatcher.notice(arrived)
        return arrived

    async def outbox(self, count: int) -> list[Outbound]:
        """Return the messages to send, as soon as there are `count`, and mark them as sent."""
        found: list[Outbound] = []
        async with asyncio.timeout(20):
            while True:
                self.outbox_changed.clear()
                while rows := await self.store.outbox.take_due(exclude_chats=(), group_window_s=0):
                    await self.store.outbox.mark_sent([row.id for row in rows])
                    found += [row.message for row in rows]
                if len(found) >= count:
                    assert len(found) == count
                    return found
                await self.outbox_changed.wait()

    async def statuses(self, count: int, status: str = "RESPONDED") -> list[str]:
        """Return the outcomes of received messages, as soon as `count` have that status."""
        async with asyncio.timeout(20):
            while True:
                self.outbox_changed.clear()
                history = await self.store.history.entries()
                entries = [each for each in history if each.direction == "in" and each.status == status]
                if len(entries) >= count:
                    return [each.outcome for each in sorted(entries, key=lambda each: each.id)]
                await self.outbox_changed.wait()

    async def llm_calls(self, count: int) -> None:
        """Wait until the language model was called so often."""
        async with asyncio.timeout(20):
            while len(self.llm.requests) < count:
                self.llm.called.clear()
                await self.llm.called.wait()


Open = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def open_house(tmp_path: Path, settings: Settings, questions: tuple[Question, ...]) -> Open:
    @asynccontextmanager
    async def opened(**sections: dict[str, Any]) -> AsyncIterator[House]:
        changes = {name: getattr(settings, name).model_copy(update=keys) for name, keys in sections.items()}
        async with open_store(tmp_path / "june.db") as store:
            house = House(store, settings.model_copy(update=changes), FakeApps(questions[0].audio))
            try:
                yield house
            finally:
                house.running.cancel()
                await asyncio.wait([house.running])
                await house.dispatcher.close(0)
                await house.pipeline.close()

    return opened


def voice(number: int, chat: str = ANNA, *, duration_s: float = 6, **changes: Any) -> Inbound:
    attachment = Attachment("file", 10_000, duration_s)
    return replace(inbound(number, chat, ""), kind="voice", attachment=attachment, **changes)


# --- what an answer consists of ---


async def test_a_voice_message_is_answered_by_its_text_and_then_its_voice(open_house: Open) -> None:
    async with open_house() as house:
        await house.arrive(voice(1))
        text, spoken = await house.outbox(2)
        assert (text.kind, text.text, text.echo, text.reply_to) == ("text", ANSWER, "What is the sky?", "1")
        assert (spoken.kind, spoken.text_is_sent, spoken.reply_to) == ("voice", True, "1")
        assert spoken.voice is not None
        assert house.apps.working_in == [(ANNA, "recording")]
        assert await house.statuses(1) == ["answered"]


async def test_the_tokens_of_an_answer_are_kept_for_whoever_asked(open_house: Open) -> None:
    async with open_house() as house:
        await house.arrive(inbound(1))
        assert await house.statuses(1) == ["answered"]
        (use,) = await house.store.history.use(day_since_s=0, month_since_s=0)
    assert (use.user, use.today.tokens) == (ANNA, 7 + len(FakeLlm().pieces))


async def test_the_text_is_in_the_outbox_before_it_is_spoken(open_house: Open) -> None:
    async with open_house() as house:
        house.tts.hangs = True
        await house.arrive(voice(1))
        (text,) = await house.outbox(1)
        assert text.text == ANSWER


@pytest.mark.parametrize(
    ("mode", "is_recording", "speaks", "writes"),
    [
        ("mirror", True, True, True),
        ("mirror", False, False, True),
        ("voice", False, True, False),
        ("text", True, False, True),
        ("both", False, True, True),
    ],
)
def test_the_mode_says_whether_an_answer_is_spoken_and_written(
    mode: str, is_recording: bool, speaks: bool, writes: bool
) -> None:
    chosen = choose_mode(mode, is_recording=is_recording)
    assert (chosen.speaks, chosen.writes) == (speaks, writes)


async def test_what_a_chat_has_set_comes_before_the_settings(open_house: Open) -> None:
    async with open_house(reply={"mode": "voice"}) as house:
        await house.store.conversations.set_preferences(ANNA, ChatPreferences(mode="text", language="de"))
        await house.arrive(voice(1), inbound(2, BERT))
        kinds = {message.chat: message.kind for message in await house.outbox(2)}
        assert kinds == {ANNA: "text", BERT: "voice"}
        assert house.stt.languages == ["de"]


async def test_a_voice_that_fails_leaves_the_text_and_says_so(open_house: Open) -> None:
    async with open_house() as house:
        house.tts.error = SynthesisError("tts_failed", "broken")
        await house.arrive(voice(1))
        assert [each.text for each in await house.outbox(2)] == [ANSWER, "I could not speak my answer."]


async def test_a_voice_that_fails_where_only_voices_are_wanted_becomes_text(open_house: Open) -> None:
    async with open_house(reply={"mode": "voice"}) as house:
        house.tts.error = SynthesisError("tts_failed", "broken")
        await house.arrive(voice(1))
        assert [each.text for each in await house.outbox(2)] == [ANSWER, "I could not speak my answer."]


async def test_the_growing_text_is_shown_and_its_message_becomes_the_answer(open_house: Open) -> None:
    async with open_house() as house:
        house.apps.preview_id = "77"
        await house.arrive(inbound(1))
        (text,) = await house.outbox(1)
        assert house.apps.shown == ["The sky is blue. The", "The sky is blue. The sea is", ANSWER]
        assert text.preview_id == "77"


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("too_large", "That recording is larger than the chat app hands out to me."),
        ("gone", "I could not fetch that recording from the chat app."),
    ],
)
async def test_a_recording_that_cannot_be_had_is_explained(
    open_house: Open, reason: Any, sentence: str
) -> None:
    async with open_house() as house:
        house.apps.failure = DeliveryError(reason, "no")
        await house.arrive(voice(1))
        assert [each.text for each in await house.outbox(1)] == [sentence]
        assert await house.statuses(1, "ERROR") == ["failed"]


# --- groups ---


@pytest.mark.parametrize("heard", ["June, what is the sky?", "So I said to june: why?"])
async def test_a_group_note_that_names_june_is_answered_and_heard_once(open_house: Open, heard: str) -> None:
    async with open_house() as house:
        house.stt.text = heard
        await house.arrive(voice(1, is_group=True, is_addressed=False))
        text, _ = await house.outbox(2)
        assert text.echo == heard
        assert (house.apps.downloads, len(house.stt.languages)) == (1, 1)


async def test_a_group_note_for_others_is_forgotten_without_a_sign(open_house: Open) -> None:
    async with open_house() as house:
        house.stt.text = "We meet in Juneau."
        (received,) = await house.arrive(voice(1, is_group=True, is_addressed=False))
        assert await house.statuses(1) == ["not_addressed"]
        entry = await house.store.history.entry(received.id)
        assert entry is not None
        assert (entry.text, entry.transcript, entry.has_audio) == ("", None, False)
        assert house.apps.working_in == []
        assert await house.outbox(0) == []


# --- order, stopping ---


async def test_one_chat_is_answered_in_order_and_others_meanwhile(open_house: Open) -> None:
    async with open_house() as house:
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1), inbound(2), inbound(3, BERT))
        await house.llm_calls(2)
        assert {request.conversation for request in house.llm.requests} == {ANNA, BERT}
        house.llm.before_last.set()
        sent = await house.outbox(3)
        assert [each.reply_to for each in sent if each.chat == ANNA] == ["1", "2"]


async def test_so_many_turns_and_no_more_are_made_at_a_time(open_house: Open) -> None:
    async with open_house(chat={"max_turns": 2}) as house:
        house.llm.before_last = asyncio.Event()
        await house.arrive(*(inbound(number, f"telegram:{number}") for number in range(1, 6)))
        await house.llm_calls(2)
        assert (await house.store.history.waiting()).new == 3
        house.llm.before_last.set()
        await house.outbox(5)


STOPS = [
    (inbound(2, text="/stop", kind="command"), "did /stop"),
    (inbound(2, text="/Stop now", kind="command"), "did /Stop now"),
    (inbound(2, text="Stop!"), "Stopped."),
    (voice(2, duration_s=1), "Stopped."),
]


@pytest.mark.parametrize(("message", "answer"), STOPS)
async def test_stop_ends_the_running_answer_written_or_spoken(
    open_house: Open, message: Inbound, answer: str
) -> None:
    async with open_house() as house:
        house.stt.text = "Stop."
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1))
        await house.llm.called.wait()
        await house.arrive(message)
        assert [each.text for each in await house.outbox(1)] == [answer]
        assert (await house.statuses(2))[0] == "stopped"
        assert house.llm.calls_running == 0
        assert house.dispatcher.was_stopped(ANNA) == (message.kind == "command")  # it says so itself
        assert not house.dispatcher.was_stopped(ANNA)
        assert len(house.stt.languages) <= 1


async def stop_before_the_first_step(
    house: House, monkeypatch: pytest.MonkeyPatch, *messages: Inbound
) -> None:
    """Let the messages arrive; "stop" is noticed when the first turn is about to take its first step."""
    stops: list[Received] = []
    is_noticed = asyncio.Event()
    claim = house.store.inbox.claim

    async def claim_next(*, exclude_chats: Collection[str], lease_s: float) -> Received | None:
        if not stops:
            return None
        if exclude_chats and not is_noticed.is_set():  # a turn was begun, and nothing has run since
            house.dispatcher.notice(stops)
            is_noticed.set()
        return await claim(exclude_chats=exclude_chats, lease_s=lease_s)

    monkeypatch.setattr(house.store.inbox, "claim", claim_next)
    stop = inbound(9, text="Stop!")
    arrived = await house.store.inbox.receive(
        [(each, "owner") for each in (*messages, stop)], place=place_by_default
    )
    stops.append(arrived[-1])
    house.dispatcher.notice([])
    async with asyncio.timeout(20):
        await is_noticed.wait()


async def test_stop_before_the_first_step_of_a_turn_does_not_block_its_chat(
    open_house: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house() as house:
        await stop_before_the_first_step(house, monkeypatch, inbound(1))
        assert await house.statuses(2) == ["stopped", "command"]
        await house.arrive(inbound(10))
        assert [each.text for each in await house.outbox(2)] == ["Stopped.", ANSWER]


async def test_stop_in_the_supergroup_ends_the_answer_that_the_group_had_asked_for(open_house: Open) -> None:
    old, new = "telegram:-5", "telegram:-1005"
    async with open_house() as house:
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1, old))
        await house.llm.called.wait()
        assert await house.store.conversations.move(old, new)
        house.dispatcher.move(old, new)
        await house.arrive(inbound(2, new, "/stop", kind="command"))
        assert await house.statuses(2) == ["stopped", "command"]
        assert house.dispatcher.was_stopped(new)
        house.llm.before_last.set()
        await house.arrive(inbound(3, new))
        assert [each.text for each in await house.outbox(2)] == ["did /stop", ANSWER]


async def test_a_stopped_answer_keeps_what_its_chat_has_seen(open_house: Open) -> None:
    async with open_house() as house:
        house.apps.preview_id = "77"
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1))
        await house.llm.called.wait()
        await house.apps.shows(2)
        await house.arrive(inbound(2, text="/stop", kind="command"))
        seen, _ = await house.outbox(2)
        assert (seen.text, seen.preview_id) == ("The sky is blue. The sea is …", "77")


async def test_a_short_recording_that_does_not_say_stop_waits_and_is_heard_once(open_house: Open) -> None:
    async with open_house() as house:
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1))
        await house.llm.called.wait()
        await house.arrive(voice(2, duration_s=1))
        await house.stt.called.wait()
        house.llm.before_last.set()
        assert [each.reply_to for each in await house.outbox(3)] == ["1", "2", "2"]
        assert len(house.stt.languages) == 1


async def test_what_was_heard_before_a_turn_that_had_begun_by_then_is_not_heard_again(
    open_house: Open,
) -> None:
    async with open_house() as house:
        house.running.cancel()  # the messages are for this hearing alone
        hearing = Hearing(house.store, house.apps, house.pipeline.listener, TurnRecord(), max_early=1)
        messages: list[tuple[Inbound, Role]] = [(voice(each, f"telegram:{each}"), "owner") for each in (1, 2)]
        # As the turn knows them: claimed before they were heard.
        first, second = await house.store.inbox.receive(messages, place=place_in_queue)
        for received in (first, second):
            transcripts: asyncio.Queue[Transcript] = asyncio.Queue()
            hearing.hear_early(received, transcripts.put_nowait)
            async with asyncio.timeout(20):
                await transcripts.get()
            await asyncio.sleep(0)  # the task comes to its end
        for received in (first, second):
            assert (await hearing.hear(received)).transcript.text == house.stt.text
        assert (house.apps.downloads, len(house.stt.languages)) == (2, 2)
        await hearing.close()


async def test_a_turn_that_is_stopped_ends_what_was_begun_before_it(open_house: Open) -> None:
    async with open_house() as house:
        house.apps.before_download = asyncio.Event()
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1))
        await house.llm.called.wait()
        (arrived,) = await house.arrive(voice(2, duration_s=1))
        house.llm.before_last.set()
        await house.outbox(1)
        await when(house, arrived.id, lambda found: found.status == "PROCESSING")
        assert house.apps.downloads_running == 1
        await house.arrive(inbound(3, text="Stop!"))
        assert await house.statuses(3) == ["answered", "stopped", "command"]
        assert (house.apps.downloads, house.apps.downloads_running) == (1, 0)


@pytest.mark.parametrize(("busy", "outcomes"), [("interrupt", ["stopped", "answered"]), ("queue", [])])
async def test_a_new_message_interrupts_only_if_that_is_set(
    open_house: Open, busy: str, outcomes: list[str]
) -> None:
    async with open_house(chat={"busy": busy}) as house:
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1))
        await house.llm.called.wait()
        house.llm.called.clear()
        await house.arrive(inbound(2))
        if busy == "interrupt":
            await house.llm.called.wait()
        assert (await house.statuses(len(outcomes) and 1)) == outcomes[:1]
        house.llm.before_last.set()
        await house.statuses(2)


# --- memory ---


async def test_a_conversation_that_is_too_long_after_all_loses_its_older_half_until_it_fits(
    open_house: Open,
) -> None:
    async with open_house() as house:
        for number in range(1, 7):
            await house.arrive(inbound(number, text=str(number)))
            await house.statuses(number)
        house.llm.most_messages = 6
        await house.arrive(inbound(7, text="And now?"))
        assert await house.statuses(7) == ["answered"] * 7
        *_, whole, half, quarter = [
            [message.content for message in request.messages[1:] if message.role == "user"]
            for request in house.llm.requests
        ]
        assert whole == ["1", "2", "3", "4", "5", "6", "And now?"]
        assert (half, quarter) == (["4", "5", "6", "And now?"], ["6", "And now?"])


async def test_a_question_that_does_not_fit_alone_is_refused(open_house: Open) -> None:
    async with open_house() as house:
        await house.arrive(inbound(1))
        await house.statuses(1)
        house.llm.most_messages = 1
        await house.arrive(inbound(2))
        assert await house.statuses(1, "ERROR") == ["failed"]
        assert [len(request.messages) for request in house.llm.requests] == [2, 4, 2]


async def test_a_conversation_is_remembered_across_a_restart_until_it_is_reset(open_house: Open) -> None:
    async with open_house() as house:
        await house.arrive(voice(1), inbound(2, BERT))
        await house.statuses(2)
    async with open_house() as house:
        await house.arrive(inbound(3, text="And why?"))
        await house.outbox(4)
        asked = house.llm.requests[0].messages[1:]
        said = (ChatMessage("user", "What is the sky?"), ChatMessage("assistant", ANSWER))
        assert asked == (*said, ChatMessage("user", "And why?"))
        await house.store.conversations.forget(ANNA)
        await house.arrive(inbound(4, text="Who?"))
        await house.outbox(1)
        assert house.llm.requests[1].messages[1:] == (ChatMessage("user", "Who?"),)


# --- what may befall it ---


async def test_a_turn_that_is_repeated_hears_and_writes_nothing_twice(open_house: Open) -> None:
    async with open_house() as house:
        house.tts.hangs = True
        await house.arrive(voice(1))
        await house.outbox(1)
        await house.tts.called.wait()
    async with open_house() as house:  # the first one gave its message back, as a restart does
        (spoken,) = await house.outbox(1)
        assert (spoken.kind, spoken.text) == ("voice", ANSWER)
        assert (house.apps.downloads, house.stt.languages, house.llm.requests) == (0, [], [])


@pytest.mark.parametrize(
    ("failure", "code", "level"),
    [
        (RuntimeError(), "internal", "error"),
        (DeliveryError("gone", "expired"), "download_failed", "warning"),
    ],
)
async def test_only_an_unexpected_failure_of_a_stage_is_logged_as_an_error(
    open_house: Open, failure: Exception, code: str, level: str
) -> None:
    async with open_house() as house:
        house.apps.failure = failure
        with capture_logs() as logs:
            await house.arrive(voice(1))
            await house.outbox(1)
        (refused,) = [each for each in logs if each["event"] == "turn.refused"]
        assert (refused["stage"], refused["code"], refused["log_level"]) == ("download", code, level)


@pytest.mark.parametrize("end", ["failure", "stop"])
async def test_a_turn_that_is_repeated_and_ends_early_keeps_the_answer_that_was_sent(
    open_house: Open, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    async with open_house() as house:
        house.tts.hangs = True
        await house.arrive(voice(1))
        await house.outbox(1)
        await house.tts.called.wait()
    async with open_house() as house:
        if end == "failure":
            house.apps.working_failure = RuntimeError()
            told = "Something went wrong inside me. Please try again."
        else:
            await stop_before_the_first_step(house, monkeypatch)
            told = "Stopped."
        assert [each.text for each in await house.outbox(1)] == [told]
        assert (await house.statuses(1))[0] == "answered"
        assert (await house.store.conversations.messages(ANNA, 10))[-1] == ChatMessage("assistant", ANSWER)


async def test_an_unexpected_failure_is_told_and_ends_nothing(open_house: Open) -> None:
    async with open_house() as house:
        house.llm.pieces = ()  # which the fake does not expect
        await house.arrive(inbound(1))
        (told,) = await house.outbox(1)
        assert told.text == "Something went wrong inside me. Please try again."
        house.llm.pieces = (ANSWER,)
        await house.arrive(inbound(2))
        assert [each.text for each in await house.outbox(1)] == [ANSWER]


async def test_an_unexpected_failure_of_the_voice_leaves_the_text_as_it_is(open_house: Open) -> None:
    async with open_house() as house:
        house.apps.preview_id = "77"
        house.tts.rates_hz = (0,)  # which the fake does not expect
        await house.arrive(voice(1))
        text, told = await house.outbox(2)
        assert (text.text, text.preview_id) == (ANSWER, "77")
        assert (told.text, told.preview_id) == ("Something went wrong inside me. Please try again.", "")
        assert await house.statuses(1) == ["answered"]


async def test_what_was_stopped_is_forgotten_with_the_next_question(open_house: Open) -> None:
    async with open_house() as house:
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1))
        await house.llm.called.wait()
        await house.arrive(inbound(2, text="Stop."))
        await house.statuses(2)
        assert not house.dispatcher.was_stopped(ANNA)


async def test_a_store_that_fails_ends_the_dispatcher(
    open_house: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StoreError("The disk is full.")

    async with open_house() as house:
        monkeypatch.setattr(house.store.inbox, "note_answer", fail)
        await house.arrive(inbound(1))
        await asyncio.wait([house.running], timeout=20)
        assert isinstance(house.running.exception(), StoreError)
        assert (await house.store.history.waiting()).processing == 1


# --- what is passed on ---


async def when(house: House, message_id: int, holds: Callable[[Message], bool]) -> Message:
    """One message of the store, as soon as something holds of it."""
    async with asyncio.timeout(20):
        while True:
            changed = house.store.next_change()
            found = await house.store.feed.message(message_id)
            if holds(found):
                return found
            await changed.wait()


async def claim_for_program(house: House) -> Message | None:
    return await house.store.queue.claim(Filter(), lease_s=60)


async def test_a_voice_message_for_the_queue_is_heard_and_kept_before_a_program_gets_it(
    open_house: Open, settings: Settings
) -> None:
    async with open_house() as house:
        (arrived,) = await house.arrive(voice(1, route="queue"))
        assert await claim_for_program(house) is None
        ready = await when(house, arrived.id, lambda found: found.has_audio)
        assert (ready.status, ready.text, ready.attempts) == ("NEW", "What is the sky?", 0)
        recording = decode(await house.store.feed.recording(arrived.id), settings.audio)
        original = decode(house.apps.audio, settings.audio)
        assert len(recording) == pytest.approx(len(original), rel=0.02)
        claimed = await claim_for_program(house)
        assert claimed is not None
        assert claimed.id == arrived.id
        assert house.llm.requests == []


async def test_june_killed_while_it_hears_for_the_queue_hears_again(open_house: Open) -> None:
    async with open_house() as house:
        house.stt.hangs = True
        (arrived,) = await house.arrive(voice(1, route="queue"))
        await when(house, arrived.id, lambda found: found.status == "PROCESSING")
    async with open_house() as house:  # as after a kill, when the row was not released
        await house.store.transact(
            lambda sql: sql.execute("UPDATE messages SET status = 'PROCESSING', claimed_by = 'june'")
        )
        await house.store.upkeep.recover(
            max_attempts=5, explain=lambda row: Outbound(row.message.chat, "text", "")
        )
        house.dispatcher.notice([])
        ready = await when(house, arrived.id, lambda found: found.has_audio)
        assert ready.status == "NEW"
        assert await claim_for_program(house) is not None


@pytest.mark.parametrize("failure", ["gone", "too_large"])
async def test_whoever_sent_a_recording_that_cannot_be_had_is_told(
    open_house: Open, failure: Refusal
) -> None:
    async with open_house() as house:
        house.apps.failure = DeliveryError(failure, "It is not there.")
        (arrived,) = await house.arrive(voice(1, route="queue"))
        (told,) = await house.outbox(1)
        assert told.text.startswith(("I could not fetch", "That recording is larger"))
        assert (await house.store.feed.message(arrived.id)).status == "ERROR"
        assert await claim_for_program(house) is None


@pytest.mark.parametrize(
    ("heard", "text"), [("June note, buy milk.", None), ("Note: buy milk.", "buy milk.")]
)
async def test_a_spoken_note_that_begins_with_the_word_goes_to_the_queue(
    open_house: Open, heard: str, text: str | None
) -> None:
    async with open_house(routes={"queue_word": "note"}) as house:
        house.stt.text = heard
        (arrived,) = await house.arrive(voice(1))
        if text is None:
            assert len(await house.outbox(2)) == 2
            return
        ready = await when(house, arrived.id, lambda found: found.has_audio)
        assert (ready.status, ready.text) == ("NEW", text)
        assert house.llm.requests == []
        assert (house.apps.downloads, len(house.stt.languages)) == (1, 1)


async def test_a_short_note_that_waits_is_fetched_and_heard_once_for_the_queue(open_house: Open) -> None:
    async with open_house(routes={"queue_word": "note"}) as house:
        house.stt.text = "Note: buy milk."
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1))
        await house.llm.called.wait()
        (arrived,) = await house.arrive(voice(2, duration_s=1))
        await house.stt.called.wait()
        house.llm.before_last.set()
        ready = await when(house, arrived.id, lambda found: found.has_audio)
        assert (ready.status, ready.text) == ("NEW", "buy milk.")
        assert (house.apps.downloads, len(house.stt.languages)) == (1, 1)


async def test_a_note_that_was_heard_before_a_crash_is_fetched_again_and_not_heard_again(
    open_house: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def hang(*_: object) -> Voice:
        await never.wait()
        raise AssertionError

    async with open_house(routes={"queue_word": "note"}) as house:
        house.stt.text = "Note: buy milk."
        monkeypatch.setattr(house.pipeline.listener, "record", hang)
        (arrived,) = await house.arrive(voice(1))
        await when(house, arrived.id, lambda found: "milk" in found.text)
    async with open_house(routes={"queue_word": "note"}) as house:  # which the first one was ended before
        ready = await when(house, arrived.id, lambda found: found.has_audio)
        assert (ready.status, ready.text) == ("NEW", "buy milk.")
        assert (house.apps.downloads, house.stt.languages) == (1, [])


async def test_a_recording_that_finds_no_room_in_memory_is_fetched_again(
    open_house: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("june.conversation.hearing.MAX_KEPT_BYTES", 0)
    async with open_house() as house:
        (arrived,) = await house.arrive(voice(1, route="queue"))
        await when(house, arrived.id, lambda found: found.has_audio)
        assert (house.apps.downloads, len(house.stt.languages)) == (2, 1)


@pytest.mark.parametrize("routes", [{"queue_word": "note"}, {"owner": "queue"}])
async def test_a_recording_that_is_handed_over_ends_its_trace_once(
    open_house: Open, monkeypatch: pytest.MonkeyPatch, routes: dict[str, str]
) -> None:
    ended: list[str] = []
    has_ended = asyncio.Event()

    def end(*_: object, outcome: str, **__: object) -> None:
        ended.append(outcome)
        has_ended.set()

    monkeypatch.setattr("june.conversation.work.finish_trace", end)
    async with open_house(routes=routes) as house:
        house.stt.text = "Note: buy milk."
        await house.arrive(voice(1))
        async with asyncio.timeout(20):
            await has_ended.wait()
    assert ended == ["handed_over"]


async def test_a_short_recording_whose_own_turn_has_begun_does_not_stop_itself(open_house: Open) -> None:
    async with open_house() as house:
        house.stt.text = "Stop."
        house.stt.before = asyncio.Event()
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1))
        await house.llm.called.wait()
        (arrived,) = await house.arrive(voice(2, duration_s=1))
        await house.stt.called.wait()
        house.llm.before_last.set()
        (answer,) = await house.outbox(1)
        assert answer.text == ANSWER
        await when(house, arrived.id, lambda found: found.status == "PROCESSING")
        house.stt.before.set()
        assert [each.text for each in await house.outbox(1)] == ["Stopped."]
        assert await house.statuses(2) == ["answered", "command"]


async def ask(house: House) -> int:
    """Send a question to Anna, deliver it, and return its id."""
    letter = Letter(ANNA, ANNA, "Shall I?", expires_in_s=60)
    question = await house.store.queue.send(letter)
    (row,) = await house.store.outbox.take_due(exclude_chats=(), group_window_s=0)
    await house.store.outbox.note_delivered(row.id, Delivered("900", "text"))
    await house.store.outbox.mark_sent([row.id])
    return question.id


async def test_a_spoken_answer_answers_when_it_was_heard(open_house: Open) -> None:
    async with open_house() as house:
        question = await ask(house)
        (arrived,) = await house.arrive(voice(1, reply_to="900"))
        assert (await house.store.feed.message(question)).status == "SENT"
        await when(house, question, lambda found: found.status == "RESPONDED")
        _, answer = await house.store.feed.reply(question)
        assert answer is not None
        assert (answer.id, answer.text, answer.status) == (arrived.id, "What is the sky?", "RESPONDED")
        assert answer.has_audio
        assert house.llm.requests == []


async def test_a_silent_answer_is_none_and_the_next_one_counts(open_house: Open) -> None:
    async with open_house() as house:
        question = await ask(house)
        house.stt.text = ""
        (arrived,) = await house.arrive(voice(1))
        (told,) = await house.outbox(1)
        assert told.text == "I heard nothing in that recording."
        assert (await house.store.feed.message(arrived.id)).status == "ERROR"
        await house.arrive(inbound(2, text="Yes"))
        _, answer = await house.store.feed.reply(question)
        assert answer is not None
        assert answer.text == "Yes"


async def test_a_forwarded_message_goes_to_the_owner_and_the_reply_back(open_house: Open) -> None:
    async with open_house() as house:
        sender = replace(inbound(1, BERT, "When? *Now*?"), route="forward", user_name="Bert\nthe *Great*")
        (arrived,) = await house.arrive(sender)
        async with asyncio.timeout(20):
            while not (rows := await house.store.outbox.take_due(exclude_chats=(), group_window_s=0)):
                await house.store.next_change().wait()
        (row,) = rows
        assert row.message.chat == ANNA
        assert row.message.text == (
            "✉️ **literally Bert the *Great*** (`telegram:2`)\n\nliterally When? *Now*?"
        )
        assert (await house.store.feed.message(arrived.id)).status == "FORWARDED"
        await house.store.outbox.note_delivered(row.id, Delivered("900", "text"))
        await house.store.outbox.mark_sent([row.id])
        await house.arrive(replace(inbound(2, ANNA, "At noon"), reply_to="900"))
        (returned,) = await house.outbox(1)
        assert (returned.chat, returned.text, returned.reply_to) == (BERT, "literally At noon", "1")
        assert (await house.store.feed.message(arrived.id)).status == "RESPONDED"
        assert house.llm.requests == []


async def test_a_forwarded_recording_goes_with_its_words_both_ways(open_house: Open) -> None:
    async with open_house() as house:
        (arrived,) = await house.arrive(voice(1, BERT, route="forward"))
        await when(house, arrived.id, lambda found: found.status == "FORWARDED")
        rows: list[DueMessage] = []
        while taken := await house.store.outbox.take_due(exclude_chats=(), group_window_s=0):
            rows += taken
            await house.store.outbox.note_delivered(taken[0].id, Delivered(f"90{len(rows)}", "text"))
            await house.store.outbox.mark_sent([taken[0].id])
        assert [row.message.kind for row in rows] == ["text", "voice"]
        assert rows[1].message.voice is not None
        await house.arrive(voice(2, ANNA, reply_to="902"))  # a reply to the bubble is one to the message
        text, spoken = await house.outbox(2)
        assert (text.chat, spoken.chat, spoken.kind) == (BERT, BERT, "voice")
        assert (await house.store.feed.message(arrived.id)).status == "RESPONDED"


async def test_nothing_goes_back_to_someone_without_access(open_house: Open) -> None:
    async with open_house() as house:
        (arrived,) = await house.arrive(replace(inbound(1, BERT), route="forward"))
        await when(house, arrived.id, lambda found: found.status == "FORWARDED")
        (row,) = await house.store.outbox.take_due(exclude_chats=(), group_window_s=0)
        await house.store.outbox.note_delivered(row.id, Delivered("900", "text"))
        await house.store.outbox.mark_sent([row.id])
        house.addresses.strangers.add(BERT)
        await house.arrive(replace(inbound(2, ANNA, "At noon"), reply_to="900"))
        (told,) = await house.outbox(1)
        assert (told.chat, told.text) == (ANNA, "Whoever wrote that has no access any more.")
        assert (await house.store.feed.message(arrived.id)).status == "FORWARDED"


async def test_without_an_owner_the_sender_is_told(open_house: Open) -> None:
    async with open_house() as house:
        house.addresses.failure = QueueError("conflict", "There is no owner.")
        (arrived,) = await house.arrive(replace(inbound(1, BERT), route="forward"))
        (told,) = await house.outbox(1)
        assert (told.chat, told.text) == (BERT, "I cannot reach my owner at the moment.")
        assert (await house.store.feed.message(arrived.id)).status == "ERROR"


async def test_a_message_for_the_queue_stops_no_answer(open_house: Open) -> None:
    async with open_house(chat={"busy": "interrupt"}) as house:
        house.llm.before_last = asyncio.Event()
        await house.arrive(inbound(1))
        await house.llm_calls(1)
        await house.arrive(replace(inbound(2, text="Stop"), route="queue"))
        house.llm.before_last.set()
        (answer,) = await house.outbox(1)
        assert answer.text == ANSWER


async def test_the_seconds_of_each_stage_are_kept_with_the_message(open_house: Open) -> None:
    async with open_house() as house:
        (arrived,) = await house.arrive(voice(1))
        await house.outbox(2)
        answered = await when(house, arrived.id, lambda found: found.status == "RESPONDED")
        assert {"decode", "stt", "llm_first_token", "llm", "tts", "encode", "total"} <= set(
            answered.timings_s
        )


# --- what programs have spoken ---


async def test_what_a_program_has_spoken_is_sent_in_writing_first(open_house: Open) -> None:
    async with open_house(reply={"max_voice_s": 30.0}) as house:
        house.tts.seconds = 20.0
        await house.store.queue.send(Letter(ANNA, ANNA, "One sentence. Another one.", is_spoken=True))
        (text,) = await house.outbox(1)
        assert (text.kind, text.purpose) == ("text", "message")
        speaking = asyncio.create_task(
            Speaker(house.store, house.pipeline.voicer, house.outbox_changed.set).run()
        )
        first, second = await house.outbox(2)
        speaking.cancel()
        await asyncio.wait([speaking])
        assert (first.kind, second.kind, second.text) == ("voice", "voice", "Another one.")
        assert first.voice is not None
        assert house.tts.sentences == ["One sentence.", "Another one."]


async def test_what_cannot_be_spoken_is_an_error_and_its_words_arrived(open_house: Open) -> None:
    async with open_house() as house:
        house.tts.error = SynthesisError("tts_failed", "no voice")
        sent = await house.store.queue.send(Letter(ANNA, ANNA, "Hello.", is_spoken=True))
        speaking = asyncio.create_task(
            Speaker(house.store, house.pipeline.voicer, house.outbox_changed.set).run()
        )
        failed = await when(house, sent.id + 1, lambda found: found.status == "ERROR")
        speaking.cancel()
        await asyncio.wait([speaking])
        assert failed.error == "tts_failed"
        (text,) = await house.outbox(1)
        assert text.text == "Hello."
