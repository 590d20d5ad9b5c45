"""Conversations: which turns the model is shown, and what a chat has set for itself."""

from dataclasses import replace

from june.messages import ChatMessage, ChatPreferences, Transcript
from june.store import Store
from tests.stored import ANNA, BERT, answer, claim, inbound, receive, recording


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


async def test_the_beginning_of_a_long_conversation_moves_rarely(store: Store) -> None:
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


async def test_forgetting_keeps_other_chats_and_what_is_said_afterwards(store: Store) -> None:
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


async def test_a_chat_keeps_its_preferences(store: Store) -> None:
    assert await store.conversations.preferences(ANNA) == ChatPreferences()
    await store.conversations.set_preferences(ANNA, ChatPreferences(mode="both"))
    await store.conversations.forget(ANNA)
    await store.conversations.set_preferences(ANNA, ChatPreferences(language="de"))
    assert await store.conversations.preferences(ANNA) == ChatPreferences(language="de")
    assert await store.conversations.preferences(BERT) == ChatPreferences()
