"""Files of the owner's own: one of a kind in a folder, there and not empty, read within bounds."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from june.errors import ModelFileError
from june.languages import language_code
from june.models.catalogue import ModelFile

SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
"""The name of a part of a GGUF file that was split."""
MAX_TEXT_BYTES = 50_000_000


def only_file(path: Path, ending: str) -> Path:
    """Return the one file of a kind that `path` is, or that lies in the folder `path`.

    Raises:
        ModelFileError: there is no such file, or more than one.
    """
    if not path.is_dir():
        if path.suffix != ending:
            raise ModelFileError(f"{path} is not a file {ending}.")
        return present_file(path, "june")
    found = sorted(path.glob(f"*{ending}"))
    first = [file for file in found if (part := SPLIT.fullmatch(file.name)) is None or int(part["part"]) == 1]
    if len(first) != 1:
        raise ModelFileError(f"{path} holds {len(first)} files {ending}: name the one that june shall use.")
    return first[0]


def present_file(path: Path, user: str) -> Path:
    """Return the path of a file that is there and not empty; `user` says what needs it.

    Raises:
        ModelFileError: it is not.
    """
    try:
        if path.stat().st_size and path.is_file():
            return path
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error
        raise ModelFileError(f"{path} is missing, and {user} needs it.") from error
    raise ModelFileError(f"{path} is empty, or no file.")


def own_files(paths: Sequence[Path]) -> tuple[ModelFile, ...]:
    """Return what a model's entry holds of files: name, size and time of the last change."""
    stats = [(path, path.stat()) for path in paths]
    return tuple(
        ModelFile(name=path.name, size_bytes=stat.st_size, modified_ns=stat.st_mtime_ns)
        for path, stat in stats
    )


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ModelFileError: it cannot be read, or is no JSON.
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
