"""Whether a model's files are here and right.

`june.models.pull` gives a file its name only after its sha256 was found right. `.verified.json` beside the
files remembers for which size and modification time that was, so that a start does not read 18 GB again: it
guards against accidents, not against someone who can write to the folder.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from june.errors import ModelFileError
from june.models.catalogue import ModelFile, ModelFiles
from june.telemetry import log
from june.workers import StopFlag

CHUNK_BYTES = 1 << 20
LOG_PAUSE_S = 10.0
"""Between two events that tell how far something is."""

OnRead = Callable[[str, int, int], None]
"""Is told, while a file is read, its name, how many bytes were read, and how many there are; it may raise."""

Stamps = dict[str, list[int | str]]
"""What was found right, by file name: size, modification time in ns, sha256."""

_UNWRITTEN: dict[Path, Stamps] = {}
"""Stamps of folders that june may only read: they hold for as long as the process does."""


def unheard(_name: str, _done_bytes: int, _total_bytes: int) -> None:
    """Tell nobody."""


def _read_stamps(folder: Path) -> Stamps:
    if folder in _UNWRITTEN:
        return _UNWRITTEN[folder]
    try:
        stamps: Stamps = json.loads((folder / ".verified.json").read_text())
    except (OSError, ValueError):  # then every file is hashed again
        return {}
    return stamps


def _write_stamps(folder: Path, stamps: Stamps) -> None:
    new = folder / f".verified.{os.getpid()}"
    try:
        new.write_text(json.dumps(stamps))
        new.replace(folder / ".verified.json")
    except OSError:
        _UNWRITTEN[folder] = stamps
        new.unlink(missing_ok=True)
    else:
        _UNWRITTEN.pop(folder, None)


def _stamp(path: Path, file: ModelFile) -> list[int | str]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, file.sha256 or ""]


def remember(file: ModelFile, folder: Path) -> None:
    """Note that the file in `folder` was found right as it is now."""
    _write_stamps(folder, _read_stamps(folder) | {file.name: _stamp(folder / file.name, file)})


def content_fault(path: Path, size_bytes: int, sha256: str | None, on_read: OnRead = unheard) -> str | None:
    """Return in what way the file at `path` differs, as the end of a sentence; None if it does not."""
    if (actual_bytes := path.stat().st_size) != size_bytes:
        return f"has {actual_bytes} bytes instead of {size_bytes}"
    if sha256 is None:
        return None
    actual = _sha256(path, size_bytes, on_read)
    return None if actual == sha256 else f"has sha256 {actual[:12]}… instead of {sha256[:12]}…"


def _sha256(path: Path, size_bytes: int, on_read: OnRead) -> str:
    digest = hashlib.sha256()
    done_bytes = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            on_read(path.name, done_bytes, size_bytes)
            digest.update(chunk)
            done_bytes += len(chunk)
    return digest.hexdigest()


def is_present(model: ModelFiles, folder: Path) -> bool:
    """Return whether every file is there with its size; `find_faults` reads them, too."""
    paths = [(folder / file.name, file.size_bytes) for file in model.files]
    return all(path.is_file() and path.stat().st_size == size_bytes for path, size_bytes in paths)


def find_faults(
    model: ModelFiles, folder: Path, *, trust_stamps: bool, on_read: OnRead = unheard
) -> dict[str, str]:
    """Return what is wrong, by file name; empty when every file is as it should be.

    Args:
        model: what the files should be.
        folder: where they lie.
        trust_stamps: do not read a file again that was found right before and has not changed since.
        on_read: is told how far the reading of a file is.

    Raises:
        ModelFileError: a file is there and cannot be read.
    """
    stamps = _read_stamps(folder)
    good: Stamps = {}
    faults = {}
    for file in model.files:
        path = folder / file.name
        try:
            stamp = _stamp(path, file)
            trusted = trust_stamps and stamps.get(file.name) == stamp
            fault = None if trusted else content_fault(path, file.size_bytes, file.sha256, on_read)
        except FileNotFoundError:
            stamp, fault = [], "is missing"
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error
        if fault:
            faults[file.name] = fault
        elif file.sha256:
            good[file.name] = stamp
    if good != stamps and any(file.sha256 for file in model.files):  # else it is the owner's own folder
        _write_stamps(folder, good)
    return faults


def require(model: ModelFiles, folder: Path, on_read: OnRead = unheard) -> None:
    """Return if every file is as it should be; cheap unless one has changed.

    Raises:
        ModelFileError: a file is missing or another one; the text names the remedy.
    """
    for name, fault in find_faults(model, folder, trust_stamps=True, on_read=on_read).items():
        remedy = f"run: python -m june models pull {model.name}"
        if not model.can_be_pulled:
            remedy = "it is your own file: put it back, or let the settings name another."
        raise ModelFileError(f"{folder / name} {fault}; {remedy}")


class LoggedReading:
    """An `OnRead` that logs how far the reading is, and ends it when nobody waits for it any more.

    Args:
        stop: set when nobody does.
    """

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop
        self._name = ""
        self._told_s = 0.0

    def __call__(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """Be told how far the reading of a file is.

        Raises:
            ModelFileError: nobody waits for it any more.
        """
        if self._stop.is_set():
            raise ModelFileError(f"{name} was not read to its end: june was asked to stop.")
        now_s = time.monotonic()
        if name != self._name or now_s - self._told_s >= LOG_PAUSE_S:
            percent = 100 * done_bytes // total_bytes
            log.info("verification.advanced", file=name, bytes=done_bytes, of=total_bytes, percent=percent)
            self._name, self._told_s = name, now_s


def require_logged(stop: StopFlag, model: ModelFiles, folder: Path) -> None:
    """Do what `require` does, and log how far it is when a file has to be read.

    Raises:
        ModelFileError: see `require`; or `stop` was set.
    """
    knew_no_place = folder in _UNWRITTEN
    require(model, folder, LoggedReading(stop))
    if folder in _UNWRITTEN and not knew_no_place:
        detail = "june may not write to its folder, so its files are read whole at every start"
        log.warning("verification.unsaved", model=model.name, detail=detail)
