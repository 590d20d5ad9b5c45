"""What a conversation needs of the chat apps; `june.chat` implements it."""

from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from june.messages import Address, Inbound
from june.store import Received, Role


class Preview(Protocol):
    """The beginning of an answer, which its chat sees grow."""

    def show(self, text: str) -> None:
        """Show this Markdown instead of what was shown before."""

    async def finish(self) -> str:
        """Show no more; return the id of the message that shows the beginning, "" if there is none."""


class ChatApps(Protocol):
    """The chat apps that june is on."""

    async def download(self, message: Inbound, /) -> bytes:
        """Return the recording of a message.

        Raises:
            DeliveryError: the app does not hand it out.
        """

    def preview(self, received: Received, echo: str, /) -> Preview:
        """Return a preview of the answer to this message, below an echo of what was heard."""

    def working(
        self, message: Inbound, doing: Literal["recording", "typing"]
    ) -> AbstractAsyncContextManager[None]:
        """Show in the message's chat that june works on an answer, while the block lasts."""

    def literal(self, text: str, /) -> str:
        """Return Markdown that shows a text as it is."""


class Addresses(Protocol):
    """Where people with access are reached."""

    async def role_of(self, user: str) -> Role | None:
        """Return whether someone is an owner or allowed; None: a stranger."""

    async def owner(self) -> Address:
        """Return where the owner is reached.

        Raises:
            QueueError: no owner is on an app that june is on.
            DeliveryError: the chat cannot be found out at the moment.
        """
