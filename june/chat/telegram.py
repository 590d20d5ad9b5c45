"""Telegram, through aiogram's client.

june asks for updates herself: aiogram's own polling acknowledges them before anything is stored. A batch is
acknowledged by the offset of the next request, which moves only when the inbox has committed the batch.

The bot's token is part of every address of the Bot API, and aiohttp quotes addresses in its errors. So a
library's exception ends in `_call` or `_fetch`: what they raise holds none of its text but what Telegram
says, and is raised outside of the `except` block, where Python links no exception to it.
"""

import asyncio
import hmac
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

from aiogram import Bot, exceptions, methods
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import BotCommand, BufferedInputFile, LinkPreviewOptions, Message, ReplyParameters
from aiogram.utils.token import TokenValidationError
from aiohttp import ClientError, ClientResponseError, web
from pydantic import BaseModel, ValidationError

from june.backoff import BackOff
from june.chat import AdapterHealth, CommandInfo, Intake
from june.chat.formatting import telegram_parts
from june.errors import AdapterError, DeliveryError, Refusal, SettingsError, StoreError
from june.messages import Attachment, Delivered, Inbound, InboundKind, Platform, PlatformState, Voice
from june.sections import DeliverySettings, TelegramSettings
from june.telemetry import adapter_up, count_error, log

T = TypeVar("T")

_LONG_POLL_S = 25
BACK_OFF = BackOff(first_s=0.25, longest_s=30)
"""Pauses between the tries of one request of the intake."""
MAX_TRIES = 9
_TEXT_UTF16_BYTES = 2 * 4096
_WEBHOOK_BYTES = 1_000_000
_CHAT_ACTION_S = 5.0
"""How long Telegram shows "recording voice…"."""
_UPDATES = ["message"]

_REASONS: tuple[tuple[str, Refusal], ...] = (
    ("VOICE_MESSAGES_FORBIDDEN|rights to send voice", "voice_forbidden"),
    ("too big|too large", "too_large"),
    ("can't parse entities", "markup"),
    ("message is not modified", "not_modified"),
    (
        "^Forbidden|chat not found|message to .* not found|message can't be edited|(wrong|invalid) file_id",
        "gone",
    ),
)
"""By what Telegram says. Source: Client.cpp in tdlib/telegram-bot-api."""

_TOKEN_REFUSED = exceptions.TelegramUnauthorizedError
_MAY_PASS = (_TOKEN_REFUSED, exceptions.TelegramConflictError, exceptions.TelegramServerError)


class _Update(BaseModel):
    """An update before its message is read: one message that aiogram cannot read must not cost the others."""

    update_id: int
    message: Any = None


class _GetUpdates(methods.TelegramMethod[list[_Update]]):
    __returning__ = list[_Update]
    __api_method__ = "getUpdates"

    offset: int
    timeout: int
    allowed_updates: list[str]


