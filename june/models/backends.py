"""Backends as a room's table lists them, and how the settings name one."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeVar

from june.errors import SettingsError
from june.sections import ModelSection, Section


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine, as one line of a table.

    Attributes:
        path: "module:Class". The module is imported when the engine is chosen, and not before. The class is
            called with the room's settings section, the source, and last with its own section, if it has one.
        opens: what the source is: a `LocalModel` ("files") or an `Endpoint` ("endpoint").
        library: what `requirements/` installs for it, as Python imports it; empty: nothing.
        settings: "module:Class" of its own section within that of the room; empty: it has none. The module is
            imported at each start, and so imports no library of the engine's.
    """

    path: str
    opens: Literal["files", "endpoint"] = "files"
    library: str = ""
    settings: str = ""

    def own(self, section: ModelSection) -> tuple[Section, ...]:
        """Return its own section, if it has one, as it stands in that of the room."""
        return (section.own(load_class(self.settings)),) if self.settings else ()


def own_sections(table: Mapping[str, Backend]) -> dict[str, type[Section]]:
    """Return the own sections of a room's engines, by the engines' names."""
    return {name: load_class(backend.settings) for name, backend in table.items() if backend.settings}


B = TypeVar("B", bound=Backend)


def find_backend(table: Mapping[str, B], name: str, key: str) -> B:
    """Return the backend of that name.

    Args:
        table: a room's backends by their names.
        name: what the settings say; empty: the first of the table.
        key: where they say it, such as "llm.backend".

    Raises:
        SettingsError: the table has no such name; the text lists those that it has.
    """
    name = name or next(iter(table))
    if name not in table:
        raise SettingsError(f"{key}: {name!r} is not a backend; expected one of: {', '.join(table)}.")
    return table[name]


def load_class(path: str) -> Any:
    """Import "module:Class" and return the class."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
