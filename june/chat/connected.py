"""The chat apps as a turn sees them: recordings to fetch, and signs of life to show."""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Literal

from june.backoff import BackOff
from june.chat import Adapter
from june.chat.formatting import escape
from june.chat.progress import GrowingMessage, working
from june.chat.wording import with_echo
from june.errors import DeliveryError
from june.messages import Inbound, Platform
from june.store import Received, Store

DOWNLOAD_BACK_OFF = BackOff(first_s=0.5, longest_s=8, factor=4)
"""Pauses between tries to fetch a recording; whoever sent it waits for the answer."""
DOWNLOAD_TRIES = 4


class ConnectedApps:
    """What a turn needs of whichever app its message came from."""

    def __init__(self, store: Store, adapters: Mapping[Platform, Adapter], *, max_bytes: int) -> None:
        self._store = store
        self._adapters = adapters
        self._max_bytes = max_bytes

    async def download(self, message: Inbound) -> bytes:
        """Return the recording of a message; try again a few times if that may help.

        Raises:
            DeliveryError: the app does not hand it out.
        """
        adapter = self._adapter(message)
        for failures in range(1, DOWNLOAD_TRIES):
            try:
                return await adapter.download(message, max_bytes=self._max_bytes)
            except DeliveryError as error:
                if error.reason != "try_again":
                    raise
                await asyncio.sleep(DOWNLOAD_BACK_OFF.pause_s(failures, error.retry_after_s))
        return await adapter.download(message, max_bytes=self._max_bytes)

    def preview(self, received: Received, echo: str) -> "EchoedMessage":
        """Return a preview of the answer to this message, below an echo of what was heard."""
        return EchoedMessage(GrowingMessage(self._store, self._adapter(received.message), received), echo)

    def working(
        self, message: Inbound, doing: Literal["recording", "typing"]
    ) -> AbstractAsyncContextManager[None]:
        """Show in the message's chat, during the block, that june works on an answer."""
        return working(self._adapter(message), message.chat, doing)

    def literal(self, text: str) -> str:
        """Return Markdown that shows a text as it is."""
        return escape(text)

    def _adapter(self, message: Inbound) -> Adapter:
        adapter = self._adapters.get(message.platform)
        if adapter is None:
            raise DeliveryError("refused", f"june is not on {message.platform} any more.")
        return adapter


class EchoedMessage:
    """A preview that begins with what was heard."""

    def __init__(self, message: GrowingMessage, echo: str) -> None:
        self._message = message
        self._echo = echo

    def show(self, text: str) -> None:
        """Show this Markdown instead of what was shown before."""
        self._message.show(with_echo(text, self._echo))

    async def finish(self) -> str:
        """Show no more, and return the id of the message that shows the beginning; "": there is none."""
        return await self._message.finish()
