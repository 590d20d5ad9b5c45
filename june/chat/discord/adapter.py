"""Discord: direct messages, guild channels and threads, through discord.py.

Two clients of discord.py: one sends, from the first need of it until `close`; one listens, a new one in each
run, so that a lost gateway does not take an answer with it that is being sent.
"""

from collections.abc import Sequence
from http import HTTPStatus

import aiohttp

from june.chat import AdapterHealth, CommandInfo, Intake
from june.chat.discord.errors import may_pass
from june.chat.discord.listening import GatewayListener
from june.chat.discord.reading import recording_of
from june.chat.discord.sending import Sending
from june.chat.discord.settings import DiscordSettings
from june.errors import DeliveryError, JuneError, Refusal
from june.messages import Inbound, Platform, PlatformState
from june.sections import DeliverySettings
from june.telemetry import adapter_up


class Discord(Sending):
    """june on Discord; an `Adapter`."""

    platform: Platform = "discord"

    def __init__(self, settings: DiscordSettings, delivery: DeliverySettings) -> None:
        super().__init__(settings, timeout_s=delivery.timeout_s)
        self._health = AdapterHealth("starting")
        self._files: aiohttp.ClientSession | None = None

    async def run(self, intake: Intake, commands: Sequence[CommandInfo]) -> None:
        """See `Adapter.run`.

        Raises:
            AdapterError: the connection was refused or is lost.
            StoreError: what arrived could not be committed.
        """
        self.report("starting")
        listener = GatewayListener(self, intake, commands)
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
        await super().close()
        if self._files is not None:
            await self._files.close()

    def health(self) -> AdapterHealth:
        """See `Adapter.health`."""
        return self._health

    def report(self, state: PlatformState, detail: str = "") -> None:
        """Set what `health` returns."""
        self._health = AdapterHealth(state, detail)
        adapter_up.labels(platform=self.platform).set(state == "up")

    async def download(self, message: Inbound, *, max_bytes: int) -> bytes:
        """See `Adapter.download`."""
        if message.attachment is None:
            raise DeliveryError("gone", "The message has no recording.")
        if message.attachment.size_bytes > max_bytes:
            raise DeliveryError("too_large", f"The recording is larger than {max_bytes} bytes.")
        async with self.translated():
            data = await self._fetch(message.attachment.file_id, max_bytes)
            if data is None:  # the link has expired: the message, asked for again, has a new one
                channel = await self._channel(message.chat)
                renewed = recording_of(await channel.fetch_message(int(message.message_id)))
                data = await self._fetch(renewed.url, max_bytes) if renewed else None
        if data is None:
            raise DeliveryError("gone", "Discord does not hand out the recording any more.")
        return data

    async def _fetch(self, link: str, max_bytes: int) -> bytes | None:
        """Return what stands behind a link, or None if it has expired."""
        if self._files is None:
            self._files = aiohttp.ClientSession()
        async with self._files.get(link) as response:
            if response.status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
                return None
            if not response.ok:
                reason: Refusal = "try_again" if may_pass(response.status) else "refused"
                raise DeliveryError(reason, f"Discord answered {response.status} to a download.")
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > max_bytes:
                    raise DeliveryError("too_large", f"The recording is larger than {max_bytes} bytes.")
            return bytes(data)