class _RequestError(DeliveryError):
    """A request that failed; `kind` is the name of the library's exception."""

    def __init__(
        self, kind: str, reason: Refusal, detail: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(reason, detail, retry_after_s=retry_after_s)
        self.kind = kind


class Telegram:
    """Telegram, as an `Adapter`.

    Raises:
        SettingsError: the token has not the form of one, or the webhook's address or secret is missing.
    """

    platform: Platform = "telegram"

    def __init__(self, settings: TelegramSettings, delivery: DeliverySettings) -> None:
        if settings.mode == "webhook" and not (settings.webhook_url and settings.webhook_secret):
            raise SettingsError("telegram.mode: a webhook needs telegram.webhook_url and .webhook_secret.")
        api = TelegramAPIServer.from_base(settings.api_base)
        self._token = settings.token.get_secret_value()
        try:
            self._bot = Bot(self._token, AiohttpSession(api=api, timeout=delivery.timeout_s))
        except TokenValidationError:
            raise SettingsError("telegram.token: expected a token as @BotFather gives it.") from None
        self._settings = settings
        self._timeout_s = math.ceil(delivery.timeout_s)
        self._health = AdapterHealth("starting")
        self._username = ""
        self._commands: set[str] = set()
        self._knows_drafts = True

    async def close(self) -> None:
        """Close every connection."""
        await self._bot.session.close()

    def health(self) -> AdapterHealth:
        """Whether Telegram answers june's requests for messages."""
        return self._health

    def _report(self, state: PlatformState, detail: str = "") -> None:
        self._health = AdapterHealth(state, detail)
        adapter_up.labels(self.platform).set(state == "up")

    # Receiving

    async def run(self, intake: Intake, commands: Sequence[CommandInfo]) -> None:
        """Hand over what arrives, until cancelled; see `Adapter.run`."""
        self._commands = {command.name for command in commands}
        self._report("starting")
        try:
            await self._retried(partial(self._introduce, commands))
            if self._settings.mode == "webhook":
                await self._serve_webhook(intake)
            else:
                await self._serve_polling(intake)
        finally:
            self._report("down", self._health.detail or "june does not receive messages from Telegram.")

    async def _retried(self, request: Callable[[], Awaitable[T]]) -> T:
        failures = 0
        while True:
            try:
                return await request()
            except _RequestError as error:
                count_error("adapter", error.kind)
                self._report("down", str(error))
                failures += 1
                is_final = error.reason != "try_again" or error.kind == _TOKEN_REFUSED.__name__
                if failures == MAX_TRIES or is_final:
                    raise AdapterError(str(error), retry_after_s=error.retry_after_s) from None
                wait_s = BACK_OFF.pause_s(failures, error.retry_after_s)
                log.warning("adapter.delayed", platform=self.platform, detail=str(error), wait_s=wait_s)
                await asyncio.sleep(wait_s)

    async def _introduce(self, commands: Sequence[CommandInfo]) -> None:
        me = await self._call(methods.GetMe())
        self._username = me.username or ""
        listed = [
            BotCommand(
                command=each.name,
                description=f"{each.description} ({each.argument})" if each.argument else each.description,
            )
            for each in commands
        ]
        await self._call(methods.SetMyCommands(commands=listed))

    async def _serve_polling(self, intake: Intake) -> NoReturn:
        if (await self._retried(partial(self._call, methods.GetWebhookInfo()))).url:
            await self._retried(partial(self._call, methods.DeleteWebhook(drop_pending_updates=False)))
        offset = int(await intake.cursor(self.platform) or 0)
        while True:
            offset = await self._retried(partial(self._poll, intake, offset))

    async def _poll(self, intake: Intake, offset: int) -> int:
        """The offset after the updates that this request brought, and that are committed."""
        # Until it is known whether Telegram answers, it is asked without waiting for a message.
        wait_s = _LONG_POLL_S if self._health.state == "up" else 0
        request = _GetUpdates(offset=offset, timeout=wait_s, allowed_updates=_UPDATES)
        updates = await self._call(request, timeout_s=wait_s + self._timeout_s)
        self._report("up")
        if updates:
            # The last of the batch, not the highest so far: after a quiet week ids begin anew, lower.
            offset = updates[-1].update_id + 1
            await intake.receive(self._read(updates), cursor=(self.platform, str(offset)))
        return offset

    async def _serve_webhook(self, intake: Intake) -> None:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        secret = self._settings.webhook_secret.get_secret_value()

        async def receive(request: web.Request) -> web.Response:
            sent = request.headers.get("X-Telegram-Bot-Api-Secret-Token", "")
            if not hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), secret.encode()):
                return web.Response(status=401)
            try:
                update = _Update.model_validate_json(await request.read())
            except ValidationError:
                return web.Response(status=400)
            try:
                await intake.receive(self._read([update]))
            except StoreError as error:
                if not failed.done():
                    failed.set_exception(error)
                return web.Response(status=503)  # Telegram sends it again
            return web.Response()

        url = self._settings.webhook_url
        app = web.Application(client_max_size=_WEBHOOK_BYTES)
        app.router.add_post(urlsplit(url).path or "/", receive)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._settings.webhook_host, self._settings.webhook_port).start()
            call = methods.SetWebhook(url=url, secret_token=secret, allowed_updates=_UPDATES)
            await self._retried(partial(self._call, call))
            self._report("up")
            await failed
        except OSError as error:
            raise AdapterError(f"june cannot listen for the webhook: {error.strerror}.") from None
        finally:
            await runner.cleanup()

    def _read(self, updates: Sequence[_Update]) -> list[Inbound]:
        messages = []
        for update in updates:
            try:
                if update.message is not None:
                    messages.append(self._inbound(Message.model_validate(update.message)))
            except ValueError as error:  # pydantic's, or a text that is no UTF-16
                count_error("adapter", type(error).__name__)
                log.warning("update.skipped", platform=self.platform, update_id=update.update_id)
        return [message for message in messages if message is not None]

    def _inbound(self, message: Message) -> Inbound | None:
        """The message as june knows it; None if it is none that june could answer.

        Who speaks for a group or a channel (`sender_chat`) is nobody whose access could be checked. Of a
        forwarded message the sender is who forwarded it.
        """
        sender = message.from_user
        if sender is None or sender.is_bot or message.sender_chat is not None:
            return None
        is_group = message.chat.type != "private"
        recording = _recording(message)
        kind, attachment = recording or ("text", None)
        text, is_mentioned = self._without_mentions(message)
        is_command = recording is None and any(
            entity.type == "bot_command" and entity.offset == 0 for entity in message.entities or ()
        )
        if is_command:
            kind = "command"
            command, *arguments = text.split(maxsplit=1)
            name, _, bot = command[1:].partition("@")
            if bot.lower() not in {"", self._username.lower()}:
                return None
            if is_group and not bot and name not in self._commands:
                return None
            text = " ".join([f"/{name}", *arguments])
        if not text and attachment is None:
            return None
        answered = message.reply_to_message
        if answered is not None and answered.forum_topic_created is not None:
            answered = None  # every message of a topic "replies" to the topic's beginning
        asked = answered.from_user if answered is not None else None
        topic = f"/{message.message_thread_id}" if message.is_topic_message else ""
        return Inbound(
            platform=self.platform,
            message_id=str(message.message_id),
            chat=f"{self.platform}:{message.chat.id}{topic}",
            user=f"{self.platform}:{sender.id}",
            user_name=sender.full_name,
            kind=kind,
            text=text,
            attachment=attachment,
            is_group=is_group,
            is_addressed=not is_group
            or is_command
            or is_mentioned
            or (asked is not None and asked.id == self._bot.id),
            reply_to=str(answered.message_id) if answered else "",
            sent_at_s=message.date.timestamp(),
        )

    def _without_mentions(self, message: Message) -> tuple[str, bool]:
        """The text or caption without mentions of june, and whether there were any."""
        text = message.text or message.caption or ""
        utf16 = text.encode("utf-16-le")
        is_mentioned = False
        for entity in reversed(message.entities or message.caption_entities or ()):
            is_name = entity.type == "mention" and (
                entity.extract_from(text).lower() == f"@{self._username}".lower()
            )
            is_user = entity.type == "text_mention" and entity.user and entity.user.id == self._bot.id
            if is_name or is_user:
                is_mentioned = True
                utf16 = utf16[: 2 * entity.offset] + utf16[2 * (entity.offset + entity.length) :]
        text = utf16.decode("utf-16-le").strip()
        return (text.lstrip(",:").lstrip() if is_mentioned else text), is_mentioned

    async def download(self, message: Inbound, *, max_bytes: int) -> bytes:
        """The recording of a message, as `Adapter.download`."""
        attachment = message.attachment
        if attachment is None:
            raise DeliveryError("gone", "The message has no recording.")
        if attachment.size_bytes > max_bytes:
            raise DeliveryError("too_large", f"The recording has {attachment.size_bytes} bytes.")
        try:
            return await self._fetch(attachment.file_id, max_bytes)
        except DeliveryError as error:
            if error.reason != "gone":
                raise
        return await self._fetch(attachment.file_id, max_bytes)  # by a new link: one lives for an hour

    async def _fetch(self, file_id: str, max_bytes: int) -> bytes:
        file = await self._call(methods.GetFile(file_id=file_id))
        url = self._bot.session.api.file_url(self._token, file.file_path or "")
        data = bytearray()
        try:
            async with aclosing(self._bot.session.stream_content(url, timeout=self._timeout_s)) as chunks:
                async for chunk in chunks:
                    data += chunk
                    if len(data) > max_bytes:
                        break
        except ClientResponseError as error:
            reason: Refusal = "gone" if error.status == web.HTTPNotFound.status_code else "try_again"
            failure = DeliveryError(reason, f"Telegram answers a download with {error.status}.")
        except (ClientError, TimeoutError) as error:
            failure = DeliveryError("try_again", f"The download failed: {type(error).__name__}.")
        else:
            if len(data) > max_bytes:
                raise DeliveryError("too_large", f"The recording has more than {max_bytes} bytes.")
            return bytes(data)
        raise failure

    # Sending

    def parts(self, text: str) -> list[str]:
        """Markdown as Telegram's HTML, each part within 4,096 UTF-16 units."""
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
            message_id=int(message_id),
            text=part,
            parse_mode="HTML",
            link_preview_options=LinkPreviewOptions(is_disabled=True),
        )
        try:
            await self._call(method)
        except DeliveryError as error:
            if error.reason != "not_modified":
                raise
        return Delivered(message_id, "text", part, "html", edited=True)

    async def delete(self, chat: str, message_id: str) -> None:
        """Delete a message of june's, as `Adapter.delete`."""
        try:
            await self._call(
                methods.DeleteMessage(chat_id=_address(chat)["chat_id"], message_id=int(message_id))
            )
        except DeliveryError as error:
            if error.reason != "gone":
                raise

    async def private_chat(self, user: str) -> str:
        """The private chat with a person, which has the person's id."""
        return user

    async def show_draft(self, chat: str, draft_id: int, part: str) -> bool:
        """Show a text that is still being written; only private chats know drafts, and only new servers."""
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
        """Show "recording voice…" or "typing…" for the seconds that it gives."""
        action = "record_voice" if doing == "recording" else "typing"
        await self._send(methods.SendChatAction(**_address(chat), action=action))
        return _CHAT_ACTION_S

    async def _send(self, method: methods.TelegramMethod[T]) -> T:
        """Send to a chat's topic, and to the chat itself if the topic is gone."""
        try:
            return await self._call(method)
        except DeliveryError as error:
            if "thread not found" not in str(error).lower():
                raise
        return await self._call(method.model_copy(update={"message_thread_id": None}))

    async def _call(self, method: methods.TelegramMethod[T], *, timeout_s: int | None = None) -> T:
        try:
            return await self._bot(method, request_timeout=timeout_s)
        except (exceptions.AiogramError, UnicodeError) as error:
            failure = _translated(error)
        raise failure


