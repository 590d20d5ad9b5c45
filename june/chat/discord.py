"""Discord: direct messages, guild channels and threads.

Nothing is lost between Discord and the inbox, with one exception. What the gateway hands over is committed
in its order; a dropped connection is resumed, and Discord repeats what was missed; when a session is over,
the channels in which june was addressed before are read from their last committed message on. The exception
is a channel that june has never seen: a bot cannot ask Discord for its direct channels.

Two clients of discord.py: one sends, from the first need of it until `close`; one listens, a new one in each
run, so that a lost gateway does not take an answer with it that is being sent.
"""

import asyncio
import base64
import io
import json
import re
import secrets
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, Literal

import aiohttp
import discord
import yarl
from discord.gateway import DiscordWebSocket, KeepAliveHandler
from discord.http import Route, handle_message_parameters

from june.chat import AdapterHealth, CommandInfo, Intake
from june.chat.formatting import discord_parts
from june.errors import AdapterError, DeliveryError, JuneError, Refusal
from june.messages import Attachment, Delivered, Inbound, InboundKind, Platform, PlatformState, Voice
from june.sections import DeliverySettings, DiscordSettings
from june.telemetry import adapter_up, count_error, log

MAX_TEXT = 2000
"""Code points of a message."""
MAX_ARRIVALS = 1000
"""Messages that wait for their commit; with more, the run ends, and their channels are caught up."""
MAX_MISSED = 200
"""Messages of a channel that are caught up."""
MAX_CHANNELS = 100
"""Channels that are caught up: those that were used last."""
RECONNECT_S = 120.0
"""discord.py reconnects by itself; after so long without success the run ends."""
CLOSE_S = 5.0
"""How long the gateway has to answer a close frame."""
TYPING_S = 9.0
"""Discord shows the sign for ten seconds."""
RESPONSE_S = 2.5
"""Discord takes the first response to an interaction within three seconds."""
MAX_INTERACTIONS = 100
MAX_RATE_LIMIT_S = 30.0
"""A longer wait is the delivery's; it is also the shortest that discord.py knows."""
CHANNELS_CURSOR = "discord"

TOO_LARGE = 40005
UNKNOWN_INTERACTION, ALREADY_ACKNOWLEDGED = 10062, 40060
CANNOT_REPLY = 160002
"""june may not read the channel's history."""
NO_VOICE_MESSAGES = {50013, 50173}
"""Missing permissions; no voice messages in this channel."""
AUTHENTICATION_FAILED = 4004

_NO_MENTIONS = discord.AllowedMentions.none()


