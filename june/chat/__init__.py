"""The chat apps: what june needs of one, and a package for each.

Data flows one way. An adapter hands what arrives to the inbox, and sends what the delivery takes from the
outbox; it never calls the pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from june.messages import Delivered, Inbound, Platform, PlatformState, Voice


@dataclass(frozen=True, slots=True)
class AdapterHealth:
    """Whether the connection to a chat app works."""

    state: PlatformState
    detail: str = ""
    """One sentence on what is wrong; never holds a token."""


@dataclass(frozen=True, slots=True)
class CommandInfo:
    """One command, as both platforms list it."""

    name: str
    """Without the slash."""
    description: str
    """At most 100 characters."""
    argument: str = ""
    """What may follow it, such as "on | off | both"; empty: nothing."""
    owners_only: bool = False


class Intake(Protocol):
    """Where an adapter hands in what arrived."""

    async def receive(self, batch: Sequence[Inbound], *, cursor: tuple[str, str] | None = None) -> None:
        """Commit what june accepts of the batch, each message once, and the cursor in the same transaction.

        When it returns, the platform may be told that the batch was received.

        Args:
            batch: in the order of their arrival.
            cursor: a name and a value that `cursor` gives back after a restart.
        """

    async def moved(self, old: str, new: str) -> None:
        """Keep under a chat's new name what is kept of it; `receive` takes what is said there.

        Args:
            old: the chat as in `Inbound.chat`, such as "telegram:-5".
            new: its name from now on, such as "telegram:-1005".
        """

    async def cursor(self, name: str) -> str:
        """Return the value that was committed last under this name; "" if none was."""


class Adapter(Protocol):
    """One chat app. All its methods run on the event loop.

    `DeliveryError`s carry what the platform said; a token never stands in one.
    """

    @property
    def platform(self) -> Platform:
        """The name of the chat app."""

    async def run(self, intake: Intake, commands: Sequence[CommandInfo]) -> None:
        """Connect, register the commands, and hand over what arrives, until cancelled.

        Cancelling it stops the intake; sending works before, while and after it runs, until `close`.

        Raises:
            AdapterError: the connection was refused or is lost; it may be run again.
        """

    async def close(self) -> None:
        """Close every connection; nothing is left open or running."""

    def health(self) -> AdapterHealth:
        """Return whether the connection works now."""

    async def download(self, message: Inbound, *, max_bytes: int) -> bytes:
        """Return the recording of a message; a link that has expired is renewed once.

        Raises:
            DeliveryError: "too_large", "gone", "try_again" or "refused".
        """

    def parts(self, text: str) -> list[str]:
        """Return Markdown as messages in the platform's markup, each within the platform's limits."""

    async def send_text(self, chat: str, part: str, *, reply_to: str = "") -> Delivered:
        """Send one of `parts`.

        Raises:
            DeliveryError: it was not sent; "markup": the platform does not understand it, and its visible
                text should be sent by `send_plain`.
        """

    async def send_plain(self, chat: str, text: str, *, reply_to: str = "") -> Delivered:
        """Send text without markup, which is cut at the platform's limit.

        Raises:
            DeliveryError: it was not sent.
        """

    async def send_voice(self, chat: str, voice: Voice, *, reply_to: str = "") -> Delivered:
        """Send a voice message.

        Raises:
            DeliveryError: it was not sent; "voice_forbidden" and "too_large": it never will be.
        """

    async def edit_text(self, chat: str, message_id: str, part: str) -> Delivered:
        """Replace a sent message's text by one of `parts`; it may have been the same before.

        Raises:
            DeliveryError: it was not replaced; "gone": there is no such message.
        """

    async def delete(self, chat: str, message_id: str) -> None:
        """Delete a message of june's; a message that is gone already is not an error.

        Raises:
            DeliveryError: it was not deleted.
        """

    async def private_chat(self, user: str) -> str:
        """Return the private chat with a person; open it if there is none.

        Raises:
            DeliveryError: the app does not open one.
        """

    async def show_draft(self, chat: str, draft_id: int, part: str) -> bool:
        """Show a text that is still being written; return False if the chat knows no drafts.

        Raises:
            DeliveryError: it was not shown.
        """

    async def show_working(self, chat: str, doing: Literal["recording", "typing"]) -> float:
        """Show that june works on an answer; return for how many seconds the sign stays.

        Raises:
            DeliveryError: it was not shown.
        """
