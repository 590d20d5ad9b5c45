"""A message or a command of Discord becomes an `Inbound`."""

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import discord

from june.messages import Attachment, Inbound, InboundKind


@dataclass(frozen=True, slots=True)
class Me:
    """What a message is read for: who june is on Discord."""

    user_id: int
    commands: AbstractSet[str]
    """Names of the commands that june knows."""


def inbound(message: discord.Message, me: Me, *, is_group: bool) -> Inbound | None:
    """Return a message as june knows it, or None if there is nothing in it for june."""
    if message.author.bot or message.webhook_id or message.is_system():
        return None
    text = re.sub(rf"\s*<@!?{me.user_id}>\s*", " ", message.content).strip()
    recording = recording_of(message)
    if not text and recording is None:
        return None
    kind: InboundKind = "text"
    attachment = None
    if recording is not None:
        kind = "voice" if message.flags.voice else "audio"
        attachment = Attachment(recording.url, recording.size, recording.duration or 0.0)
    elif text.startswith("/"):
        kind = "command"
    reply = message.reference if message.type is discord.MessageType.reply else None
    answered = reply.resolved if reply else None
    is_addressed = (
        not is_group
        or any(user.id == me.user_id for user in message.mentions)
        or (isinstance(answered, discord.Message) and answered.author.id == me.user_id)
        or (kind == "command" and text[1:].partition(" ")[0] in me.commands)
    )
    return Inbound(
        platform="discord",
        message_id=str(message.id),
        chat=f"discord:{message.channel.id}",
        user=f"discord:{message.author.id}",
        user_name=message.author.display_name,
        kind=kind,
        text=text,
        attachment=attachment,
        is_group=is_group,
        is_addressed=is_addressed,
        reply_to=str(reply.message_id) if reply and reply.message_id else "",
        sent_at_s=message.created_at.timestamp(),
    )


def from_interaction(interaction: discord.Interaction) -> Inbound | None:
    """Return a slash command as june knows it, or None if it is not one."""
    data: Any = interaction.data
    if data is None or interaction.channel_id is None:
        return None
    words = [f"/{data['name']}", *(str(option["value"]) for option in data.get("options", []))]
    return Inbound(
        platform="discord",
        message_id=str(interaction.id),
        chat=f"discord:{interaction.channel_id}",
        user=f"discord:{interaction.user.id}",
        user_name=interaction.user.display_name,
        kind="command",
        text=" ".join(words),
        is_group=interaction.guild_id is not None,
        sent_at_s=interaction.created_at.timestamp(),
    )


def recording_of(message: discord.Message) -> discord.Attachment | None:
    """Return the recording of a message, or None if it has none."""
    audio = (each for each in message.attachments if (each.content_type or "").startswith("audio/"))
    return next(audio, None)