class Discord:
    """june on Discord; an `Adapter`."""

    platform: Platform = "discord"
    max_voice_bytes = 10 << 20  # https://support.discord.com/hc/articles/25444343291031

    def __init__(self, settings: DiscordSettings, delivery: DeliverySettings) -> None:
        self._settings = settings
        self._timeout_s = delivery.timeout_s
        self._health = AdapterHealth("starting")
        self._interactions: dict[str, tuple[discord.Interaction, float]] = {}
        """Those that can still be responded to, and when they came."""
        self._login = asyncio.Lock()
        self._sender: discord.Client | None = None
        self._files: aiohttp.ClientSession | None = None

    async def run(self, intake: Intake, commands: Sequence[CommandInfo]) -> None:
        """See `Adapter.run`.

        Raises:
            AdapterError: the connection was refused or is lost.
            StoreError: what arrived could not be committed.
        """
        self.report("starting")
        listener = _Listener(self, intake, commands)
        problem = ""
        try:
            await listener.listen(self._settings)
        except JuneError as error:
            problem = str(error)
            raise
        finally:
            self.report("down", problem)
            self._interactions.clear()
            await listener.end()

    async def close(self) -> None:
        """See `Adapter.close`."""
        if self._sender is not None:
            await self._sender.close()
        if self._files is not None:
            await self._files.close()

    def health(self) -> AdapterHealth:
        """See `Adapter.health`."""
        return self._health

    async def download(self, message: Inbound, *, max_bytes: int) -> bytes:
        """See `Adapter.download`."""
        if message.attachment is None:
            raise DeliveryError("gone", "The message has no recording.")
        if message.attachment.size_bytes > max_bytes:
            raise DeliveryError("too_large", f"The recording is larger than {max_bytes} bytes.")
        async with self._translated():
            data = await self._fetch(message.attachment.file_id, max_bytes)
            if data is None:  # the link has expired: the message, asked for again, has a new one
                channel = await self._channel(message.chat)
                renewed = _recording(await channel.fetch_message(int(message.message_id)))
                data = await self._fetch(renewed.url, max_bytes) if renewed else None
        if data is None:
            raise DeliveryError("gone", "Discord does not hand out the recording any more.")
        return data

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
        if len(voice.ogg_opus) > self.max_voice_bytes:
            raise DeliveryError("too_large", f"The voice message has {len(voice.ogg_opus)} bytes.")
        async with self._translated(is_voice=True):
            return Delivered(await self._post(chat, reply_to, voice), "voice")

    async def edit_text(self, chat: str, message_id: str, part: str) -> Delivered:
        """See `Adapter.edit_text`."""
        async with self._translated():
            message = (await self._channel(chat)).get_partial_message(int(message_id))
            await message.edit(content=part, allowed_mentions=_NO_MENTIONS)
        return Delivered(message_id, "text", part, "markdown", edited=True)

    async def delete(self, chat: str, message_id: str) -> None:
        """See `Adapter.delete`."""
        async with self._translated():
            message = (await self._channel(chat)).get_partial_message(int(message_id))
            with suppress(discord.NotFound):
                await message.delete()

    async def private_chat(self, user: str) -> str:
        """See `Adapter.private_chat`."""
        async with self._translated():
            channel = await (await self._sending()).http.start_private_message(_channel_id(user))
        return f"{self.platform}:{channel['id']}"

    async def show_draft(self, chat: str, draft_id: int, part: str) -> bool:
        """False: Discord knows no drafts."""
        del chat, draft_id, part
        return False

    async def show_working(self, chat: str, doing: Literal["recording", "typing"]) -> float:
        """See `Adapter.show_working`; Discord shows typing only."""
        del doing
        async with self._translated():
            await (await self._channel(chat)).typing()
        return TYPING_S

    def keep_interaction(self, interaction: discord.Interaction) -> None:
        """Have the first answer to it sent as its response."""
        now = asyncio.get_running_loop().time()
        self._interactions[str(interaction.id)] = (interaction, now)
        while len(self._interactions) > MAX_INTERACTIONS:
            del self._interactions[next(iter(self._interactions))]

    def report(self, state: PlatformState, detail: str = "") -> None:
        """Set what `health` says."""
        self._health = AdapterHealth(state, detail)
        adapter_up.labels(platform=self.platform).set(state == "up")

    async def _sending(self) -> discord.Client:
        """The client that sends, logged in."""
        async with self._login:
            if self._sender is None:
                _point_at(self._settings)
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
        """The id of the message, which answers `reply_to`, be it a message or an interaction."""
        async with self._translated():
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
            message = {"file": _VoiceFile(content), "flags": discord.MessageFlags(voice=True)}
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

    async def _fetch(self, link: str, max_bytes: int) -> bytes | None:
        """What stands behind a link; None if it has expired."""
        if self._files is None:
            self._files = aiohttp.ClientSession()
        async with self._files.get(link) as response:
            if response.status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
                return None
            if not response.ok:
                reason: Refusal = "try_again" if _may_pass(response.status) else "refused"
                raise DeliveryError(reason, f"Discord answered {response.status} to a download.")
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > max_bytes:
                    raise DeliveryError("too_large", f"The recording is larger than {max_bytes} bytes.")
            return bytes(data)

    @asynccontextmanager
    async def _translated(self, *, is_voice: bool = False) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            said = _explained(error)
            reason = _reason(error, is_voice=is_voice)
            raise DeliveryError(reason, str(said), retry_after_s=said.retry_after_s) from None


