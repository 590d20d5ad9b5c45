"""The chat apps that june knows: one line each."""

import re
from collections.abc import Sequence
from importlib import import_module

from june.chat.descriptor import ChatApp

APPS = {
    "telegram": "june.chat.telegram",
    "discord": "june.chat.discord",
}
"""The package whose `APP` describes the app, by the app's name. An owner's messages go to the first app that
june is on, and to the next if that does not take them."""


def chat_apps() -> Sequence[ChatApp]:
    """Return all apps in the order of the table."""
    return [_described(package) for package in APPS.values()]


def token_shapes() -> Sequence[re.Pattern[str]]:
    """Return what finds the apps' tokens in a text; see `ChatApp`."""
    return [app.token_shape for app in chat_apps() if app.token_shape is not None]


def chat_app(name: str) -> ChatApp | None:
    """Return the app of a name, or of a chat or user such as "telegram:123456789"; None: it is not known."""
    package = APPS.get(name.partition(":")[0])
    return _described(package) if package is not None else None


def is_person(user: str) -> bool:
    """Return whether a text names a person on one of the apps, such as "telegram:123456789"."""
    app = chat_app(user)
    return app is not None and app.has_person(user)


def _described(package: str) -> ChatApp:
    app: ChatApp = import_module(package).APP
    return app
