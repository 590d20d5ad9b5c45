"""One received message while june works on it: what it is answered with, and how it ends."""

import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Literal, Protocol

from june.conversation.apps import ChatApps
from june.messages import ChatPreferences, Outbound, Usage, Voice
from june.store import Received, Store
from june.telemetry import finish_trace


class Ending(Protocol):
    """How a message ends whose handler does not come to its own end."""

    async def give_up(self, code: str, sentence: str) -> None:
        """Settle a message that failed, and tell its sender why."""

    async def stop(self) -> None:
        """Settle a message whose answer its sender does not want any more."""


class Work:
    """One received message, from its claim to its end.

    Attributes:
        received: the message.
        ending: how it ends if its handler fails or is stopped.
        timings_s: seconds by stage, once it is answered.

    Args:
        received: the message.
        store: where it is settled.
        apps: show that june works on it.
        wake_delivery: called when there is something to send.
    """

    def __init__(
        self, received: Received, store: Store, apps: ChatApps, wake_delivery: Callable[[], None]
    ) -> None:
        self.received = received
        self.ending: Ending = PlainEnding(self)
        self.timings_s: Mapping[str, float] = {}
        self._store = store
        self._apps = apps
        self._wake_delivery = wake_delivery
        self._begin = time.perf_counter()
        self._sign = AsyncExitStack()
        self._is_shown = False
        self._preferences: ChatPreferences | None = None

    @property
    def may_be_stopped(self) -> bool:
        """Whether "stop" ends it: it is june's answer to a person."""
        return self.received.message.kind != "command" and self.received.message.route == "assistant"

    async def preferences(self) -> ChatPreferences:
        """Return what the message's chat has set for itself."""
        if self._preferences is None:
            chat = self.received.message.chat
            self._preferences = await self._store.conversations.preferences(chat)
        return self._preferences

    async def show_working(self, doing: Literal["recording", "typing"]) -> None:
        """Show in the message's chat that june works on an answer, until `hide_working`."""
        if not self._is_shown:
            self._is_shown = True
            await self._sign.enter_async_context(self._apps.working(self.received.message, doing))

    async def hide_working(self) -> None:
        """Show it no more."""
        await self._sign.aclose()

    def reply(self, text: str, preview_id: str = "", echo: str = "") -> Outbound:
        """Return a text that replies to the message."""
        message = self.received.message
        return Outbound(
            message.chat, "text", text, reply_to=message.message_id, preview_id=preview_id, echo=echo
        )

    async def finish(
        self,
        replies: list[Outbound],
        outcome: str,
        *,
        answer: str = "",
        error: str = "",
        status: Literal["RESPONDED", "FORWARDED", "ERROR"] = "RESPONDED",
        forget_text: bool = False,
        timings_s: Mapping[str, float] | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Settle the message with its replies; see `june.store.Inbox.finish`."""
        is_finished = await self._store.inbox.finish(
            self.received.id,
            replies,
            outcome=outcome,
            answer=answer,
            error=error,
            status=status,
            forget_text=forget_text,
            timings_s=timings_s,
            usage=usage,
        )
        self._wake_delivery()
        if is_finished:
            self._end_trace(outcome, error)

    async def hand_over(self, voice: Voice, words: str) -> None:
        """Settle the message by giving it to programs, with its recording and what was heard."""
        if await self._store.inbox.hand_over(self.received.id, voice, text=words):
            self._end_trace("handed_over")

    async def answer_question(self, voice: Voice, words: str) -> None:
        """Settle the message as the answer to a program's question, as above."""
        if await self._store.inbox.answer_question(self.received.id, voice, text=words):
            self._end_trace("handed_over")

    def _end_trace(self, outcome: str, error: str = "") -> None:
        received = self.received
        finish_trace(
            received.received_at_s,
            turn_s=time.perf_counter() - self._begin if received.message.attachment else None,
            platform=received.message.platform,
            outcome=outcome,
            error=error,
            message_id=received.message.message_id,
            kind=received.message.kind,
            role=received.role,
        )


class PlainEnding:
    """The ending of a message that this attempt has not begun to answer; an earlier one may have."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def give_up(self, code: str, sentence: str) -> None:
        """See `Ending`; nobody is told where june neither was spoken to nor has answered."""
        received = self._work.received
        if received.answer:
            replies = [self._work.reply(sentence)]
            await self._work.finish(replies, "answered", answer=received.answer, error=code)
            return
        told = [self._work.reply(sentence, received.preview_id)] if received.message.is_addressed else []
        await self._work.finish(told, "failed", error=code, status="ERROR")

    async def stop(self) -> None:
        """See `Ending`."""
        answer = self._work.received.answer
        await self._work.finish([], "answered" if answer else "stopped", answer=answer)
