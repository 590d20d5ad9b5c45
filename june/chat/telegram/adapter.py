"""Telegram, through aiogram's client."""

from collections.abc import Sequence

from june.chat import AdapterHealth, CommandInfo, Intake
from june.chat.telegram.connection import Connection
from june.chat.telegram.receiving import Receiving
from june.chat.telegram.sending import Sending
from june.chat.telegram.settings import TelegramSettings
from june.errors import DeliveryError, SettingsError
from june.messages import Inbound, Platform
from june.sections import DeliverySettings


class Telegram(Sending):
    """Telegram, as an `Adapter`.

    Raises:
        SettingsError: the token does not have the form of one, or the webhook's address or secret is missing.
    """

    platform: Platform = "telegram"

    def __init__(self, settings: TelegramSettings, delivery: DeliverySettings) -> None:
        if settings.mode == "webhook" and not (settings.webhook_url and settings.webhook_secret):
            raise SettingsError("telegram.mode: a webhook needs telegram.webhook_url and .webhook_secret.")
        connection = Connection(settings, timeout_s=delivery.timeout_s)
        super().__init__(connection)
        self._receiving = Receiving(connection, settings, timeout_s=delivery.timeout_s)

    async def run(self, intake: Intake, commands: Sequence[CommandInfo]) -> None:
        """Hand over what arrives, until cancelled, as `Adapter.run` says."""
        await self._receiving.run(intake, commands)

    async def close(self) -> None:
        """Close every connection."""
        await self._connection.close()

    def health(self) -> AdapterHealth:
        """Return whether Telegram answers june's requests for messages."""
        return self._receiving.health

    async def download(self, message: Inbound, *, max_bytes: int) -> bytes:
        """Return the recording of a message, as `Adapter.download` says."""
        attachment = message.attachment
        if attachment is None:
            raise DeliveryError("gone", "The message has no recording.")
        if attachment.size_bytes > max_bytes:
            raise DeliveryError("too_large", f"The recording has {attachment.size_bytes} bytes.")
        try:
            return await self._connection.fetch(attachment.file_id, max_bytes)
        except DeliveryError as error:
            if error.reason != "gone":
                raise
        # A link lives for an hour: by a new one.
        return await self._connection.fetch(attachment.file_id, max_bytes)
