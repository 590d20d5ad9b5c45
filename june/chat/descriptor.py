"""What june knows of a chat app without loading it: one `ChatApp`, named `APP`, in each app's package."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Literal

from june.chat import Adapter
from june.sections import AppSettings, DeliverySettings


@dataclass(frozen=True, slots=True)
class Server:
    """A server that an app is reached at, as `june check --online` asks it.

    Attributes:
        address: what is shown of it; never a token.
        key: the setting that names it, such as "telegram.api_base".
        url: what is requested; it may hold the token.
        method: how.
        headers: what is sent; they may hold the token.
        takes_token: whether its answer says if the token is accepted, and whose it is.
    """

    address: str
    key: str
    url: str
    method: Literal["GET", "POST"] = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    takes_token: bool = True


@dataclass(frozen=True, slots=True)
class Port:
    """A port that june listens on for an app.

    Attributes:
        name: what it is for, such as "webhook".
        key: the setting that names it, such as "telegram.webhook_port".
        host: the address of this machine.
        number: the port; 0: any that is free.
    """

    name: str
    key: str
    host: str
    number: int


def _none(_: Any) -> Sequence[Any]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatApp:
    """One chat app.

    Its name is its section in the settings, its label in the metrics, and the beginning of each of its chats
    and people, such as "telegram:123456789".

    Attributes:
        name: lower case, such as "telegram".
        title: for people, such as "Telegram".
        settings: its section; a key `token` that is set says that june is on it.
        adapter: where its `Adapter` is, such as "june.chat.telegram.adapter:Telegram". It is loaded only if
            june is on the app, and called with the section and `DeliverySettings`.
        is_token: whether a text has the form of a token.
        token_shape: finds tokens in a longer text, for the log, which removes them; None: a token does not
            differ from other words.
        remedy: what an owner does about a token that does not have the form of one.
        visible: what a reader sees of a part of the app's markup, such as `Adapter.parts` gives it.
        faults: what is wrong with such a part, one sentence each; empty: nothing.
        reads_plain_text_as_markup: whether the app knows no text without markup.
        person: a regular expression of a person's id on the app.
        servers: those that the app is reached at, from its section.
        ports: the ports that june listens on for it, from its section.
    """

    name: str
    title: str
    settings: type[AppSettings]
    adapter: str
    is_token: Callable[[str], bool]
    remedy: str
    visible: Callable[[str], str]
    faults: Callable[[str], Sequence[str]]
    token_shape: re.Pattern[str] | None = None
    reads_plain_text_as_markup: bool = False
    person: str = "[0-9]{1,20}"
    servers: Callable[[Any], Sequence[Server]] = _none
    ports: Callable[[Any], Sequence[Port]] = _none

    def create(self, settings: AppSettings, delivery: DeliverySettings) -> Adapter:
        """Load the app's library, and return june's connection to it.

        Raises:
            SettingsError: the section does not say enough, or the token does not have the form of one.
        """
        adapter: Adapter = resolve_name(self.adapter)(settings, delivery)
        return adapter

    def has_person(self, user: str) -> bool:
        """Return whether a user, such as "telegram:123456789", has the form of this app's."""
        return re.fullmatch(f"{self.name}:({self.person})", user) is not None
