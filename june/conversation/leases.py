"""Ends what has run out: programs' leases, and questions that nobody answered."""

import asyncio
from collections.abc import Callable

from june.conversation.apps import Addresses
from june.errors import DeliveryError, QueueError, StageError
from june.messages import Address, Outbound
from june.sections import QueueSettings
from june.store import Explain, Message, Store
from june.telemetry import log

LOOK_EVERY_S = 1.0


class Leases:
    """Looks every second for what has run out.

    Args:
        store: the queue.
        settings: its section.
        addresses: where the owner is told of a message that was given up.
        wake_delivery: called when there may be something to send.
    """

    def __init__(
        self, store: Store, settings: QueueSettings, addresses: Addresses, wake_delivery: Callable[[], None]
    ) -> None:
        self._store = store
        self._settings = settings
        self._addresses = addresses
        self._wake_delivery = wake_delivery

    async def run(self) -> None:
        """End what runs out, until cancelled.

        Raises:
            StoreError: the store failed.
        """
        while True:
            try:
                if await self._store.queue.has_run_out():
                    explain = await self.explanation()
                    await self._store.queue.expire(max_attempts=self._settings.max_attempts, explain=explain)
                    self._wake_delivery()
            except StageError as error:  # too many wait for the store
                log.warning("leases.delayed", code=error.code)
            await asyncio.sleep(LOOK_EVERY_S)

    async def explanation(self) -> Explain:
        """Return what makes the owner's notice of a given-up message, or none if no owner is reached."""
        try:
            owner: Address | None = await self._addresses.owner()
        except (QueueError, DeliveryError):
            owner = None

        def explain(message: Message) -> Outbound | None:
            if owner is None:
                log.warning("queue.given_up", detail="no owner can be told")
                return None
            text = (
                f"Message {message.id} in the queue was given up: "
                f"programs took it {message.attempts} times, and none came to an end with it."
            )
            return Outbound(owner.chat, "text", text, user=owner.user, other_users=owner.other_users)

        return explain