class _Listener(discord.Client):
    """One connection to the gateway; it commits what arrives, in its order."""

    def __init__(self, adapter: Discord, intake: Intake, commands: Sequence[CommandInfo]) -> None:
        super().__init__(
            intents=discord.Intents(guilds=True, guild_messages=True, dm_messages=True, message_content=True),
            max_messages=None,
            member_cache_flags=discord.MemberCacheFlags.none(),
            guild_ready_timeout=0,  # nothing here waits for the guilds
            max_ratelimit_timeout=MAX_RATE_LIMIT_S,
        )
        self._adapter = adapter
        self._intake = intake
        self._commands = commands
        self._arrivals: asyncio.Queue[discord.Message | discord.Interaction | None] = asyncio.Queue(
            MAX_ARRIVALS
        )
        """None: a session begins; what was missed before it comes first."""
        self._channels: dict[str, tuple[bool, int]] = {}
        """Those to catch up, the last used at the end: whether in a guild, and its first message."""
        self._is_connected = asyncio.Event()
        self._is_disconnected = asyncio.Event()
        self._failed = asyncio.Event()

    async def listen(self, settings: DiscordSettings) -> None:
        """Connect and commit what arrives, until cancelled.

        Raises:
            AdapterError: the connection was refused or is lost.
            StoreError: what arrived could not be committed.
        """
        _point_at(settings)
        self._channels = json.loads(await self._intake.cursor(CHANNELS_CURSOR) or "{}")
        try:
            await self.login(settings.token.get_secret_value())
            await self._serve()
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            raise _explained(error) from None

    async def end(self) -> None:
        """Close every connection, and end discord.py's thread."""
        with suppress(TimeoutError):  # the gateway does not answer the close frame
            async with asyncio.timeout(CLOSE_S):
                for thread in threading.enumerate():
                    # discord.py itself forgets a websocket whose handshake is cut short.
                    if isinstance(thread, KeepAliveHandler) and thread.ws.loop is self.loop:
                        await thread.ws.close(code=1000)
                await self.close()
        await self.http.close()

    async def _serve(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._connect())
                tasks.create_task(self._watch())
                tasks.create_task(self._register())
                tasks.create_task(self._commit())
                await self._failed.wait()
                raise AdapterError("Discord sent messages faster than june could store them.")
        except BaseExceptionGroup as group:  # its first is what ended the others
            raise group.exceptions[0] from None

    async def _connect(self) -> None:
        try:
            await self.connect()
        except AttributeError:
            if self.ws is not None:
                raise
            # discord.py 2.7 wants to resume a session that there never was.
            raise AdapterError("Discord's gateway is out of reach.") from None

    async def _watch(self) -> None:
        """End the run when discord.py tries in vain to connect for too long."""
        while True:
            try:
                async with asyncio.timeout(RECONNECT_S):
                    await self._is_connected.wait()
            except TimeoutError:
                raise AdapterError(f"Discord's gateway was out of reach for {RECONNECT_S:.0f} s.") from None
            await self._is_disconnected.wait()

    async def _register(self) -> None:
        """List the commands; without it they still work as text."""
        try:
            await self.http.bulk_upsert_global_commands(
                self.application_id or 0, [_application_command(command) for command in self._commands]
            )
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            count_error("adapter", "commands")
            log.warning("discord.commands_refused", detail=str(_explained(error)))

    # What discord.py calls, each in a task, begun in the order of the events

    async def on_connect(self) -> None:
        self._arrivals.put_nowait(None)
        self._came_back()

    async def on_resumed(self) -> None:
        self._came_back()

    def _came_back(self) -> None:
        self._is_disconnected.clear()
        self._is_connected.set()
        self._adapter.report("up")

    async def on_disconnect(self) -> None:
        self._is_connected.clear()
        self._is_disconnected.set()
        count_error("adapter", "disconnected")
        self._adapter.report("down", "The connection to Discord's gateway is lost; june is reconnecting.")

    async def on_message(self, message: discord.Message) -> None:
        self._arrivals.put_nowait(message)

    async def on_interaction(self, interaction: discord.Interaction) -> None:
        if interaction.type is discord.InteractionType.application_command:
            self._arrivals.put_nowait(interaction)

    async def on_error(self, event_method: str, /, *args: Any, **kwargs: Any) -> None:
        """Only a full queue makes one of the above fail; the next session catches up."""
        del event_method, args, kwargs
        self._failed.set()

    # What becomes of it

    async def _commit(self) -> None:
        while True:
            arrival = await self._arrivals.get()
            if arrival is None:
                await self._catch_up()
            elif isinstance(arrival, discord.Message):
                await self._commit_message(arrival)
            elif (inbound := _from_interaction(arrival)) is not None:
                self._adapter.keep_interaction(arrival)  # before it is answered
                await self._intake.receive([inbound])

    async def _commit_message(self, message: discord.Message) -> None:
        channel = str(message.channel.id)
        is_group = not isinstance(message.channel, discord.DMChannel)
        inbound = self._inbound(message, is_group=is_group)
        if inbound is None:
            return
        cursor = None
        if channel in self._channels:
            self._channels[channel] = self._channels.pop(channel)
            cursor = (f"{CHANNELS_CURSOR}:{channel}", inbound.message_id)
        elif inbound.is_addressed or inbound.attachment:
            self._channels[channel] = (is_group, message.id)
            while len(self._channels) > MAX_CHANNELS:
                del self._channels[next(iter(self._channels))]
            cursor = (CHANNELS_CURSOR, json.dumps(self._channels))
        await self._intake.receive([inbound], cursor=cursor)

    async def _catch_up(self) -> None:
        """Commit what was said in the known channels while june was not connected."""
        for channel, (is_group, first) in list(self._channels.items()):
            cursor = f"{CHANNELS_CURSOR}:{channel}"
            after = discord.Object(max(first, int(await self._intake.cursor(cursor) or 0)))
            history = self.get_partial_messageable(int(channel)).history(
                limit=MAX_MISSED, after=after, oldest_first=True
            )
            try:
                missed = [message async for message in history]
            except discord.NotFound:
                del self._channels[channel]
                continue
            except discord.Forbidden:
                continue
            if missed:
                batch = [self._inbound(message, is_group=is_group) for message in missed]
                await self._intake.receive(
                    [inbound for inbound in batch if inbound], cursor=(cursor, str(missed[-1].id))
                )
                log.info("discord.caught_up", messages=len(missed), cut=len(missed) == MAX_MISSED)

    def _inbound(self, message: discord.Message, *, is_group: bool) -> Inbound | None:
        """A message as june knows it; None if there is nothing in it for june."""
        if message.author.bot or message.webhook_id or message.is_system() or self.user is None:
            return None
        text = re.sub(rf"\s*<@!?{self.user.id}>\s*", " ", message.content).strip()
        recording = _recording(message)
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
            or any(user.id == self.user.id for user in message.mentions)
            or (isinstance(answered, discord.Message) and answered.author.id == self.user.id)
            or (kind == "command" and text[1:].partition(" ")[0] in {each.name for each in self._commands})
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


