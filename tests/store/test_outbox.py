"""The outbox: each chat is sent in order, in groups, and again after a failure."""

from typing import Literal

import pytest

from june.messages import Delivered, Outbound
from june.store import DueMessage, Store
from june.telemetry import trace_id
from tests.stored import (
    ANNA,
    BERT,
    VOICE,
    Clock,
    claim,
    inbound,
    receive,
    reply,
    status_of,
    take,
    taken_texts,
)


async def test_a_message_to_be_sent_is_read_back_unchanged(store: Store, clock: Clock) -> None:
    (first,) = await store.outbox.add([reply()])
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
    (message_id,) = await store.outbox.add([message])
    (due,) = await take(store, ANNA)
    expected = DueMessage(message_id, message, answers=0, attempts=1, delivered=(), created_at_s=clock.now_s)
    assert due == expected
    entry = await store.history.entry(message_id)
    assert entry is not None
    assert (entry.platform, entry.has_audio, entry.duration_s) == ("discord", True, 2.5)
    assert await store.outbox.message(message_id) == expected
    (received,) = await receive(store, inbound(1))
    assert await store.outbox.message(received.id) is None


async def test_replies_share_the_trace_of_their_message_and_a_retry_gets_a_new_trace(
    store: Store, clock: Clock
) -> None:
    first, second = await receive(store, inbound(1), inbound(2))
    assert len({trace_id(first.trace_context), trace_id(second.trace_context), ""}) == 3
    assert (await claim(store)).trace_context == first.trace_context
    await store.inbox.finish(first.id, [reply()], outcome="answered", answer="Hi")
    await claim(store)
    await store.inbox.finish(second.id, [], outcome="stopped")
    await store.outbox.add([reply("unasked", BERT)])
    sent = [row.trace_context for row in (*await take(store), *await take(store, ANNA))]
    assert sent == [first.trace_context, ""]
    clock.now_s += 50
    assert await store.inbox.retry_last(ANNA)
    again = await claim(store)
    assert again.id == second.id
    assert again.received_at_s == clock.now_s
    assert trace_id(again.trace_context) not in {trace_id(second.trace_context), ""}


async def test_a_chat_is_sent_in_order_and_one_message_at_a_time(store: Store) -> None:
    await store.outbox.add([reply("one"), reply("two"), reply("three", BERT)])
    (one,) = await take(store)
    assert await taken_texts(store) == ["three"]
    assert await take(store) == ()
    await store.outbox.mark_sent([one.id])
    assert await status_of(store, one.id) == "SENT"
    assert await taken_texts(store) == ["two"]


async def test_a_postponed_message_delays_only_its_own_chat(store: Store, clock: Clock) -> None:
    await store.outbox.add([reply("one"), reply("two"), reply("three", BERT)])
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
    await store.outbox.add([reply("one"), reply("two", BERT)])
    (one,) = await take(store)
    await store.outbox.postpone([one.id], due_at_s=clock.now_s + 5, error="502")
    clock.now_s += 10
    assert await taken_texts(store) == ["two"]
    assert await taken_texts(store) == ["one"]


async def test_an_excluded_chat_is_passed_over(store: Store) -> None:
    await store.outbox.add([reply("one"), reply("two", BERT)])
    assert [row.message.text for row in await take(store, ANNA)] == ["two"]
    assert await take(store, ANNA) == ()


def notice(text: str, chat: str = ANNA) -> Outbound:
    return Outbound(chat, "text", text, may_group=True)


async def test_short_messages_wait_for_one_another(store: Store, clock: Clock) -> None:
    await store.outbox.add([notice("one"), reply("elsewhere", BERT), reply("waits", BERT)])
    assert await taken_texts(store) == ["elsewhere"]
    clock.now_s += 0.5
    await store.outbox.add([notice("two")])
    assert await take(store) == ()
    assert await store.outbox.next_due_s(exclude_chats=(), group_window_s=1) == 0.5
    clock.now_s += 0.5
    assert await taken_texts(store) == ["one", "two"]


async def test_an_answer_does_not_wait_for_short_messages(store: Store) -> None:
    await store.outbox.add([notice("one"), notice("two"), reply("answer"), notice("three")])
    group = await take(store)
    assert [row.message.text for row in group] == ["one", "two"]
    await store.outbox.mark_sent([row.id for row in group])
    assert await taken_texts(store) == ["answer"]


async def test_only_text_is_grouped(store: Store) -> None:
    await store.outbox.add([Outbound(ANNA, "voice", "spoken", VOICE, may_group=True), notice("one")])
    assert await taken_texts(store) == ["spoken"]


async def test_a_postponed_group_stays_together(store: Store, clock: Clock) -> None:
    await store.outbox.add([notice("one"), notice("two")])
    ids = [row.id for row in await take(store, group_window_s=0)]
    await store.outbox.postpone(ids, due_at_s=clock.now_s + 20, error="429")
    clock.now_s += 19
    assert await take(store) == ()
    clock.now_s += 1
    assert [row.id for row in await take(store)] == ids


async def test_delivered_pieces_are_stored_in_order(store: Store) -> None:
    (message_id,) = await store.outbox.add([reply()])
    parts = (
        Delivered("5", "text", "<b>one</b> 'quoted' \\", "html", edited=True),
        Delivered("6", "voice"),
    )
    for part in parts:
        await store.outbox.note_delivered(message_id, part)
    due = await store.outbox.message(message_id)
    assert due is not None
    assert due.delivered == parts


async def test_giving_up_tells_the_chat_in_the_same_transaction(store: Store) -> None:
    (message_id,) = await store.outbox.add([reply("one")])
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
    ids = await store.outbox.add([reply("one")])
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
