"""Which received message is answered when: in order within a chat, many chats at once, so many in all.

What arrives is in the store before it is heard of here, so that nothing is lost with the process. A message
is looked at when it arrives only for what cannot wait its turn: whether it ends the answer in the making.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from june.conversation.addressing import is_stop
from june.conversation.handover import reply_to
from june.conversation.reply import Desk, Reply
from june.errors import JuneError
from june.messages import Transcript
from june.store import Received
from june.telemetry import following, log, note_wait
from june.workers import settled

LEASE_S = 3600.0
"""Longer than any turn: its stages have time limits, and june takes its claims back when it starts."""
MAX_STOP_WORD_S = 3.0
"""Recordings up to this length are listened to at once while an answer is in the making: "stop" is short."""


@dataclass(slots=True)
class _Turn:
    reply: Reply
    task: asyncio.Task[None] | None = None
    is_stopped: bool = False


class Dispatcher:
    """Claims received messages and has them answered."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._settings = desk.settings.chat
        self._store = desk.store
        self._begin_s = time.time()
        self._turns: dict[str, _Turn] = {}
        self._listening: dict[int, asyncio.Task[Transcript | None]] = {}
        self._changed = asyncio.Event()
        self._stopped: set[str] = set()
        self._failure: BaseException | None = None
        self.last_timings_s: dict[str, float] = {}
        """Seconds by stage of the newest answer."""

    def notice(self, arrived: Sequence[Received]) -> None:
        """Hear of messages that were just stored."""
        self._changed.set()
        for received in arrived:
            message = received.message
            turn = self._turns.get(message.chat)
            if turn is None or message.route != "assistant":
                continue
            is_question = message.kind != "command" and message.is_addressed
            interrupts = self._settings.busy == "interrupt" and is_question
            says_stop = is_question and is_stop(message.text, self._settings.names)
            if message.is_stop_command or says_stop or interrupts:
                self._stop(message.chat)
            elif message.attachment is not None and message.attachment.duration_s <= MAX_STOP_WORD_S:
                self._listen(received)

    def was_stopped(self, chat: str) -> bool:
        """Whether an answer was ended in the chat since this was asked last."""
        was_stopped = chat in self._stopped
        self._stopped.discard(chat)
        return was_stopped

    async def run(self) -> None:
        """Answer what the store holds and what arrives, until cancelled; turns in the making go on then.

        Raises:
            StoreError: the store failed.
        """
        while True:
            self._changed.clear()
            if self._failure is not None:
                raise self._failure
            received = None
            if len(self._turns) < self._settings.max_turns:
                received = await self._store.inbox.claim(exclude_chats=self._turns.keys(), lease_s=LEASE_S)
            if received is None:
                await self._changed.wait()
            else:
                self._begin(received)

    async def close(self, timeout_s: float) -> None:
        """Let turns in the making end; those that do not within the time go back to the store."""
        tasks = [turn.task for turn in self._turns.values() if turn.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        for task in (*tasks, *self._listening.values()):
            task.cancel()
            await settled(task)

    def _begin(self, received: Received) -> None:
        if received.message.kind != "command":
            self._stopped.discard(received.message.chat)
        turn = _Turn(reply_to(self._desk, received))
        self._turns[received.message.chat] = turn
        # A message that june was killed over waits since june is back.
        since_s = received.received_at_s if received.attempts == 1 else self._begin_s
        with _following(received):
            note_wait(max(since_s, received.received_at_s))
            turn.task = asyncio.create_task(self._guard(received.message.chat, turn))

    async def _guard(self, chat: str, turn: _Turn) -> None:
        """Run one turn; a failure that is not its own ends the dispatcher."""
        try:
            await self._run(turn)
        except Exception as error:  # raised by `run`: the store is gone
            self._failure = error
        finally:
            del self._turns[chat]
            self._changed.set()

    async def _run(self, turn: _Turn) -> None:
        reply = turn.reply
        try:
            if (listening := self._listening.get(reply.received.id)) is not None:
                transcript = await asyncio.shield(listening)
                reply.received = replace(reply.received, transcript=transcript)
            await reply.make()
            self.last_timings_s = reply.timings_s or self.last_timings_s
        except asyncio.CancelledError:
            if not turn.is_stopped:
                await self._store.inbox.release(reply.received.id)
                raise
            await reply.end_early()
            log.info("turn.stopped")

    def _stop(self, chat: str) -> None:
        """End the answer that is in the making in a chat, if there is one."""
        turn = self._turns.get(chat)
        if turn is not None and turn.task is not None and turn.reply.may_be_stopped:
            turn.is_stopped = True
            turn.task.cancel()
            self._stopped.add(chat)

    def _listen(self, received: Received) -> None:
        """Hear a short recording before its turn comes: it may say "stop"."""
        if len(self._listening) < self._settings.max_turns:
            with _following(received):
                task = asyncio.create_task(self._listen_for_stop(received))
            self._listening[received.id] = task
            task.add_done_callback(lambda _: self._listening.pop(received.id))

    async def _listen_for_stop(self, received: Received) -> Transcript | None:
        try:
            transcript = (await self._desk.hear(received)).transcript
        except JuneError:  # it is told of when its turn comes
            return None
        if is_stop(transcript.text, self._settings.names):
            self._stop(received.message.chat)
        return transcript


def _following(received: Received) -> AbstractContextManager[None]:
    return following(received.trace_context, turn=received.id, chat=received.message.chat)
