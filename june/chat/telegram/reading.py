"""A Telegram update becomes an `Inbound`."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from aiogram.types import Message
from pydantic import BaseModel

from june.messages import Attachment, Inbound, InboundKind
from june.telemetry import count_error, log


class Update(BaseModel):
    """An update before its message is read: one message that aiogram cannot read must not cost the others."""

    update_id: int
    message: Any = None


@dataclass(frozen=True, slots=True)
class Me:
    """What a message is read for: who june is on Telegram."""

    bot_id: int
    username: str
    """Without the @."""
    commands: AbstractSet[str]
    """Names of the commands that june knows."""


def read(updates: Sequence[Update], me: Me) -> tuple[list[Inbound], dict[str, str]]:
    """Return the messages that june could answer, in their order, and the chats that have moved.

    A group that becomes a supergroup gets a new id, which Telegram tells in both chats. What a batch holds
    of such a group is returned as the supergroup's; as the two count their messages each from 1, its ids are
    "telegram:-5 7" instead of "7".
    """
    messages: list[Inbound] = []
    moves: dict[str, str] = {}
    for update in updates:
        if update.message is None:
            continue
        try:
            message = Message.model_validate(update.message)
            moves |= _move(message)
            found = inbound(message, me)
        except ValueError as error:  # pydantic's, or a text that is not UTF-16
            count_error("adapter", type(error).__name__)
            log.warning("update.skipped", platform="telegram", update_id=update.update_id)
        else:
            messages += [found] if found is not None else []
    return [_followed(message, moves) for message in messages], moves


def _followed(message: Inbound, moves: Mapping[str, str]) -> Inbound:
    """Return a message as it is; one of a chat that has moved, as `Conversations.move` keeps such a one."""
    old = message.chat
    if old not in moves:
        return message
    reply_to = f"{old} {message.reply_to}" if message.reply_to else ""
    return replace(message, chat=moves[old], message_id=f"{old} {message.message_id}", reply_to=reply_to)


def _move(message: Message) -> dict[str, str]:
    """Return the chat that a service message says has moved, with its new name."""
    if message.migrate_to_chat_id is not None:
        return {f"telegram:{message.chat.id}": f"telegram:{message.migrate_to_chat_id}"}
    if message.migrate_from_chat_id is not None:
        return {f"telegram:{message.migrate_from_chat_id}": f"telegram:{message.chat.id}"}
    return {}


def inbound(message: Message, me: Me) -> Inbound | None:
    """Return the message as june knows it, or None if june could not answer it.

    Who speaks for a group or a channel (`sender_chat`) is not a person whose access could be checked. The
    sender of a forwarded message is the person who forwarded it.
    """
    sender = message.from_user
    if sender is None or sender.is_bot or message.sender_chat is not None:
        return None
    is_group = message.chat.type != "private"
    recording = _recording(message)
    kind, attachment = recording or ("text", None)
    text, is_mentioned = _without_mentions(message, me)
    is_command = recording is None and any(
        entity.type == "bot_command" and entity.offset == 0 for entity in message.entities or ()
    )
    if is_command:
        kind = "command"
        command, *arguments = text.split(maxsplit=1)
        name, _, bot = command[1:].partition("@")
        if bot.lower() not in {"", me.username.lower()}:
            return None
        if is_group and not bot and name not in me.commands:
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
        platform="telegram",
        message_id=str(message.message_id),
        chat=f"telegram:{message.chat.id}{topic}",
        user=f"telegram:{sender.id}",
        user_name=sender.full_name,
        kind=kind,
        text=text,
        attachment=attachment,
        is_group=is_group,
        is_addressed=not is_group
        or is_command
        or is_mentioned
        or (asked is not None and asked.id == me.bot_id),
        reply_to=str(answered.message_id) if answered else "",
        sent_at_s=message.date.timestamp(),
    )


def _without_mentions(message: Message, me: Me) -> tuple[str, bool]:
    """Return the text or caption without mentions of june, and whether there were any."""
    text = message.text or message.caption or ""
    utf16 = text.encode("utf-16-le")
    is_mentioned = False
    for entity in reversed(message.entities or message.caption_entities or ()):
        is_name = entity.type == "mention" and (
            entity.extract_from(text).lower() == f"@{me.username}".lower()
        )
        is_user = entity.type == "text_mention" and entity.user and entity.user.id == me.bot_id
        if is_name or is_user:
            is_mentioned = True
            utf16 = utf16[: 2 * entity.offset] + utf16[2 * (entity.offset + entity.length) :]
    text = utf16.decode("utf-16-le").strip()
    return (text.lstrip(",:").lstrip() if is_mentioned else text), is_mentioned


def _recording(message: Message) -> tuple[InboundKind, Attachment] | None:
    """Return the recording of a message and what it was sent as, or None if it has none."""
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
