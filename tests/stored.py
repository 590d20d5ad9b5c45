"""Messages for the tests of the store, and the calls that most of them make."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from june.conversation.deciding import Rules, place
from june.messages import Attachment, Inbound, InboundKind, Outbound, Voice
from june.sections import RoutesSettings
from june.store import DueMessage, Received, Store

ANNA = "telegram:1"
BERT = "telegram:2"
VOICE = Voice(ogg_opus=b"OggS" * 2000, duration_s=2.5, waveform=bytes(range(25)))

place_by_default = partial(place, rules=Rules(RoutesSettings(), ("june",)))
"""How june stores a message if nothing is set."""
place_in_queue = partial(place, rules=Rules(RoutesSettings(owner="queue", allowed="queue"), ("june",)))
"""How june stores a message if all of them are for the queue."""


@dataclass
class Clock:
    """A clock that a test sets, in seconds since 1970."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        """Return the time that the test has set."""
        return self.now_s


def inbound(
    message_id: int | str, chat: str = ANNA, text: str = "Hello", *, kind: InboundKind = "text", **fields: Any
) -> Inbound:
    fields = {"user": chat, "user_name": "Someone", **fields}
    return Inbound("telegram", str(message_id), chat, kind=kind, text=text, **fields)


def recording(message_id: int, chat: str = ANNA) -> Inbound:
    attachment = Attachment("file-1", size_bytes=4000, duration_s=30.0)
    return replace(inbound(message_id, chat, "", kind="voice"), attachment=attachment)


def reply(text: str = "Hi", chat: str = ANNA) -> Outbound:
    return Outbound(chat, "text", text)


def explain(received: Received) -> Outbound:
    return reply("I gave up", received.message.chat)


async def receive(store: Store, *messages: Inbound) -> list[Received]:
    return await store.inbox.receive([(message, "owner") for message in messages], place=place_by_default)


async def claim(store: Store, *exclude_chats: str) -> Received:
    received = await store.inbox.claim(exclude_chats=exclude_chats, lease_s=60)
    assert received is not None
    return received


async def answer(store: Store, question: str, text: str, chat: str = ANNA) -> int:
    """Receive a question, answer it, and return its id."""
    (received,) = await receive(store, inbound(question, chat, question))
    assert await claim(store) == replace(received, attempts=1)
    assert await store.inbox.finish(received.id, [], outcome="answered", answer=text)
    return received.id


async def take(store: Store, *exclude_chats: str, group_window_s: float = 1.0) -> tuple[DueMessage, ...]:
    return await store.outbox.take_due(exclude_chats=exclude_chats, group_window_s=group_window_s)


async def taken_texts(store: Store, group_window_s: float = 1.0) -> list[str]:
    return [row.message.text for row in await take(store, group_window_s=group_window_s)]


async def status_of(store: Store, message_id: int) -> str:
    entry = await store.history.entry(message_id)
    assert entry is not None
    return entry.status
