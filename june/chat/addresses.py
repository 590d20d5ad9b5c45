"""Where a person is reached: which private chat, and which other person instead."""

from collections.abc import Mapping

from june.chat import Adapter
from june.chat.apps import APPS
from june.chat.intake import role_of
from june.errors import QueueError
from june.messages import Address, Platform
from june.sections import AccessSettings
from june.store import Role, Store


class AddressBook:
    """Finds people who have access, and nobody else.

    Args:
        store: who was let in, and where they wrote.
        access: owners and allowed people.
        adapters: the apps that june is on.
    """

    def __init__(self, store: Store, access: AccessSettings, adapters: Mapping[Platform, Adapter]) -> None:
        self._store = store
        self._access = access
        self._adapters = adapters

    async def role_of(self, user: str) -> Role | None:
        """Return whether someone is an owner or allowed; None: a stranger."""
        return await role_of(self._store, self._access, user)

    async def owner(self) -> Address:
        """Return the first owner on the first app, with those to turn to if that does not take a message.

        Raises:
            QueueError: no owner is on an app that june is on.
            DeliveryError: the chat cannot be found out at the moment.
        """
        firsts = (
            next((owner for owner in self._access.owners if owner.startswith(f"{platform}:")), None)
            for platform in APPS
            if platform in self._adapters
        )
        user, *others = [owner for owner in firsts if owner is not None] or [""]
        if not user:
            raise QueueError("conflict", "access.owners has no owner on a chat app that june is on.")
        return Address(user, await private_chat(self._store, self._adapters, user), tuple(others))

    async def find(self, to: str) -> Address:
        """Return the address of "owner", or of a person such as "telegram:123456789".

        Raises:
            QueueError: they have no access, or june is not on that app.
            DeliveryError: the chat cannot be found out at the moment.
        """
        if to == "owner":
            return await self.owner()
        if await self.role_of(to) is None:
            raise QueueError("no_access", f"{to} has no access.")
        return Address(to, await private_chat(self._store, self._adapters, to))


async def private_chat(store: Store, adapters: Mapping[Platform, Adapter], user: str) -> str:
    """Return the private chat with a person: where they wrote last, or one that is opened for them.

    Raises:
        QueueError: june is not on that app.
        DeliveryError: there is none yet, and the app does not open one.
    """
    platform = user.partition(":")[0]
    adapter = adapters.get(platform)
    if adapter is None:
        raise QueueError("conflict", f"june is not on {platform}.")
    return await store.people.private_chat(user) or await adapter.private_chat(user)
