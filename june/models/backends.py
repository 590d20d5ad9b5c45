"""Backends as a room's table lists them, and how the settings name one."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeVar

from june.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine, as one line of a table.

    Attributes:
        path: "module:Class". The module is imported when the engine is chosen, and not before. The class is
            called with the room's settings section and the source.
        opens: what the source is: a `LocalModel` ("files") or an `Endpoint` ("endpoint").
    """

    path: str
    opens: Literal["files", "endpoint"] = "files"


B = TypeVar("B", bound=Backend)


def find_backend(table: Mapping[str, B], name: str, key: str) -> B:
    """Return the backend of that name.

    Args:
        table: a room's backends by their names.
        name: what the settings say.
        key: where they say it, such as "llm.backend".

    Raises:
        SettingsError: the table has no such name; the text lists those that it has.
    """
    if name not in table:
        raise SettingsError(f"{key}: {name!r} is not a backend; expected one of: {', '.join(table)}.")
    return table[name]


def load_class(path: str) -> Any:
    """Import "module:Class" and return the class."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
