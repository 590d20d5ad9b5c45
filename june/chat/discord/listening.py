"""What arrives from Discord's gateway is handed to the intake, in its order.

Nothing is lost between Discord and the inbox, with one exception. A dropped connection is resumed, and
Discord repeats what was missed; when a session is over, the channels in which june was addressed before are
read from their last committed message on. The exception is a channel that june has never seen: a bot cannot
ask Discord for its direct channels.
"""

import asyncio
import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import aiohttp
import discord
from discord.gateway import KeepAliveHandler

from june.chat import CommandInfo, Intake
from june.chat.discord.connection import MAX_RATE_LIMIT_S, point_at
from june.chat.discord.errors import explained
from june.chat.discord.reading import Me, from_interaction, inbound
from june.chat.discord.settings import DiscordSettings
from june.errors import AdapterError
from june.messages import Inbound, PlatformState
from june.telemetry import count_error, log

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
CHANNELS_CURSOR = "discord"


class Reporting(Protocol):
    """The adapter, as a listener sees it."""

    def keep_interaction(self, interaction: discord.Interaction, /) -> None:
        """Have the first answer to it sent as its response."""

    def report(self, state: PlatformState, detail: str = "") -> None:
        """Set what `Adapter.health` returns."""


class GatewayListener(discord.Client):
    """One connection to the gateway; it commits what arrives, in its order."""

    def __init__(self, adapter: Reporting, intake: Intake, commands: Sequence[CommandInfo]) -> None:
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
        point_at(settings)
        self._channels = json.loads(await self._intake.cursor(CHANNELS_CURSOR) or "{}")
        try:
            await self.login(settings.token.get_secret_value())
            await self._serve()
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            raise explained(error) from None

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
            log.warning("commands.refused", detail=str(explained(error)))

    # What discord.py calls, each in a task, begun in the order of the events

    async def on_connect(self) -> None:
        """Catch up: a session begins."""
        self._arrivals.put_nowait(None)
        self._came_back()

    async def on_resumed(self) -> None:
        """Go on: Discord repeats what was missed."""
        self._came_back()

    def _came_back(self) -> None:
        self._is_disconnected.clear()
        self._is_connected.set()
        self._adapter.report("up")

    async def on_disconnect(self) -> None:
        """Report it; discord.py reconnects by itself."""
        self._is_connected.clear()
        self._is_disconnected.set()
        count_error("adapter", "disconnected")
        self._adapter.report("down", "The connection to Discord's gateway is lost; june is reconnecting.")

    async def on_message(self, message: discord.Message) -> None:
        """Have it committed."""
        self._arrivals.put_nowait(message)

    async def on_interaction(self, interaction: discord.Interaction) -> None:
        """Have a slash command committed."""
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
            elif (command := from_interaction(arrival)) is not None:
                self._adapter.keep_interaction(arrival)  # before it is answered
                await self._intake.receive([command])

    async def _commit_message(self, message: discord.Message) -> None:
        channel = str(message.channel.id)
        is_group = not isinstance(message.channel, discord.DMChannel)
        arrived = self._read(message, is_group=is_group)
        if arrived is None:
            return
        cursor = None
        if channel in self._channels:
            self._channels[channel] = self._channels.pop(channel)
            cursor = (f"{CHANNELS_CURSOR}:{channel}", arrived.message_id)
        elif arrived.is_addressed or arrived.attachment:
            self._channels[channel] = (is_group, message.id)
            while len(self._channels) > MAX_CHANNELS:
                del self._channels[next(iter(self._channels))]
            cursor = (CHANNELS_CURSOR, json.dumps(self._channels))
        await self._intake.receive([arrived], cursor=cursor)

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
                batch = [self._read(message, is_group=is_group) for message in missed]
                await self._intake.receive(
                    [each for each in batch if each], cursor=(cursor, str(missed[-1].id))
                )
                log.info("backlog.received", messages=len(missed), cut=len(missed) == MAX_MISSED)

    def _read(self, message: discord.Message, *, is_group: bool) -> Inbound | None:
        if self.user is None:
            return None
        me = Me(self.user.id, {each.name for each in self._commands})
        return inbound(message, me, is_group=is_group)


def _application_command(command: CommandInfo) -> dict[str, Any]:
    """Return a slash command with at most one option, as Discord's API takes it."""
    argument = {"type": discord.AppCommandOptionType.string.value, "name": "argument"}
    options = [{**argument, "description": command.argument, "required": False}] if command.argument else []
    kind = discord.AppCommandType.chat_input.value
    return {"type": kind, "name": command.name, "description": command.description, "options": options}
