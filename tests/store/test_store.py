"""What the store promises of the inbox, the outbox, conversations, people and history; on real files."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from june.errors import StoreError
from june.messages import (
    Attachment,
    ChatMessage,
    ChatPreferences,
    Delivered,
    Inbound,
    Outbound,
    Transcript,
    Voice,
)
from june.store import DueMessage, Person, Pruned, Received, Spent, Store, Waiting, open_store
from june.telemetry import trace_id
from tests.stored import ANNA, BERT, Clock, claim, explain, inbound, receive, recording, reply, take

VOICE = Voice(ogg_opus=b"OggS" * 2000, duration_s=2.5, waveform=bytes(range(25)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "june.db"


@pytest.fixture
async def store(path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(path, clock=clock) as opened:
        yield opened


async def taken_texts(store: Store, group_window_s: float = 1.0) -> list[str]:
    return [row.message.text for row in await take(store, group_window_s=group_window_s)]


async def answer(store: Store, question: str, text: str, chat: str = ANNA) -> int:
    (received,) = await receive(store, inbound(question, chat, question))
    assert await claim(store) == replace(received, attempts=1)
    assert await store.inbox.finish(received.id, [], outcome="answered", answer=text)
    return received.id


async def status_of(store: Store, message_id: int) -> str:
    entry = await store.history.entry(message_id)
    assert entry is not None
    return entry.status


# The inbox


async def test_a_message_comes_out_as_it_went_in(store: Store, clock: Clock) -> None:
    message = Inbound(
        platform="discord",
        message_id="77",
        chat="discord:4711",
        user="discord:12",
        user_name="Zoë",
        kind="voice",
        text="a caption",
        attachment=Attachment("https://cdn/x.ogg", size_bytes=9, duration_s=1.5),
        is_group=True,
        is_addressed=False,
        reply_to="76",
        sent_at_s=998.0,
    )
    new = await store.inbox.receive([(message, "allowed")])
    expected = Received(
        id=new[0].id,
        message=message,
        role="allowed",
        attempts=0,
        transcript=None,
        answer="",
        preview_id="",
        received_at_s=clock.now_s,
        trace_context=new[0].trace_context,
    )
    assert trace_id(new[0].trace_context)
    assert new == [expected]
    assert await claim(store) == replace(expected, attempts=1)


async def test_a_message_is_received_once_whatever_the_platform_repeats(store: Store) -> None:
    first = await receive(store, inbound(1), inbound(1), inbound(1, BERT))
    assert [row.message.chat for row in first] == [ANNA, BERT]
    await claim(store)
    again = await receive(store, inbound(1), inbound(2))
    assert [row.message.message_id for row in again] == ["2"]
    assert await store.history.waiting() == Waiting(new=2, processing=1, unsent=0, sending=0, oldest_new_s=0)


async def test_batch_cursor_and_replies_are_one_transaction(store: Store) -> None:
    assert await store.inbox.cursor("telegram") == ""
    await store.inbox.receive(
        [(inbound(1), "owner")], cursor=("telegram", "5"), replies=[reply("Slowly, please")]
    )
    assert await store.inbox.cursor("telegram") == "5"
    assert await taken_texts(store) == ["Slowly, please"]

    bad_reply = Outbound(ANNA, "edit", "x", edits=999)  # there is no such message
    with pytest.raises(StoreError):
        await store.inbox.receive([(inbound(2), "owner")], cursor=("telegram", "6"), replies=[bad_reply])
    assert await store.inbox.cursor("telegram") == "5"
    assert [row.message.message_id for row in await receive(store, inbound(2))] == ["2"]


async def test_text_that_no_file_can_hold_does_not_stop_a_batch(store: Store) -> None:
    strange = replace(inbound(1, text="a\ud800b\0c"), user_name="\udfff", attachment=Attachment("\0\ud800"))
    received = await receive(store, strange, inbound(2))
    assert [row.message.text for row in received] == ["a\ufffdb\ufffdc", "Hello"]
    got = await claim(store)
    assert got.message.user_name == "\ufffd"
    assert await store.inbox.finish(got.id, [reply("\ud83d")], outcome="answered", answer="\0")
    (queued,) = await take(store)
    await store.outbox.note_delivered(queued.id, Delivered("9", "text", "\ud83d"))
    outbound = await store.outbox.message(queued.id)
    assert outbound is not None
    assert outbound.delivered == (Delivered("9", "text", "\ufffd"),)
    assert await store.conversations.messages(ANNA, 2) == (
        ChatMessage("user", "a\ufffdb\ufffdc"),
        ChatMessage("assistant", "\ufffd"),
    )


async def test_a_chat_is_answered_in_order_and_one_message_at_a_time(store: Store) -> None:
    await receive(store, inbound(1), inbound(2), inbound(3, BERT), inbound(4, "telegram:3"))
    first = await claim(store)
    second = await claim(store)
    assert [first.message.message_id, second.message.message_id] == ["1", "3"]
    assert await store.inbox.claim(exclude_chats={"telegram:3"}, lease_s=1) is None
    assert await store.inbox.finish(first.id, [], outcome="answered")
    assert (await claim(store)).message.message_id == "2"


async def test_stop_comes_before_what_waits_longer(store: Store) -> None:
    await receive(
        store,
        inbound(1),
        inbound(2, BERT, "/stop", kind="text"),
        inbound(3, BERT, "/stopwatch", kind="command"),
        inbound(4, BERT, "/stop", kind="command"),
    )
    assert (await claim(store)).message.message_id == "4"
    assert (await claim(store)).message.message_id == "1"


async def test_a_claim_has_a_lease(store: Store, clock: Clock) -> None:
    (received,) = await receive(store, inbound(1))
    clock.now_s = 1010.0
    await claim(store)
    entry = await store.history.entry(received.id)
    assert entry is not None
    assert (entry.status, entry.claimed_by, entry.lease_until_s) == ("PROCESSING", "june", 1070.0)
    assert (entry.created_at_s, entry.updated_at_s) == (1000.0, 1010.0)


async def test_what_was_heard_and_shown_is_there_at_the_next_attempt(store: Store) -> None:
    await receive(store, recording(1))
    received = await claim(store)
    await store.inbox.note_transcript(received.id, Transcript("Guten Tag", "de", 2.5, full_window_retries=1))
    await store.inbox.note_preview(received.id, "88")
    await store.inbox.release(received.id)
    again = await claim(store)
    assert again == replace(
        received,
        transcript=Transcript("Guten Tag", "de", 2.5),
        preview_id="88",
    )


async def test_a_recording_in_which_nothing_was_heard_has_a_transcript(store: Store) -> None:
    (received,) = await receive(store, recording(1))
    await store.inbox.note_transcript(received.id, Transcript("", "en", 1.0))
    assert (await claim(store)).transcript == Transcript("", "en", 1.0)


async def test_a_message_is_finished_once(store: Store) -> None:
    (received,) = await receive(store, inbound(1))
    assert not await store.inbox.finish(received.id, [reply()], outcome="answered")  # NEW: nobody works on it
    await claim(store)
    assert await store.inbox.finish(received.id, [reply()], outcome="answered", answer="Hi")
    assert not await store.inbox.finish(
        received.id, [reply()], outcome="failed", status="ERROR", error="late"
    )
    assert not await store.inbox.finish(999, [reply()], outcome="answered")
    assert await store.history.waiting() == Waiting(new=0, processing=0, unsent=1, sending=0, oldest_new_s=0)
    (queued,) = await take(store)
    assert (queued.answers, queued.message.text) == (received.id, "Hi")
    assert await status_of(store, received.id) == "RESPONDED"


async def test_a_message_is_not_finished_without_its_replies(store: Store) -> None:
    (received,) = await receive(store, inbound(1))
    await claim(store)
    with pytest.raises(StoreError):
        await store.inbox.finish(
            received.id, [reply(), Outbound(ANNA, "edit", "x", edits=999)], outcome="answered"
        )
    assert await status_of(store, received.id) == "PROCESSING"
    assert await take(store) == ()


async def test_an_answer_that_was_noted_is_not_written_again(store: Store) -> None:
    await receive(store, inbound(1))
    received = await claim(store)
    assert await store.inbox.note_answer(received.id, "An answer", [reply("An answer")])
    assert not await store.inbox.note_answer(received.id, "Another answer", [reply("Another answer")])
    await store.upkeep.recover(max_attempts=5, explain=explain)
    again = await claim(store)
    assert again == replace(received, answer="An answer", attempts=2)
    assert await store.inbox.finish(
        again.id, [Outbound(ANNA, "voice", "An answer", VOICE)], outcome="answered"
    )
    assert await store.conversations.messages(ANNA, 10) == (
        ChatMessage("user", "Hello"),
        ChatMessage("assistant", "An answer"),
    )
    sent = []
    while rows := await take(store):
        await store.outbox.mark_sent([row.id for row in rows])
        sent += [(row.message.kind, row.answers) for row in rows]
    assert sent == [("text", received.id), ("voice", received.id)]


async def test_a_group_note_that_was_not_for_june_is_forgotten(store: Store) -> None:
    (received,) = await receive(store, replace(recording(1), text="a caption", is_addressed=False))
    await claim(store)
    await store.inbox.note_transcript(received.id, Transcript("a secret", "en", 2.0))
    assert await store.inbox.finish(received.id, [], outcome="not_addressed", forget_text=True)
    entry = await store.history.entry(received.id)
    assert entry is not None
    assert (entry.text, entry.transcript, entry.has_audio) == ("", None, False)
    assert not await store.inbox.retry_last(ANNA)
    assert await receive(store, recording(1)) == []  # still known


async def test_released_work_costs_no_attempt(store: Store) -> None:
    await receive(store, inbound(1))
    received = await claim(store)
    await store.inbox.release(received.id)
    assert await claim(store) == received
    assert received.attempts == 1
    await store.inbox.finish(received.id, [], outcome="answered")
    await store.inbox.release(received.id)
    assert await status_of(store, received.id) == "RESPONDED"


async def test_what_june_was_killed_over_is_tried_again_until_its_attempts_are_spent(
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


async def test_what_was_being_sent_goes_on_after_a_crash(path: Path) -> None:
    async with open_store(path) as store:
        (message_id,) = await store.outbox.enqueue([reply()])
        await take(store)
        await store.outbox.note_delivered(message_id, Delivered("1", "text", "H"))
    async with open_store(path) as store:
        assert await take(store) == ()
        await store.upkeep.recover(max_attempts=5, explain=explain)
        (queued,) = await take(store)
        assert (queued.attempts, queued.delivered) == (2, (Delivered("1", "text", "H"),))


async def test_the_last_message_can_be_answered_anew(store: Store) -> None:
    assert not await store.inbox.retry_last(ANNA)
    await answer(store, "Who?", "June")
    last = await answer(store, "Why?", "Because")
    (done,) = await receive(store, inbound(2, text="/voice on", kind="command"))
    await claim(store)
    await store.inbox.finish(done.id, [], outcome="command")
    (command,) = await receive(store, inbound(3, text="/retry", kind="command"))
    await claim(store)
    assert not await store.inbox.retry_last(BERT)
    assert await store.inbox.retry_last(ANNA)
    assert await store.conversations.messages(ANNA, 10) == (
        ChatMessage("user", "Who?"),
        ChatMessage("assistant", "June"),
    )
    await store.inbox.finish(command.id, [], outcome="command")
    again = await claim(store)
    assert (again.id, again.attempts, again.answer) == (last, 1, "")


# The conversation


async def test_a_conversation_holds_whole_turns_of_one_chat(store: Store) -> None:
    for number in range(4):
        await answer(store, f"question {number}", f"answer {number}")
    await answer(store, "elsewhere", "too", BERT)
    await receive(store, inbound(9, text="open"), inbound(10, text="waits"))
    await claim(store)
    expected = tuple(
        message
        for number in (2, 3)
        for message in (
            ChatMessage("user", f"question {number}"),
            ChatMessage("assistant", f"answer {number}"),
        )
    )
    assert await store.conversations.messages(ANNA, 5) == expected
    assert await store.conversations.messages(ANNA, 0) == ()
    assert len(await store.conversations.messages(ANNA, 100)) == 8


async def test_the_beginning_of_a_long_conversation_moves_seldom(store: Store) -> None:
    beginnings = []
    for number in range(1, 25):
        await receive(store, inbound(number, text=f"question {number}"))
        await store.inbox.finish((await claim(store)).id, [], outcome="answered", answer="answer")
        shown = await store.conversations.messages(ANNA, 16)
        assert shown[-2].content == f"question {number}"
        assert len(shown) <= 16
        beginnings.append(shown[0].content)
    assert list(dict.fromkeys(beginnings)) == [f"question {number}" for number in (1, 5, 9, 13, 17)]


async def test_caption_and_recording_are_one_question(store: Store) -> None:
    await receive(store, replace(recording(1), text="Listen:"))
    received = await claim(store)
    await store.inbox.note_transcript(received.id, Transcript("the sea", "en", 1.0))
    await store.inbox.finish(received.id, [], outcome="answered", answer="I hear it.")
    assert (await store.conversations.messages(ANNA, 2))[0].content == "Listen:\nthe sea"


async def test_a_conversation_holds_what_was_heard_and_no_failures(store: Store) -> None:
    (voice,) = await receive(store, recording(1))
    await claim(store)
    await store.inbox.note_transcript(voice.id, Transcript("spoken", "en", 1.0))
    await store.inbox.finish(voice.id, [], outcome="answered", answer="heard")
    (failed,) = await receive(store, inbound(2))
    await claim(store)
    await store.inbox.finish(failed.id, [], outcome="failed", status="ERROR", error="llm_failed")
    assert await store.conversations.messages(ANNA, 10) == (
        ChatMessage("user", "spoken"),
        ChatMessage("assistant", "heard"),
    )


async def test_forgetting_spares_other_chats_and_what_is_said_after(store: Store) -> None:
    await answer(store, "old", "old")
    await answer(store, "elsewhere", "elsewhere", BERT)
    await store.conversations.set_preferences(ANNA, ChatPreferences("voice", "de"))
    reset, _ = await receive(store, inbound(2, text="/reset", kind="command"), inbound(3, text="new"))
    await claim(store)
    await store.conversations.forget(ANNA)  # "new" waits already
    await store.inbox.finish(reset.id, [], outcome="command")
    new = await claim(store)
    await store.inbox.finish(new.id, [], outcome="answered", answer="too")
    assert [message.content for message in await store.conversations.messages(ANNA, 10)] == ["new", "too"]
    assert len(await store.conversations.messages(BERT, 10)) == 2
    assert await store.conversations.preferences(ANNA) == ChatPreferences("voice", "de")


# The outbox


async def test_a_reply_comes_out_as_it_went_in(store: Store, clock: Clock) -> None:
    (first,) = await store.outbox.enqueue([reply()])
    message = Outbound(
        "discord:5/6",
        "voice",
        "spoken words",
        VOICE,
        reply_to="1",
        echo="what was heard",
        preview_id="2",
        edits=first,
        text_is_sent=True,
    )
    (message_id,) = await store.outbox.enqueue([message])
    (queued,) = await take(store, ANNA)
    expected = DueMessage(message_id, message, answers=0, attempts=1, delivered=(), created_at_s=clock.now_s)
    assert queued == expected
    entry = await store.history.entry(message_id)
    assert entry is not None
    assert (entry.platform, entry.has_audio, entry.duration_s) == ("discord", True, 2.5)
    assert await store.outbox.message(message_id) == expected
    (received,) = await receive(store, inbound(1))
    assert await store.outbox.message(received.id) is None


async def test_each_message_has_a_trace_that_its_replies_share_and_an_answer_anew_another(
    store: Store, clock: Clock
) -> None:
    first, second = await receive(store, inbound(1), inbound(2))
    assert len({trace_id(first.trace_context), trace_id(second.trace_context), ""}) == 3
    assert (await claim(store)).trace_context == first.trace_context
    await store.inbox.finish(first.id, [reply()], outcome="answered", answer="Hi")
    await claim(store)
    await store.inbox.finish(second.id, [], outcome="stopped")
    await store.outbox.enqueue([reply("unasked", BERT)])
    sent = [row.trace_context for row in (*await take(store), *await take(store, ANNA))]
    assert sent == [first.trace_context, ""]
    clock.now_s += 50
    assert await store.inbox.retry_last(ANNA)
    again = await claim(store)
    assert again.id == second.id
    assert again.received_at_s == clock.now_s
    assert trace_id(again.trace_context) not in {trace_id(second.trace_context), ""}


async def test_a_chat_is_sent_in_order_and_one_message_at_a_time(store: Store) -> None:
    await store.outbox.enqueue([reply("one"), reply("two"), reply("three", BERT)])
    (one,) = await take(store)
    assert await taken_texts(store) == ["three"]
    assert await take(store) == ()
    await store.outbox.mark_sent([one.id])
    assert await status_of(store, one.id) == "SENT"
    assert await taken_texts(store) == ["two"]


async def test_a_postponed_message_holds_back_its_chat_only(store: Store, clock: Clock) -> None:
    await store.outbox.enqueue([reply("one"), reply("two"), reply("three", BERT)])
    (one,) = await take(store)
    await store.outbox.postpone([one.id], due_at_s=clock.now_s + 30, error="429")
    assert await taken_texts(store) == ["three"]
    assert await take(store) == ()
    assert await store.outbox.next_due_s(exclude_chats=(), group_window_s=1) == 30
    assert await store.outbox.next_due_s(exclude_chats=[ANNA], group_window_s=1) is None
    clock.now_s += 31
    assert await store.outbox.next_due_s(exclude_chats=(), group_window_s=1) == 0
    (again,) = await take(store)
    assert (again.message.text, again.attempts) == ("one", 2)


async def test_the_oldest_due_message_goes_first(store: Store, clock: Clock) -> None:
    await store.outbox.enqueue([reply("one"), reply("two", BERT)])
    (one,) = await take(store)
    await store.outbox.postpone([one.id], due_at_s=clock.now_s + 5, error="502")
    clock.now_s += 10
    assert await taken_texts(store) == ["two"]
    assert await taken_texts(store) == ["one"]


async def test_an_excluded_chat_is_passed_over(store: Store) -> None:
    await store.outbox.enqueue([reply("one"), reply("two", BERT)])
    assert [row.message.text for row in await take(store, ANNA)] == ["two"]
    assert await take(store, ANNA) == ()


def notice(text: str, chat: str = ANNA) -> Outbound:
    return Outbound(chat, "text", text, may_group=True)


async def test_short_messages_wait_for_one_another(store: Store, clock: Clock) -> None:
    await store.outbox.enqueue([notice("one"), reply("elsewhere", BERT), reply("waits", BERT)])
    assert await taken_texts(store) == ["elsewhere"]
    clock.now_s += 0.5
    await store.outbox.enqueue([notice("two")])
    assert await take(store) == ()
    assert await store.outbox.next_due_s(exclude_chats=(), group_window_s=1) == 0.5
    clock.now_s += 0.5
    assert await taken_texts(store) == ["one", "two"]


async def test_an_answer_does_not_wait_for_short_messages(store: Store) -> None:
    await store.outbox.enqueue([notice("one"), notice("two"), reply("answer"), notice("three")])
    group = await take(store)
    assert [row.message.text for row in group] == ["one", "two"]
    await store.outbox.mark_sent([row.id for row in group])
    assert await taken_texts(store) == ["answer"]


async def test_only_text_is_grouped(store: Store) -> None:
    await store.outbox.enqueue([Outbound(ANNA, "voice", "spoken", VOICE, may_group=True), notice("one")])
    assert await taken_texts(store) == ["spoken"]


async def test_a_postponed_group_stays_together(store: Store, clock: Clock) -> None:
    await store.outbox.enqueue([notice("one"), notice("two")])
    ids = [row.id for row in await take(store, group_window_s=0)]
    await store.outbox.postpone(ids, due_at_s=clock.now_s + 20, error="429")
    clock.now_s += 19
    assert await take(store) == ()
    clock.now_s += 1
    assert [row.id for row in await take(store)] == ids


async def test_what_a_chat_app_took_is_kept_in_order(store: Store) -> None:
    (message_id,) = await store.outbox.enqueue([reply()])
    parts = (
        Delivered("5", "text", "<b>one</b> 'quoted' \\", "html", edited=True),
        Delivered("6", "voice"),
    )
    for part in parts:
        await store.outbox.note_delivered(message_id, part)
    queued = await store.outbox.message(message_id)
    assert queued is not None
    assert queued.delivered == parts


async def test_giving_up_tells_the_chat_in_the_same_transaction(store: Store) -> None:
    (message_id,) = await store.outbox.enqueue([reply("one")])
    await take(store)
    await store.outbox.give_up([message_id], error="403", notice=reply("I could not send that"))
    await store.outbox.give_up([message_id], error="403", notice=reply("I could not send that"))
    entry = await store.history.entry(message_id)
    assert entry is not None
    assert (entry.status, entry.error) == ("ERROR", "403")
    (told,) = await take(store)
    assert told.message == reply("I could not send that")
    await store.outbox.mark_sent([told.id])
    assert await take(store) == ()


@pytest.mark.parametrize("late", ["mark_sent", "postpone", "give_up"])
async def test_a_message_that_is_not_being_sent_keeps_its_status(
    store: Store, late: Literal["mark_sent", "postpone", "give_up"]
) -> None:
    ids = await store.outbox.enqueue([reply("one")])
    if late == "mark_sent":
        await store.outbox.mark_sent(ids)
        assert await status_of(store, ids[0]) == "NEW"
        return
    await take(store)
    await store.outbox.mark_sent(ids)
    if late == "postpone":
        await store.outbox.postpone(ids, due_at_s=0, error="")
    else:
        await store.outbox.give_up(ids, error="")
    assert await status_of(store, ids[0]) == "SENT"


async def test_old_recordings_are_deleted_and_their_text_stays(store: Store, clock: Clock) -> None:
    spoken = Outbound(ANNA, "voice", "spoken", VOICE)
    sent, given_up, recent, unsent = await store.outbox.enqueue([spoken] * 4)
    await take(store)
    await store.outbox.mark_sent([sent])
    await take(store)
    await store.outbox.give_up([given_up], error="403")
    clock.now_s += 100
    await take(store)
    await store.outbox.mark_sent([recent])
    assert await store.upkeep.prune(audio_age_s=0, keep_turns=0) == Pruned(messages=0, voices=2)
    kept = {entry.id: entry.has_audio for entry in await store.history.entries()}
    assert kept == {sent: False, given_up: False, recent: True, unsent: True}
    queued = await store.outbox.message(sent)
    assert queued is not None
    assert queued.message == replace(spoken, voice=None)
    (waiting,) = await take(store)
    assert waiting.message == spoken


# Chats and people


async def test_a_chat_keeps_its_preferences(store: Store) -> None:
    assert await store.conversations.preferences(ANNA) == ChatPreferences()
    await store.conversations.set_preferences(ANNA, ChatPreferences(mode="both"))
    await store.conversations.forget(ANNA)
    await store.conversations.set_preferences(ANNA, ChatPreferences(language="de"))
    assert await store.conversations.preferences(ANNA) == ChatPreferences(language="de")
    assert await store.conversations.preferences(BERT) == ChatPreferences()


async def test_people_are_let_in_and_shut_out(store: Store, clock: Clock) -> None:
    assert await store.people.access(ANNA) is None
    await store.people.set_access(ANNA, "allowed", name="Anna", added_by="telegram:9")
    await store.people.set_access(BERT, "allowed", name="Bert", added_by="telegram:9")
    clock.now_s += 1
    await store.people.set_access(ANNA, "denied", name="Anna", added_by="telegram:8")
    assert await store.people.access(ANNA) == "denied"
    assert await store.people.all() == [
        Person(BERT, "allowed", "Bert", "telegram:9", 1000.0),
        Person(ANNA, "denied", "Anna", "telegram:8", 1001.0),
    ]


async def test_a_pairing_code_is_good_once_and_for_a_while(store: Store, clock: Clock) -> None:
    await store.people.add_pairing_code("K7QM", made_by="telegram:9", valid_s=60)
    await store.people.add_pairing_code("P3XA", made_by="telegram:9", valid_s=60)
    assert not await store.people.redeem("k7qm", ANNA, "Anna")
    assert await store.people.redeem("K7QM", ANNA, "Anna")
    assert not await store.people.redeem("K7QM", BERT, "Bert")
    clock.now_s += 60
    assert not await store.people.redeem("P3XA", BERT, "Bert")
    assert not await store.people.redeem("\ud800", BERT, "Bert")
    assert await store.people.all() == [Person(ANNA, "allowed", "Anna", "telegram:9", 1000.0)]


async def test_who_was_shut_out_cannot_use_a_code(store: Store) -> None:
    await store.people.set_access(BERT, "denied", name="Bert", added_by="telegram:9")
    await store.people.add_pairing_code("K7QM", made_by="telegram:9", valid_s=60)
    assert not await store.people.redeem("K7QM", BERT, "Bert")
    assert await store.people.access(BERT) == "denied"
    await store.people.set_access(BERT, "allowed", name="Bert", added_by="telegram:9")
    assert await store.people.redeem("K7QM", BERT, "Bert")


async def test_a_pairing_code_is_not_in_the_file(store: Store, path: Path) -> None:
    await store.people.add_pairing_code("K7QM-ABCD-EFGH", made_by="telegram:9", valid_s=60)
    files = [file.read_bytes() for file in path.parent.iterdir()]
    assert any(b"telegram:9" in content for content in files)
    assert not any(b"K7QM-ABCD-EFGH" in content for content in files)


async def test_what_a_person_spent_is_what_was_received_since(store: Store, clock: Clock) -> None:
    assert await store.history.spent(ANNA, since_s=0) == Spent(0, 0.0)
    await receive(store, recording(1), inbound(2))
    clock.now_s += 60
    (voice, _) = await receive(store, recording(3), recording(3, BERT))
    await receive(store, recording(3))
    assert await store.history.spent(ANNA, since_s=0) == Spent(3, 60.0)
    assert await store.history.spent(ANNA, since_s=clock.now_s) == Spent(1, 30.0)
    await store.inbox.note_transcript(voice.id, Transcript("short", "en", 2.0))  # its real length
    assert await store.history.spent(ANNA, since_s=clock.now_s) == Spent(1, 2.0)


# Reading


async def test_history_is_the_newest_messages_oldest_first(store: Store, clock: Clock) -> None:
    await receive(store, inbound(1), inbound(2, BERT), inbound(3))
    clock.now_s += 10
    await receive(store, inbound(4))
    await store.outbox.enqueue([reply("out")])

    async def seen(*, chat: str = "", since_s: float = 0, limit: int = 100) -> list[str]:
        entries = await store.history.entries(chat=chat, since_s=since_s, limit=limit)
        return [entry.platform_message_id or entry.text for entry in entries]

    assert await seen() == ["1", "2", "3", "4", "out"]
    assert await seen(chat=ANNA) == ["1", "3", "4", "out"]
    assert await seen(chat=ANNA, limit=2) == ["4", "out"]
    assert await seen(since_s=clock.now_s) == ["4", "out"]
    assert await seen(chat=ANNA, since_s=clock.now_s) == ["4", "out"]
    assert await seen(chat="telegram:404") == []


async def test_an_entry_tells_all_that_is_kept(store: Store) -> None:
    (received,) = await receive(store, recording(1))
    await claim(store)
    await store.inbox.note_transcript(received.id, Transcript("Wie geht's?", "de", 2.0))
    answer_text = Outbound(ANNA, "text", "**Gut**", echo="Wie geht's?", reply_to="1")
    await store.inbox.finish(received.id, [answer_text], outcome="answered", answer="**Gut**")
    question = await store.history.entry(received.id)
    assert question is not None
    assert question.direction == "in"
    assert (question.user, question.role, question.kind) == (ANNA, "owner", "voice")
    assert (question.transcript, question.language, question.duration_s) == ("Wie geht's?", "de", 2.0)
    assert (question.answer, question.outcome, question.has_audio) == ("**Gut**", "answered", True)
    reply_entry = (await store.history.entries())[-1]
    assert reply_entry.direction == "out"
    assert (reply_entry.answers, reply_entry.reply_to) == (received.id, "1")
    assert (reply_entry.echo, reply_entry.text) == ("Wie geht's?", "**Gut**")
    assert (reply_entry.transcript, reply_entry.has_audio) == (None, False)
    assert await store.history.entry(999) is None


async def test_stats_count_and_time(store: Store, clock: Clock) -> None:
    assert (await store.history.stats()).response_p50_s is None
    for seconds in range(1, 21):
        (received,) = await receive(store, inbound(seconds))
        await claim(store)
        clock.now_s += seconds
        await store.inbox.finish(received.id, [reply()], outcome="answered")
    (command,) = await receive(store, inbound(98, kind="command"))
    await claim(store)
    clock.now_s += 100
    await store.inbox.finish(command.id, [], outcome="command")
    begin_s = clock.now_s = 5000.0
    await receive(store, inbound(99, kind="command"))
    stats = await store.history.stats()
    assert (stats.response_p50_s, stats.response_p95_s) == (10.0, 19.0)
    counts = {(c.direction, c.platform, c.kind, c.status): c.messages for c in stats.counts}
    assert counts == {
        ("in", "telegram", "command", "NEW"): 1,
        ("in", "telegram", "command", "RESPONDED"): 1,
        ("in", "telegram", "text", "RESPONDED"): 20,
        ("out", "telegram", "text", "NEW"): 20,
    }
    assert [count.messages for count in (await store.history.stats(since_s=begin_s)).counts] == [1]


async def test_waiting_counts_what_is_not_done(store: Store, clock: Clock) -> None:
    await receive(store, inbound(1), inbound(2, BERT))
    clock.now_s += 5
    await receive(store, inbound(3, BERT))
    await claim(store)
    await store.outbox.enqueue([reply("one"), reply("two"), reply("three")])
    await take(store)
    clock.now_s += 2
    assert await store.history.waiting() == Waiting(
        new=2, processing=1, unsent=2, sending=1, oldest_new_s=7.0
    )
