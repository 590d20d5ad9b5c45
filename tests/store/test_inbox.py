"""The inbox: each message is received, claimed and finished once."""

from dataclasses import replace

import pytest

from june.errors import StoreError
from june.messages import Attachment, ChatMessage, Delivered, Inbound, Outbound, Transcript
from june.store import Received, Store, Waiting
from june.telemetry import trace_id
from tests.stored import (
    ANNA,
    BERT,
    VOICE,
    Clock,
    answer,
    claim,
    explain,
    inbound,
    place_by_default,
    receive,
    recording,
    reply,
    status_of,
    take,
    taken_texts,
)


async def test_a_received_message_is_read_back_unchanged(store: Store, clock: Clock) -> None:
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
    new = await store.inbox.receive([(message, "allowed")], place=place_by_default)
    expected = Received(
        id=new[0].id,
        message=replace(message, route="assistant"),
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


async def test_a_message_that_the_platform_repeats_is_received_once(store: Store) -> None:
    first = await receive(store, inbound(1), inbound(1), inbound(1, BERT))
    assert [row.message.chat for row in first] == [ANNA, BERT]
    await claim(store)
    again = await receive(store, inbound(1), inbound(2))
    assert [row.message.message_id for row in again] == ["2"]
    assert await store.history.waiting() == Waiting(new=2, processing=1, unsent=0, sending=0, oldest_new_s=0)


async def test_batch_cursor_and_replies_are_one_transaction(store: Store) -> None:
    assert await store.inbox.cursor("telegram") == ""
    await store.inbox.receive(
        [(inbound(1), "owner")],
        place=place_by_default,
        cursor=("telegram", "5"),
        replies=[reply("Slowly, please")],
    )
    assert await store.inbox.cursor("telegram") == "5"
    assert await taken_texts(store) == ["Slowly, please"]

    bad_reply = Outbound(ANNA, "edit", "x", edits=999)  # no message has this id
    with pytest.raises(StoreError):
        await store.inbox.receive(
            [(inbound(2), "owner")], place=place_by_default, cursor=("telegram", "6"), replies=[bad_reply]
        )
    assert await store.inbox.cursor("telegram") == "5"
    assert [row.message.message_id for row in await receive(store, inbound(2))] == ["2"]


async def test_text_that_sqlite_cannot_store_does_not_stop_a_batch(store: Store) -> None:
    strange = replace(inbound(1, text="a\ud800b\0c"), user_name="\udfff", attachment=Attachment("\0\ud800"))
    received = await receive(store, strange, inbound(2))
    assert [row.message.text for row in received] == ["a\ufffdb\ufffdc", "Hello"]
    got = await claim(store)
    assert got.message.user_name == "\ufffd"
    assert await store.inbox.finish(got.id, [reply("\ud83d")], outcome="answered", answer="\0")
    (due,) = await take(store)
    await store.outbox.note_delivered(due.id, Delivered("9", "text", "\ud83d"))
    outbound = await store.outbox.message(due.id)
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


async def test_stop_is_claimed_before_messages_that_wait_longer(store: Store) -> None:
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


async def test_the_next_attempt_finds_the_transcript_and_the_preview(store: Store) -> None:
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


async def test_a_silent_recording_has_an_empty_transcript(store: Store) -> None:
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
    (due,) = await take(store)
    assert (due.answers, due.message.text) == (received.id, "Hi")
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


async def test_a_stored_answer_is_not_written_again(store: Store) -> None:
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


async def test_the_content_of_a_group_note_that_was_not_for_june_is_deleted(store: Store) -> None:
    (received,) = await receive(store, replace(recording(1), text="a caption", is_addressed=False))
    await claim(store)
    await store.inbox.note_transcript(received.id, Transcript("a secret", "en", 2.0))
    assert await store.inbox.finish(received.id, [], outcome="not_addressed", forget_text=True)
    entry = await store.history.entry(received.id)
    assert entry is not None
    assert (entry.text, entry.transcript, entry.has_audio) == ("", None, False)
    assert not await store.inbox.retry_last(ANNA)
    assert await receive(store, recording(1)) == []  # the message itself is still known


async def test_released_work_costs_no_attempt(store: Store) -> None:
    await receive(store, inbound(1))
    received = await claim(store)
    await store.inbox.release(received.id)
    assert await claim(store) == received
    assert received.attempts == 1
    await store.inbox.finish(received.id, [], outcome="answered")
    await store.inbox.release(received.id)
    assert await status_of(store, received.id) == "RESPONDED"


async def test_the_last_message_can_be_answered_again(store: Store) -> None:
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
