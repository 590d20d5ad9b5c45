"""What june sends to Telegram, and the signs that she gives while she works."""

from typing import Any, Literal, TypeVar

from aiogram import methods
from aiogram.types import BufferedInputFile, LinkPreviewOptions, ReplyParameters

from june.chat.telegram.connection import Connection
from june.chat.telegram.formatting import telegram_parts
from june.errors import DeliveryError
from june.messages import Delivered, Voice

T = TypeVar("T")

_TEXT_UTF16_BYTES = 2 * 4096
_CHAT_ACTION_S = 5.0
"""How long Telegram shows "recording voice…"."""


class Sending:
    """The half of the `Adapter` that sends.

    Args:
        connection: the bot, which it does not own.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._knows_drafts = True

    def parts(self, text: str) -> list[str]:
        """Return Markdown as Telegram's HTML, each part within 4,096 UTF-16 units."""
        return telegram_parts(text)

    async def send_text(self, chat: str, part: str, *, reply_to: str = "") -> Delivered:
        """Send one of `parts`, as `Adapter.send_text`."""
        return await self._send_message(chat, part, reply_to, "HTML")

    async def send_plain(self, chat: str, text: str, *, reply_to: str = "") -> Delivered:
        """Send text without markup, as `Adapter.send_plain`."""
        utf16 = text.encode("utf-16-le", "replace")[:_TEXT_UTF16_BYTES]
        return await self._send_message(chat, utf16.decode("utf-16-le", "ignore"), reply_to, None)

    async def _send_message(
        self, chat: str, text: str, reply_to: str, parse_mode: Literal["HTML"] | None
    ) -> Delivered:
        method = methods.SendMessage(
            **_address(chat, reply_to),
            text=text,
            parse_mode=parse_mode,
            link_preview_options=LinkPreviewOptions(is_disabled=True),
        )
        sent = await self._send(method)
        return Delivered(str(sent.message_id), "text", text, "html" if parse_mode else "")

    async def send_voice(self, chat: str, voice: Voice, *, reply_to: str = "") -> Delivered:
        """Send a voice message, as `Adapter.send_voice`."""
        method = methods.SendVoice(
            **_address(chat, reply_to),
            voice=BufferedInputFile(voice.ogg_opus, "voice.ogg"),
            duration=max(1, round(voice.duration_s)),
        )
        return Delivered(str((await self._send(method)).message_id), "voice")

    async def edit_text(self, chat: str, message_id: str, part: str) -> Delivered:
        """Replace a sent message's text by one of `parts`, as `Adapter.edit_text`."""
        method = methods.EditMessageText(
            chat_id=_address(chat)["chat_id"],
            message_id=_message_id(message_id),
            text=part,
            parse_mode="HTML",
            link_preview_options=LinkPreviewOptions(is_disabled=True),
        )
        try:
            await self._connection.call(method)
        except DeliveryError as error:
            if error.reason != "not_modified":
                raise
        return Delivered(message_id, "text", part, "html", edited=True)

    async def delete(self, chat: str, message_id: str) -> None:
        """Delete a message of june's, as `Adapter.delete`."""
        try:
            await self._connection.call(
                methods.DeleteMessage(chat_id=_address(chat)["chat_id"], message_id=_message_id(message_id))
            )
        except DeliveryError as error:
            if error.reason != "gone":
                raise

    async def private_chat(self, user: str) -> str:
        """Return the private chat with a person, which has the person's id."""
        return user

    async def show_draft(self, chat: str, draft_id: int, part: str) -> bool:
        """Show a text that is still being written; return False where there are no drafts."""
        address = _address(chat)
        if not self._knows_drafts or address["chat_id"] < 0:
            return False
        try:
            await self._send(
                methods.SendMessageDraft(**address, draft_id=draft_id, text=part, parse_mode="HTML")
            )
        except DeliveryError as error:
            if error.reason != "refused":
                raise
            self._knows_drafts = False
        return self._knows_drafts

    async def show_working(self, chat: str, doing: Literal["recording", "typing"]) -> float:
        """Show "recording voice…" or "typing…", and return for how many seconds it stays."""
        action = "record_voice" if doing == "recording" else "typing"
        await self._send(methods.SendChatAction(**_address(chat), action=action))
        return _CHAT_ACTION_S

    async def _send(self, method: methods.TelegramMethod[T]) -> T:
        """Send to a chat's topic, and to the chat itself if the topic is gone."""
        try:
            return await self._connection.call(method)
        except DeliveryError as error:
            if "thread not found" not in str(error).lower():
                raise
        return await self._connection.call(method.model_copy(update={"message_thread_id": None}))


def _message_id(message_id: str) -> int:
    """Return a message's id as a number; a group that became a supergroup left all its ids behind.

    Raises:
        DeliveryError: "gone"; it is of such a group.
    """
    if not message_id.isdecimal():
        raise DeliveryError("gone", "The message stayed in the group that became a supergroup.")
    return int(message_id)


def _address(chat: str, reply_to: str = "") -> dict[str, Any]:
    """Return where a message goes, as the Bot API's parameters; `chat` as in `Inbound.chat`."""
    chat_id, _, topic = chat.removeprefix("telegram:").partition("/")
    address: dict[str, Any] = {"chat_id": int(chat_id)}
    if topic:
        address["message_thread_id"] = int(topic)
    if reply_to.isdecimal():  # or else of a group before it became a supergroup
        address["reply_parameters"] = ReplyParameters(
            message_id=int(reply_to), allow_sending_without_reply=True
        )
    return address
