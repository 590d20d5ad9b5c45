"""Files of the owner's own: one of a kind in a folder, there and not empty, read within bounds."""

import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from june.errors import ModelFileError
from june.languages import language_code
from june.models.catalogue import ModelFile

SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
"""The name of a part of a GGUF file that was split."""
MAX_TEXT_BYTES = 50_000_000
MAX_PRINTED = 100


def printable(text: str) -> str:
    """Return what of a stranger's text a terminal can show, without control characters and not too long."""
    return "".join(filter(str.isprintable, text))[:MAX_PRINTED]


def only_file(path: Path, ending: str) -> Path:
    """Return the one file of a kind that `path` is, or that lies in the folder `path`.

    Raises:
        ModelFileError: there is no such file, or more than one, or june may not look.
    """
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        names = [file.name for file in path.iterdir()] if is_folder else []
    except (FileNotFoundError, NotADirectoryError):
        is_folder, names = False, []
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not is_folder:
        if path.suffix != ending:
            raise ModelFileError(f"{path} is not a file {ending}.")
        return present_file(path, "june")
    found = sorted(name for name in names if name.endswith(ending))
    first = [name for name in found if (part := SPLIT.fullmatch(name)) is None or int(part["part"]) == 1]
    if len(first) != 1:
        raise ModelFileError(f"{path} holds {len(first)} files {ending}: name the one that june shall use.")
    return path / first[0]


def present_file(path: Path, user: str) -> Path:
    """Return the path of a file that is there and not empty; `user` says what needs it.

    Raises:
        ModelFileError: it is not.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} is missing, and {user} needs it.") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not (found.st_size and stat.S_ISREG(found.st_mode)):
        raise ModelFileError(f"{path} is empty, or not a file.")
    return path


def _unreadable(path: Path, error: OSError | ValueError) -> ModelFileError:
    """Return the error for a path that cannot be looked at; a ValueError is about a NUL in it."""
    reason = error.strerror if isinstance(error, OSError) else "No path holds a NUL character"
    return ModelFileError(f"{shown(path)} cannot be read: {reason}.")


def shown(path: Path) -> str:
    """Return a path as a terminal can show it, whatever its bytes are."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def is_text(path: Path) -> bool:
    """Return whether a path is text in UTF-8, so that it can be logged and sent."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def own_files(paths: Sequence[Path]) -> tuple[ModelFile, ...]:
    """Return what a model's entry holds of files: name, size and time of the last change.

    Raises:
        ModelFileError: a name is not text.
    """
    for path in paths:
        if not is_text(path):
            raise ModelFileError(f"{shown(path)} cannot be used: its path is not in UTF-8.")
    stats = [(path, path.stat()) for path in paths]
    return tuple(
        ModelFile(name=path.name, size_bytes=found.st_size, modified_ns=found.st_mtime_ns)
        for path, found in stats
    )


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ModelFileError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON.") from error


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ModelFileError: it cannot be read, is longer than `MAX_TEXT_BYTES`, or is not in UTF-8.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ModelFileError(f"{path} has more than {MAX_TEXT_BYTES / 1e6:.0f} MB.")
        return path.read_text("utf-8")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is not text in UTF-8.") from error


def code_of(tag: Any) -> str:
    """Return a language's code; "" for what is none."""
    try:
        return language_code(tag) if isinstance(tag, str) else ""
    except ValueError:
        return ""