def _recording(message: Message) -> tuple[InboundKind, Attachment] | None:
    """The recording of a message, and what it was sent as."""
    document = message.document
    if document is not None and not (document.mime_type or "").startswith("audio/"):
        document = None
    kinds: tuple[InboundKind, ...] = ("voice", "audio", "video_note", "audio")
    files = (message.voice, message.audio, message.video_note, document)
    for kind, file in zip(kinds, files, strict=True):
        if file is not None:
            duration_s = float(getattr(file, "duration", None) or 0)  # a document has none
            return kind, Attachment(file.file_id, file.file_size or 0, duration_s)
    return None


def _address(chat: str, reply_to: str = "") -> dict[str, Any]:
    """Where a message goes, as the Bot API's parameters; `chat` as in `Inbound.chat`."""
    chat_id, _, topic = chat.removeprefix("telegram:").partition("/")
    address: dict[str, Any] = {"chat_id": int(chat_id)}
    if topic:
        address["message_thread_id"] = int(topic)
    if reply_to:
        address["reply_parameters"] = ReplyParameters(
            message_id=int(reply_to), allow_sending_without_reply=True
        )
    return address


def _translated(error: exceptions.AiogramError | UnicodeError) -> _RequestError:
    """The library's error as one of june's; of its text only what Telegram itself says."""
    reason: Refusal = "try_again"
    retry_after_s = None
    match error:
        case exceptions.TelegramRetryAfter():
            retry_after_s = float(error.retry_after)
            detail = f"Telegram asks june to wait for {error.retry_after} s."
        case exceptions.TelegramMigrateToChat():
            reason, detail = "gone", f"The group has become the supergroup {error.migrate_to_chat_id}."
        case exceptions.TelegramEntityTooLarge():
            reason, detail = "too_large", "The file is larger than Telegram accepts."
        case exceptions.TelegramNetworkError():
            detail = f"Telegram cannot be reached: {type(error.__cause__).__name__}."
        case exceptions.TelegramAPIError():
            quoted = r'"[^"]*"'  # a piece of what was sent
            detail = f"Telegram says: {re.sub(quoted, '…', error.message)}."
            if not isinstance(error, _MAY_PASS):
                found = (reason for pattern, reason in _REASONS if re.search(pattern, error.message))
                reason = next(found, "refused")
        case _:
            detail = "Telegram's answer cannot be read."
    return _RequestError(type(error).__name__, reason, detail, retry_after_s=retry_after_s)