class _VoiceFile(discord.File):
    """A voice message's only attachment; discord.py sends none by itself.

    By https://docs.discord.com/developers/resources/message#voice-messages.
    """

    def __init__(self, voice: Voice) -> None:
        super().__init__(io.BytesIO(voice.ogg_opus), "voice-message.ogg")
        self._voice = voice

    def to_dict(self, index: int) -> dict[str, Any]:
        waveform = base64.b64encode(self._voice.waveform).decode()
        return super().to_dict(index) | {"duration_secs": self._voice.duration_s, "waveform": waveform}


def _point_at(settings: DiscordSettings) -> None:
    """discord.py keeps the addresses in its classes."""
    Route.BASE = settings.api_base.rstrip("/")
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(settings.gateway)


def _channel_id(chat: str) -> int:
    return int(chat.removeprefix("discord:"))


def _recording(message: discord.Message) -> discord.Attachment | None:
    audio = (each for each in message.attachments if (each.content_type or "").startswith("audio/"))
    return next(audio, None)


def _application_command(command: CommandInfo) -> dict[str, Any]:
    """A slash command with at most one option, as Discord's API takes it."""
    argument = {"type": discord.AppCommandOptionType.string.value, "name": "argument"}
    options = [{**argument, "description": command.argument, "required": False}] if command.argument else []
    kind = discord.AppCommandType.chat_input.value
    return {"type": kind, "name": command.name, "description": command.description, "options": options}


def _from_interaction(interaction: discord.Interaction) -> Inbound | None:
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


def _explained(error: Exception) -> AdapterError:
    """What went wrong, in one sentence that holds neither a token nor what was to be sent."""
    if isinstance(error, discord.PrivilegedIntentsRequired):
        return AdapterError(
            "Discord keeps the text of messages from june: switch on Message Content Intent, under Bot, "
            "in Discord's developer portal."
        )
    code = error.code if isinstance(error, discord.ConnectionClosed) else None
    if isinstance(error, discord.LoginFailure) or code == AUTHENTICATION_FAILED:
        return AdapterError("Discord does not know the token in discord.token.")
    if code is not None:
        return AdapterError(f"Discord closed the gateway with code {code}.")
    if isinstance(error, discord.RateLimited):
        return AdapterError("Discord asks to wait.", retry_after_s=error.retry_after)
    if isinstance(error, discord.HTTPException):
        wait = error.response.headers.get("Retry-After", "")
        return AdapterError(
            f"Discord answered {error.status} (code {error.code}).",
            retry_after_s=float(wait) if re.fullmatch(r"\d+(\.\d+)?", wait) else None,
        )
    return AdapterError(f"Discord is out of reach: {type(error).__name__}.")


def _may_pass(status: int) -> bool:
    """Whether it is worth another try; with 401 the owner may renew the token."""
    return (
        status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}
        or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    )


def _reason(error: Exception, *, is_voice: bool) -> Refusal:
    if not isinstance(error, discord.HTTPException) or _may_pass(error.status):
        return "try_again"
    if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or error.code == TOO_LARGE:
        return "too_large"
    if is_voice and error.code in NO_VOICE_MESSAGES:
        return "voice_forbidden"
    return "gone" if error.status == HTTPStatus.NOT_FOUND else "refused"
