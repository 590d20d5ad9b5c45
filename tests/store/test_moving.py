"""A chat that gets a new name keeps everything."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from june.messages import ChatMessage, ChatPreferences, Delivered, Outbound
from june.store import Letter, Store, open_store
from tests.stored import claim, inbound, receive, reply, take

OLD, NEW = "telegram:-5", "telegram:-1005"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "june.db") as opened:
        yield opened


async def test_what_was_said_and_what_the_chat_has_set_is_kept_with_its_topics(store: Store) -> None:
    for chat in (OLD, f"{OLD}/77"):
        (received,) = await receive(store, inbound(1, chat, "What is the sky?"))
        await claim(store)
        await store.inbox.finish(received.id, [], outcome="answered", answer="Blue.")
        await store.conversations.set_preferences(chat, ChatPreferences("text", "de"))
    (other,) = await receive(store, inbound(1, "telegram:-55", "Not of this chat"))
    await store.conversations.move(OLD, NEW)
    said = (ChatMessage("user", "What is the sky?"), ChatMessage("assistant", "Blue."))
    for chat in (NEW, f"{NEW}/77"):
        assert await store.conversations.messages(chat, 10) == said
        assert await store.conversations.preferences(chat) == ChatPreferences("text", "de")
    for chat in (OLD, f"{OLD}/77"):
        assert await store.conversations.messages(chat, 10) == ()
        assert await store.conversations.preferences(chat) == ChatPreferences()
    assert [entry.id for entry in await store.history.entries(chat="telegram:-55")] == [other.id]


async def test_a_chat_moves_once(store: Store) -> None:
    await receive(store, inbound(1, OLD))
    await store.conversations.set_preferences(f"{OLD}/77", ChatPreferences("text", "de"))
    assert [await store.conversations.move(OLD, NEW) for _ in range(2)] == [True, False]
    await store.outbox.add([reply("late", OLD)])
    assert [await store.conversations.move(OLD, NEW) for _ in range(2)] == [True, False]


async def test_what_the_chat_forgot_stays_forgotten(store: Store) -> None:
    (received,) = await receive(store, inbound(1, OLD))
    await claim(store)
    await store.inbox.finish(received.id, [], outcome="answered", answer="Hello!")
    await store.conversations.forget(OLD)
    await store.conversations.move(OLD, NEW)
    assert await store.conversations.messages(NEW, 10) == ()


async def test_what_the_new_name_has_set_for_itself_is_stronger(store: Store) -> None:
    await store.conversations.set_preferences(OLD, ChatPreferences("text", "de"))
    await store.conversations.set_preferences(NEW, ChatPreferences("voice", ""))
    await store.conversations.move(OLD, NEW)
    assert await store.conversations.preferences(NEW) == ChatPreferences("voice", "de")


async def test_what_is_to_be_sent_goes_to_the_new_name(store: Store) -> None:
    await store.outbox.add([reply("one", OLD), Outbound(OLD, "text", "two", reply_to="7", preview_id="8")])
    await store.conversations.move(OLD, NEW)
    (first,) = await take(store)
    assert (first.message.chat, first.message.text) == (NEW, "one")
    await store.outbox.mark_sent([first.id])
    (second,) = await take(store)
    assert (second.message.chat, second.message.text) == (NEW, "two")
    assert (second.message.reply_to, second.message.preview_id) == (f"{OLD} 7", f"{OLD} 8")


async def test_no_message_of_the_new_chat_is_mistaken_for_one_of_the_old(store: Store) -> None:
    """A supergroup counts its messages from 1 again."""
    await receive(store, inbound(1, OLD, "old"))
    (sent,) = await store.outbox.add([reply("also old", OLD)])
    await take(store)
    await store.outbox.note_delivered(sent, Delivered("2", "text", "also old"))
    await store.outbox.mark_sent([sent])
    await store.conversations.move(OLD, NEW)
    new = await receive(store, inbound(1, NEW, "new"), inbound(2, NEW, "new, too", reply_to="2"))
    assert [one.message.text for one in new] == ["new", "new, too"]
    kept = await store.outbox.message(sent)
    assert kept is not None
    assert [one.message_id for one in kept.delivered] == [f"{OLD} 2"]


async def test_moving_again_takes_what_came_meanwhile(store: Store) -> None:
    await receive(store, inbound(1, OLD, "first"))
    await store.conversations.move(OLD, NEW)
    await receive(store, inbound(2, OLD, "late"))
    await store.conversations.move(OLD, NEW)
    await store.conversations.move(OLD, NEW)
    assert [entry.text for entry in await store.history.entries(chat=NEW)] == ["first", "late"]
    assert await store.history.entries(chat=OLD) == []


async def test_a_question_waits_for_its_answer_under_the_new_name(store: Store) -> None:
    asked = await store.queue.send(Letter(OLD, "telegram:1", "Shall I?", expires_in_s=60))
    await take(store)
    await store.outbox.note_delivered(asked.id, Delivered("9", "text", "Shall I?"))
    await store.outbox.mark_sent([asked.id])
    await store.conversations.move(OLD, NEW)
    question, answer = await store.feed.reply(asked.id)
    assert (question.chat, question.status, answer) == (NEW, "SENT", None)
