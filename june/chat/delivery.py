"""Sends what stands in the outbox, and keeps what became of it.

One message at a time in a chat, many chats at once. What was interrupted goes on after the last part that was
committed. A part is sent twice only if june is killed between the app's answer and the commit, if that answer
is lost on its way, or if the file cannot be written for some 15 s.

A message whose app is not in the settings stays taken, and its chat waits, until june starts with that app.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from june.chat import Adapter
from june.chat.addresses import private_chat
from june.chat.posting import BACK_OFF, Posting, fitting
from june.chat.wording import GIVEN_UP, VOICE_REFUSED
from june.errors import DeliveryError, JuneError, QueueError
from june.messages import Outbound, Platform
from june.sections import DeliverySettings
from june.store import DueMessage, Store
from june.telemetry import count_error, following, log, stage
from june.workers import settled

MAX_CHATS = 16
"""Chats that something is sent to at a time: half of what Telegram takes in a second."""
FINISH_S = 5.0
"""Time that requests have to end when june stops: half of what Docker grants a whole program by default."""
OUTBOX_RETRY_S = 1.0
"""Until the outbox is read again when it could not be."""

FALLBACK_ATTEMPTS = 3
"""How often a message to the owner is sent to one app before it goes to another: some seven seconds."""


class Delivery:
    """The way from the outbox to the chat apps.

    Args:
        store: holds the outbox.
        adapters: the apps, which it does not own.
        settings: its section.
        move: keeps a chat under its new name; by default the store does.
        clock: seconds since 1970; the store's.
    """

    def __init__(
        self,
        store: Store,
        adapters: Mapping[Platform, Adapter],
        settings: DeliverySettings,
        *,
        move: Callable[[str, str], Awaitable[object]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._adapters = adapters
        self._settings = settings
        self._posting = Posting(store, settings)
        self._move = move or store.conversations.move
        self._clock = clock
        self._group_window_s = settings.group_window_s
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._told: set[tuple[str, str]] = set()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()

    def wake(self) -> None:
        """Look into the outbox: something was put there."""
        self._wake.set()

    async def run(self) -> None:
        """Send what is due, until cancelled.

        What is being sent then is first sent to its end and committed, for `FINISH_S` at most.
        """
        try:
            while True:
                pause_s = await self._start_what_is_due()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
        finally:
            await settled(asyncio.create_task(self._finish()))

    async def drain(self, timeout_s: float) -> None:
        """Return when everything that is due has been sent, or after `timeout_s`.

        For the shutdown: `run` must be running, and from now on notices no longer wait for one another.
        """
        self._group_window_s = 0.0
        self._idle.clear()
        self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def _start_what_is_due(self) -> float | None:
        """Start what is due; return the seconds until more may be due, None: until something happens."""
        self._wake.clear()
        window_s = self._group_window_s
        try:
            while len(self._sending) < MAX_CHATS:
                chats = tuple(self._sending)
                rows = await self._store.outbox.take_due(exclude_chats=chats, group_window_s=window_s)
                if not rows:
                    if not self._sending and not self._wake.is_set():
                        self._idle.set()
                    return await self._store.outbox.next_due_s(exclude_chats=chats, group_window_s=window_s)
                self._start(rows)
        except JuneError as error:  # the file cannot be used for the moment, or too many wait for it
            _count(type(error).__name__)
            log.error("outbox.failed", type=type(error).__name__, detail=str(error))
            return OUTBOX_RETRY_S
        return None

    def _start(self, rows: tuple[DueMessage, ...]) -> None:
        chat = rows[0].message.chat
        platform = chat.partition(":")[0]
        adapter = self._adapters.get(platform)
        if adapter is None:
            log.warning("reply.held", platform=platform, detail="june is not on that app at the moment")
            return
        task = asyncio.create_task(self._deliver(adapter, rows))
        self._sending[chat] = task
        task.add_done_callback(partial(self._ended, chat))

    def _ended(self, chat: str, task: asyncio.Task[None]) -> None:
        del self._sending[chat]
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(
                "reply.held", type=type(error).__name__, detail="its chat waits until june starts again"
            )

    async def _finish(self) -> None:
        tasks = list(self._sending.values())
        if tasks:
            await asyncio.wait(tasks, timeout=FINISH_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, adapter: Adapter, rows: tuple[DueMessage, ...]) -> None:
        """Send one chat's messages, and settle what becomes of each."""
        while rows:
            first = rows[0]
            with following(first.trace_context, turn=first.answers, chat=first.message.chat):
                rows = await self._deliver_first(adapter, rows)

    async def _deliver_first(self, adapter: Adapter, rows: tuple[DueMessage, ...]) -> tuple[DueMessage, ...]:
        """Send the first message, with others if they fit; return the rows to go on with now."""
        group = rows[:1]
        timings_s: dict[str, float] = {}
        kind = group[0].message.kind
        try:
            with stage("send", timings_s, platform=adapter.platform, kind=kind):
                group = fitting(adapter, rows)
                parts = await self._posting.send(adapter, group)
                await self._posting.commit(partial(self._store.outbox.mark_sent, _ids(group)))
        except Exception as error:  # the boundary: whatever one message comes to, the others are sent
            if await self._follow(rows, error):
                return ()
            if await self._postpone_or_give_up(adapter.platform, rows, group, error):
                return ()
        else:
            log.info(
                "reply.sent",
                kind=kind,
                platform=adapter.platform,
                messages=len(group),
                parts=parts,
                seconds=round(timings_s["send"], 4),
                attempts=group[0].attempts,
            )
        return rows[len(group) :]

    async def _follow(self, rows: tuple[DueMessage, ...], error: Exception) -> bool:
        """Return whether the chat has a new name, under which all of it is kept and the rows are due now."""
        if not (isinstance(error, DeliveryError) and error.moved_to):
            return False
        if rows[0].attempts >= self._settings.max_attempts:
            return False
        _count(error.reason)
        now_s, old = self._clock(), rows[0].message.chat
        await self._posting.commit(
            partial(self._store.outbox.postpone, _ids(rows), due_at_s=now_s, error=error.reason)
        )
        await self._posting.commit(partial(self._move, old, error.moved_to))
        return True

    async def _postpone_or_give_up(
        self,
        platform: Platform,
        rows: tuple[DueMessage, ...],
        group: tuple[DueMessage, ...],
        error: Exception,
    ) -> bool:
        """Postpone all the rows and return True, or give up the failed group and return False."""
        failure = error if isinstance(error, DeliveryError) else None
        reason = failure.reason if failure else type(error).__name__
        detail = f"{reason}: {failure}" if failure else reason  # an unexpected error's text may hold anything
        attempts = group[0].attempts
        _count(reason)
        may_pass = failure is None or reason == "try_again"
        if (not may_pass or attempts >= FALLBACK_ATTEMPTS) and await self._send_elsewhere(group[0], detail):
            return False
        if attempts < self._settings.max_attempts and may_pass:
            pause_s = BACK_OFF.pause_s(attempts, failure.retry_after_s if failure else None)
            due_at_s = self._clock() + pause_s
            await self._posting.commit(
                partial(self._store.outbox.postpone, _ids(rows), due_at_s=due_at_s, error=detail)
            )
            log.warning(
                "reply.postponed",
                platform=platform,
                detail=detail,
                attempts=attempts,
                pause_s=round(pause_s, 1),
            )
            return True
        notice = self._notice(group[0].message, reason)
        await self._posting.commit(
            partial(self._store.outbox.give_up, _ids(group), error=detail, notice=notice)
        )
        log.warning("reply.given_up", platform=platform, detail=detail, attempts=attempts)
        return False

    async def _send_elsewhere(self, row: DueMessage, detail: str) -> bool:
        """Return whether a message that its chat does not take goes to the next of its people."""
        users = list(row.message.other_users)
        while users:
            user = users.pop(0)
            try:
                chat = await private_chat(self._store, self._adapters, user)
            except (DeliveryError, QueueError) as error:
                log.warning("readdressing.failed", detail=str(error))
                continue
            change = partial(self._store.outbox.readdress, row.id, chat=chat, user=user, other_users=users)
            await self._posting.commit(change)
            log.warning("reply.readdressed", platform=chat.partition(":")[0], detail=detail)
            self._wake.set()
            return True
        return False

    def _notice(self, message: Outbound, reason: str) -> Outbound | None:
        """Return what the chat gets instead of a message: the words of a voice, and why; None: nothing.

        The words follow what stands in the outbox already; a chat is told once why it gets no voice.
        """
        if reason == "gone" or message.may_group:  # a notice is not explained by another
            return None
        is_voice = message.kind == "voice"
        words = message.text if is_voice and not message.text_is_sent else ""
        sentence = "" if words else GIVEN_UP
        if is_voice and reason in VOICE_REFUSED:
            sentence = "" if (message.chat, reason) in self._told else VOICE_REFUSED[reason]
            self._told.add((message.chat, reason))
        text = "\n\n".join(filter(None, (sentence, words)))
        if not text:
            return None
        return Outbound(
            message.chat,
            "text",
            text,
            reply_to=message.reply_to,
            echo=message.echo if words else "",
            may_group=not words,
        )


def _count(kind: str) -> None:
    count_error("send", kind)


def _ids(rows: Sequence[DueMessage]) -> list[int]:
    return [row.id for row in rows]
