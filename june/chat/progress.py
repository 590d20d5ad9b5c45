"""What a person sees while june works: a sign, and the answer as far as it is written.

Whatever goes wrong here is counted and logged, and never reaches the turn.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

from june.backoff import BackOff
from june.chat import Adapter
from june.errors import DeliveryError
from june.store import Received, Store
from june.telemetry import ErrorStage, count_error, log
from june.workers import settled

PREVIEW_INTERVAL_S = 1.0
"""Telegram takes about one message a second in a chat (https://core.telegram.org/bots/faq)."""
PREVIEW_BACK_OFF = BackOff(first_s=1, longest_s=60)
SIGN_RETRY_S = 5.0


class GrowingMessage:
    """The beginning of one answer, shown in its chat while the rest is being written.

    It is a draft where the chat knows drafts, and else one message, which `Delivery` turns into the answer.
    A turn that is repeated goes on with the message of its first attempt.

    Args:
        store: keeps the message's id, so that it is found again after a crash.
        adapter: the app that the question came from.
        received: the question.
    """

    def __init__(self, store: Store, adapter: Adapter, received: Received) -> None:
        self._store = store
        self._adapter = adapter
        self._received = received
        self._message_id = received.preview_id
        self._knows_drafts = True
        self._text = ""
        self._changed = asyncio.Event()
        self._finished = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def show(self, text: str) -> None:
        """Show the beginning of this Markdown instead of what was shown before.

        It appears at once if nothing was shown in the last second, or else the newest text does after it;
        text without anything to see waits for more.
        """
        self._text = text
        self._changed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def finish(self) -> str:
        """Return the id of the message that shows the beginning; "": there is none.

        Nothing is shown any more when it returns: a request in flight is waited for.
        """
        self._finished.set()
        self._changed.set()
        if self._task is not None:
            await settled(self._task)
        return self._message_id

    async def _run(self) -> None:
        try:
            await self._show_changes()
        except Exception as error:  # the boundary: an answer does not fail over its preview
            _count("preview", type(error).__name__)

    async def _show_changes(self) -> None:
        shown = ""
        failures = 0
        while await self._has_changed():
            first = next(iter(self._adapter.parts(self._text)), "")
            if first in ("", shown):
                continue
            try:
                await self._put(first)
            except DeliveryError as error:
                _count("preview", error.reason)
                if error.reason in ("moved", "gone", "refused"):
                    return
                failures += 1
                pause_s = PREVIEW_BACK_OFF.pause_s(failures, error.retry_after_s)
                self._changed.set()  # the same text is still to be shown
            else:
                shown = first
                failures = 0
                pause_s = PREVIEW_INTERVAL_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._finished.wait()

    async def _has_changed(self) -> bool:
        """Wait for a text that was not looked at; return False once the preview is finished."""
        await self._changed.wait()
        self._changed.clear()
        return not self._finished.is_set()

    async def _put(self, part: str) -> None:
        question = self._received.message
        if self._message_id:
            await self._adapter.edit_text(question.chat, self._message_id, part)
            return
        if self._knows_drafts:
            self._knows_drafts = await self._adapter.show_draft(question.chat, self._received.id, part)
        if not self._knows_drafts:
            sent = await self._adapter.send_text(question.chat, part, reply_to=question.message_id)
            self._message_id = sent.message_id
            await self._store.inbox.note_preview(self._received.id, sent.message_id)


@asynccontextmanager
async def working(adapter: Adapter, chat: str, doing: Literal["recording", "typing"]) -> AsyncIterator[None]:
    """Show in the chat, for as long as the block lasts, that june works on an answer."""
    task = asyncio.create_task(_keep_showing(adapter, chat, doing))
    try:
        yield
    finally:
        task.cancel()
        await settled(task)


async def _keep_showing(adapter: Adapter, chat: str, doing: Literal["recording", "typing"]) -> None:
    while True:
        try:
            pause_s = await adapter.show_working(chat, doing)
        except DeliveryError as error:
            _count("sign", error.reason)
            pause_s = max(SIGN_RETRY_S, error.retry_after_s or 0.0)
        except Exception as error:  # the boundary: an answer does not fail over its sign
            _count("sign", type(error).__name__)
            pause_s = SIGN_RETRY_S
        await asyncio.sleep(pause_s)


def _count(stage: ErrorStage, kind: str) -> None:
    count_error(stage, kind)
    log.debug("progress.failed", stage=stage, type=kind)
