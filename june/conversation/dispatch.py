"""Which received message is answered when: in order within a chat, many chats at once, so many in all.

What arrives is in the store before it is heard of here, so that nothing is lost with the process. A message
is looked at when it arrives only for what cannot wait its turn: whether it ends the answer in the making.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from june.conversation.attending import Attendant, Desk
from june.conversation.deciding import Action, Answer, Hear, Stop, decide_received
from june.conversation.work import Work
from june.messages import Transcript
from june.store import Received
from june.telemetry import following, log, note_wait
from june.workers import settled

LEASE_S = 3600.0
"""Longer than any turn: its stages have time limits, and june takes its claims back when it starts."""
MAX_STOP_WORD_S = 3.0
"""Recordings up to this length are heard at once while an answer is in the making: "stop" is short."""


@dataclass(slots=True)
class _Turn:
    work: Work
    chat: str
    task: asyncio.Task[None] | None = None
    is_stopped: bool = False


class Dispatcher:
    """Claims received messages and has them attended to.

    Attributes:
        last_timings_s: seconds by stage of the newest answer.
    """

    def __init__(self, desk: Desk) -> None:
        self._attendant = Attendant(desk)
        self._settings = desk.chat
        self._inbox = desk.store.inbox
        self._begin_s = time.time()
        self._turns: dict[str, _Turn] = {}
        self._changed = asyncio.Event()
        self._stopped: set[str] = set()
        self._failure: BaseException | None = None
        self.last_timings_s: dict[str, float] = {}

    def notice(self, arrived: Sequence[Received]) -> None:
        """Take note of messages that were just stored."""
        self._changed.set()
        for received in arrived:
            if received.message.chat in self._turns:
                self._look_early(received)

    def was_stopped(self, chat: str) -> bool:
        """Return whether an answer was ended in the chat since this was asked last."""
        was_stopped = chat in self._stopped
        self._stopped.discard(chat)
        return was_stopped

    def move(self, old: str, new: str) -> None:
        """Take note of a chat's new name: what arrives there ends the answer that was begun under the old."""
        if old in self._turns and new not in self._turns:
            turn = self._turns.pop(old)
            self._turns[new] = turn
            turn.chat = new

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
                received = await self._inbox.claim(exclude_chats=self._turns.keys(), lease_s=LEASE_S)
            if received is None:
                await self._changed.wait()
            else:
                self._begin(received)

    async def close(self, timeout_s: float) -> None:
        """Let turns in the making end; those that do not within the time go back to the store."""
        tasks = [turn.task for turn in self._turns.values() if turn.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        for task in tasks:
            task.cancel()
            await settled(task)
        await self._attendant.hearing.close()

    def _begin(self, received: Received) -> None:
        if received.message.kind != "command":
            self._stopped.discard(received.message.chat)
        turn = _Turn(self._attendant.take(received), received.message.chat)
        self._turns[received.message.chat] = turn
        # A message that june was killed over waits since june is back.
        since_s = received.received_at_s if received.attempts == 1 else self._begin_s
        with _following(received):
            note_wait(max(since_s, received.received_at_s))
            turn.task = asyncio.create_task(self._guard(turn))

    async def _guard(self, turn: _Turn) -> None:
        """Run one turn; a failure that is not its own ends the dispatcher."""
        try:
            await self._run(turn)
        except Exception as error:  # raised by `run`: the store is gone
            self._failure = error
        finally:
            del self._turns[turn.chat]
            self._changed.set()

    async def _run(self, turn: _Turn) -> None:
        work = turn.work
        try:
            await self._attendant.attend(work)
            self.last_timings_s = dict(work.timings_s) or self.last_timings_s
        except asyncio.CancelledError:
            if not turn.is_stopped:
                await self._inbox.release(work.received.id)
                raise
            await work.ending.stop()
            log.info("turn.stopped")

    def _look_early(self, received: Received) -> None:
        """End the answer in the making if a message that waits behind it says so; a short one is heard."""
        message = received.message
        action = decide_received(received, self._attendant.rules, is_answering=True)
        if self._ends_answer(action, is_addressed=message.is_addressed):
            self._stop(message.chat)
        elif (
            isinstance(action, Hear)
            and action.route == "assistant"
            and message.attachment is not None
            and message.attachment.duration_s <= MAX_STOP_WORD_S
        ):
            with _following(received):
                self._attendant.hearing.hear_early(received, partial(self._stop_if_heard, received))

    def _ends_answer(self, action: Action, *, is_addressed: bool) -> bool:
        match action:
            case Stop():
                return True
            case Answer() | Hear("assistant"):
                return self._settings.busy == "interrupt" and is_addressed
            case _:
                return False

    def _stop_if_heard(self, received: Received, transcript: Transcript) -> None:
        """End the answer in the making, unless it is that to the message itself, if "stop" was heard."""
        chat = received.message.chat
        turn = self._turns.get(chat)
        if turn is None or turn.work.received.id == received.id:
            return
        rules = self._attendant.rules
        action = decide_received(received, rules, transcript=transcript, is_answering=True)
        if isinstance(action, Stop):
            self._stop(chat)

    def _stop(self, chat: str) -> None:
        """End the answer that is in the making in a chat, if there is one."""
        turn = self._turns.get(chat)
        if turn is not None and turn.task is not None and turn.work.may_be_stopped:
            turn.is_stopped = True
            # Once it has begun: a task that is cancelled before its first step never runs its `finally`.
            asyncio.get_running_loop().call_soon(turn.task.cancel)
            self._stopped.add(chat)


def _following(received: Received) -> AbstractContextManager[None]:
    return following(received.trace_context, turn=received.id, chat=received.message.chat)
