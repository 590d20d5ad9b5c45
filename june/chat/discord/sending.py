"""What june sends to Discord, and the sign that she gives while she works."""

import asyncio
import base64
import io
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import aiohttp
import discord
from discord.http import handle_message_parameters

from june.chat.discord.connection import MAX_RATE_LIMIT_S, point_at
from june.chat.discord.errors import (
    ALREADY_ACKNOWLEDGED,
    CANNOT_REPLY,
    UNKNOWN_INTERACTION,
    explained,
    reason_of,
)
from june.chat.discord.formatting import discord_parts
from june.chat.discord.settings import DiscordSettings
from june.errors import DeliveryError
from june.messages import Delivered, Voice

MAX_TEXT = 2000
"""Code points of a message."""
MAX_VOICE_BYTES = 10 << 20
"""https://support.discord.com/hc/articles/25444343291031"""
TYPING_S = 9.0
"""Discord shows the sign for ten seconds."""
RESPONSE_S = 2.5
"""Discord takes the first response to an interaction within three seconds."""
MAX_INTERACTIONS = 100

_NO_MENTIONS = discord.AllowedMentions.none()


class Sending:
    """The half of the `Adapter` that sends.

    Args:
        settings: the section of Discord.
        timeout_s: the time limit of a request, in seconds.
    """

    def __init__(self, settings: DiscordSettings, *, timeout_s: float) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._interactions: dict[str, tuple[discord.Interaction, float]] = {}
        """Those that can still be responded to, and when they came."""
        self._login = asyncio.Lock()
        self._sender: discord.Client | None = None

    async def close(self) -> None:
        """Close the client."""
        if self._sender is not None:
            await self._sender.close()

    def parts(self, text: str) -> list[str]:
        """See `Adapter.parts`."""
        return discord_parts(text)

    async def send_text(self, chat: str, part: str, *, reply_to: str = "") -> Delivered:
        """See `Adapter.send_text`."""
        return Delivered(await self._send(chat, part, reply_to), "text", part, "markdown")

    async def send_plain(self, chat: str, text: str, *, reply_to: str = "") -> Delivered:
        """See `Adapter.send_plain`."""
        escaped = discord.utils.escape_markdown(text)
        if len(escaped) > MAX_TEXT:
            escaped = escaped[:MAX_TEXT].rstrip("\\")
        return Delivered(await self._send(chat, escaped, reply_to), "text", escaped)

    async def send_voice(self, chat: str, voice: Voice, *, reply_to: str = "") -> Delivered:
        """See `Adapter.send_voice`."""
        if len(voice.ogg_opus) > MAX_VOICE_BYTES:
            raise DeliveryError("too_large", f"The voice message has {len(voice.ogg_opus)} bytes.")
        async with self.translated(is_voice=True):
            return Delivered(await self._post(chat, reply_to, voice), "voice")

    async def edit_text(self, chat: str, message_id: str, part: str) -> Delivered:
        """See `Adapter.edit_text`."""
        async with self.translated():
            message = (await self._channel(chat)).get_partial_message(int(message_id))
            await message.edit(content=part, allowed_mentions=_NO_MENTIONS)
        return Delivered(message_id, "text", part, "markdown", edited=True)

    async def delete(self, chat: str, message_id: str) -> None:
        """See `Adapter.delete`."""
        async with self.translated():
            message = (await self._channel(chat)).get_partial_message(int(message_id))
            with suppress(discord.NotFound):
                await message.delete()

    async def private_chat(self, user: str) -> str:
        """See `Adapter.private_chat`."""
        async with self.translated():
            channel = await (await self._sending()).http.start_private_message(_channel_id(user))
        return f"discord:{channel['id']}"

    async def show_draft(self, chat: str, draft_id: int, part: str) -> bool:
        """Return False: Discord knows no drafts."""
        del chat, draft_id, part
        return False

    async def show_working(self, chat: str, doing: Literal["recording", "typing"]) -> float:
        """See `Adapter.show_working`; Discord shows typing only."""
        del doing
        async with self.translated():
            await (await self._channel(chat)).typing()
        return TYPING_S

    def keep_interaction(self, interaction: discord.Interaction) -> None:
        """Have the first answer to it sent as its response."""
        now = asyncio.get_running_loop().time()
        self._interactions[str(interaction.id)] = (interaction, now)
        while len(self._interactions) > MAX_INTERACTIONS:
            del self._interactions[next(iter(self._interactions))]

    async def _sending(self) -> discord.Client:
        """Return the client that sends, logged in."""
        async with self._login:
            if self._sender is None:
                point_at(self._settings)
                sender = discord.Client(
                    intents=discord.Intents.none(), max_ratelimit_timeout=MAX_RATE_LIMIT_S
                )
                try:
                    await sender.login(self._settings.token.get_secret_value())
                except BaseException:
                    await sender.close()
                    raise
                self._sender = sender
            return self._sender

    async def _channel(self, chat: str) -> discord.PartialMessageable:
        return (await self._sending()).get_partial_messageable(_channel_id(chat))

    async def _send(self, chat: str, text: str, reply_to: str) -> str:
        """Send an answer to `reply_to`, a message or an interaction; return the new message's id."""
        async with self.translated():
            interaction, came_s = self._interactions.pop(reply_to, (None, 0.0))
            if interaction is not None and asyncio.get_running_loop().time() - came_s < RESPONSE_S:
                try:
                    response = await interaction.response.send_message(text, allowed_mentions=_NO_MENTIONS)
                except discord.HTTPException as error:
                    if error.code not in {UNKNOWN_INTERACTION, ALREADY_ACKNOWLEDGED}:
                        raise
                else:
                    return str(response.message_id)
            return await self._post(chat, reply_to, text)

    async def _post(self, chat: str, reply_to: str, content: str | Voice) -> str:
        channel_id = _channel_id(chat)
        message: dict[str, Any] = {"content": content}
        if isinstance(content, Voice):
            message = {"file": VoiceFile(content), "flags": discord.MessageFlags(voice=True)}
        if reply_to:  # an unknown message, as an interaction is one, is passed over
            reference = {"channel_id": channel_id, "message_id": reply_to, "fail_if_not_exists": False}
            message["message_reference"] = reference
        # discord.py repeats a request after a 5xx; by the nonce Discord knows the second one.
        nonce = secrets.token_hex(12)
        sender = await self._sending()
        with handle_message_parameters(allowed_mentions=_NO_MENTIONS, nonce=nonce, **message) as request:
            if request.multipart:
                # Otherwise Discord ignores duration and waveform (discord/discord-api-docs#7161).
                request.multipart[-1]["content_type"] = "audio/ogg"
            try:
                sent = await sender.http.send_message(channel_id, params=request)
            except discord.HTTPException as error:
                if error.code != CANNOT_REPLY or not reply_to:
                    raise
                return await self._post(chat, "", content)
        return str(sent["id"])

    @asynccontextmanager
    async def translated(self, *, is_voice: bool = False) -> AsyncIterator[None]:
        """Limit the time of what the block asks of Discord, and translate what it raises."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            said = explained(error)
            reason = reason_of(error, is_voice=is_voice)
            raise DeliveryError(reason, str(said), retry_after_s=said.retry_after_s) from None


class VoiceFile(discord.File):
    """A voice message's only attachment; discord.py sends none by itself.

    By https://docs.discord.com/developers/resources/message#voice-messages.
    """

    def __init__(self, voice: Voice) -> None:
        super().__init__(io.BytesIO(voice.ogg_opus), "voice-message.ogg")
        self._voice = voice

    def to_dict(self, index: int) -> dict[str, Any]:
        """Return what Discord is told of the file."""
        waveform = base64.b64encode(self._voice.waveform).decode()
        return super().to_dict(index) | {"duration_secs": self._voice.duration_s, "waveform": waveform}


def _channel_id(chat: str) -> int:
    return int(chat.removeprefix("discord:"))
