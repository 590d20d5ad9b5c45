"""A message is put into its chat part by part, and each part that the app took is kept at once."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from june.backoff import BackOff
from june.chat import Adapter
from june.chat.apps import chat_app
from june.chat.wording import as_markdown
from june.errors import DeliveryError, JuneError
from june.messages import Delivered, Outbound
from june.sections import DeliverySettings
from june.store import DueMessage, Store
from june.telemetry import count_error, log

BACK_OFF = BackOff(first_s=1, longest_s=300, spread=0.25)
"""Pauses between the tries of one message, and of one commit."""
COMMIT_ATTEMPTS = 5


class Posting:
    """Puts messages into their chats.

    Args:
        store: keeps what was delivered.
        settings: the section of the delivery.
    """

    def __init__(self, store: Store, settings: DeliverySettings) -> None:
        self._store = store
        self._settings = settings

    async def send(self, adapter: Adapter, rows: tuple[DueMessage, ...]) -> int:
        """Send what is left of a message, or of several in one; return how many parts it has."""
        row, message = rows[0], rows[0].message
        if message.kind == "voice" and message.voice is not None:
            if not row.delivered:
                async with self._time_limit():
                    one = await adapter.send_voice(message.chat, message.voice, reply_to=message.reply_to)
                await self._note(rows, one)
            return 1
        parts = adapter.parts(_markdown(rows))
        shown = await self._shown(message)
        delivered = list(row.delivered)
        for index in range(len(delivered), len(parts)):
            target = shown[index] if index < len(shown) else ""
            async with self._time_limit():
                one = await _put(
                    adapter, message, parts[index], target, reply_to="" if index else message.reply_to
                )
            if message.edits and one.message_id not in shown:
                # First: another edit, or this one after a crash, must find it.
                await self.commit(partial(self._store.outbox.note_delivered, message.edits, one))
            await self._note(rows, one)
            delivered.append(one)
        kept = {one.message_id for one in delivered}
        for target in shown:
            if target not in kept:
                await self._delete(adapter, row, target)
        return len(parts)

    async def _shown(self, message: Outbound) -> list[str]:
        """Return the platform's ids of the messages that show the text's parts as they were."""
        if message.edits:
            edited = await self._store.outbox.message(message.edits)
            delivered = edited.delivered if edited else ()
            return list(dict.fromkeys(one.message_id for one in delivered if one.kind == "text"))
        return [message.preview_id] if message.preview_id else []

    async def _delete(self, adapter: Adapter, row: DueMessage, message_id: str) -> None:
        try:
            async with self._time_limit():
                await adapter.delete(row.message.chat, message_id)
        except (DeliveryError, TimeoutError) as error:
            reason = error.reason if isinstance(error, DeliveryError) else "try_again"
            if reason == "try_again" and row.attempts < self._settings.max_attempts:
                raise
            _count(reason)  # the text arrived, which matters more than what is left of the old one

    async def _note(self, rows: Sequence[DueMessage], delivered: Delivered) -> None:
        for row in rows:
            await self.commit(partial(self._store.outbox.note_delivered, row.id, delivered))

    def _time_limit(self) -> asyncio.Timeout:
        return asyncio.timeout(self._settings.timeout_s)

    async def commit(self, change: Callable[[], Awaitable[object]]) -> None:
        """Make a change to the file, later if need be: what is not kept is sent twice."""
        for attempt in range(1, COMMIT_ATTEMPTS):
            try:
                await change()
            except JuneError as error:
                _count(type(error).__name__)
                log.error("outbox.failed", type=type(error).__name__, detail=str(error))
                await asyncio.sleep(BACK_OFF.pause_s(attempt))
            else:
                return
        await change()


def fitting(adapter: Adapter, rows: tuple[DueMessage, ...]) -> tuple[DueMessage, ...]:
    """Return all the rows if they fit in one message, so that none is sent in part; otherwise the first."""
    is_begun = any(row.delivered for row in rows)
    return rows[:1] if is_begun or len(adapter.parts(_markdown(rows))) > 1 else rows


def _markdown(rows: Sequence[DueMessage]) -> str:
    return "\n\n".join(as_markdown(row.message.text, row.message.echo, row.message.purpose) for row in rows)


def _ids(rows: Sequence[DueMessage]) -> list[int]:
    return [row.id for row in rows]


async def _put(adapter: Adapter, message: Outbound, part: str, target: str, *, reply_to: str) -> Delivered:
    """Show a part in the message `target`, or in a new one if there is none or it cannot be edited."""
    try:
        if target:
            try:
                return await adapter.edit_text(message.chat, target, part)
            except DeliveryError as error:
                if error.reason not in {"gone", "refused"}:
                    raise
        return await adapter.send_text(message.chat, part, reply_to=reply_to)
    except DeliveryError as error:
        if error.reason != "markup":
            raise
        _count(error.reason)
    app = chat_app(adapter.platform)
    visible = app.visible(part) if app is not None else part
    return await adapter.send_plain(message.chat, visible, reply_to=reply_to)


def _count(kind: str) -> None:
    count_error("send", kind)
