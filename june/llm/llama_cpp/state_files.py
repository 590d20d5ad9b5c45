"""Keeps what the cache held of conversations in files: their history need not be evaluated anew.

A file holds one conversation: its tokens, which are its text, and what the model computed of them. It stands
only while the conversation is out of the cache: whoever takes it deletes it, and when the conversation leaves
the cache again there is a new one. So no file holds more than was shown to the model in the last turn.

A file that was cut short, changed, renamed, or written for another model or number format is refused by its
SHA-256. That guards against accidents, not against someone who can write to the folder.
"""

import hashlib
import math
import os
import re
import struct
import threading
import time
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from june.errors import GenerationError
from june.telemetry import log
from june.workers import ModelThread, SideThread

MAGIC = b"june-kv1"
HEADER = struct.Struct("<8sQQ32s")
"""Magic, tokens, bytes of state, SHA-256 of model, name, tokens and state."""
NAME = re.compile(r"[0-9a-f]{64}\.(kv|\d+\.partial)")
"""No other file in the folder is ever deleted: the owner may have named a folder that holds more."""


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """One conversation: what was evaluated, and llama.cpp's bytes for it."""

    tokens: "array[int]"
    state: bytearray

    @property
    def size_bytes(self) -> int:
        """Size of its file."""
        return HEADER.size + len(self.tokens) * self.tokens.itemsize + len(self.state)


class StateFiles:
    """The files of one model in the folder `llm.llama_cpp.state_dir`; used by one thread, but for `forget`.

    A file is written on a thread of its own, and no second one is held in memory meanwhile. It is read on
    the caller's, who needs it next.

    Args:
        directory: the folder of all models.
        max_bytes: of all files in it; the oldest are deleted first.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._directory = self._folder = directory
        self._lock = threading.Lock()
        self._unwritten: dict[str, Saved] = {}
        self._writer = SideThread("june-llm-states")

    def open(self, model: str) -> None:
        """Make the model's folder, readable by its owner only, and delete what was left half written.

        Args:
            model: names the folder: another for all that another state is made by.

        Raises:
            OSError: it cannot be written to.
        """
        self._folder = self._directory / model
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in _stats(self._directory):
            if path.suffix == ".partial":
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Write what waits to be written, and end the thread."""
        self._writer.close()

    def put(self, conversation: str, tokens: Sequence[int], state: bytearray) -> None:
        """Have a conversation written, in the place of an older file; waits for the one before.

        What cannot be written is not there when it is asked for, and the log tells why.
        """
        saved = Saved(array("i", tokens), state)
        if saved.size_bytes > self.max_bytes:
            log.warning("state.dropped", detail="it is larger than llm.llama_cpp.state_max_gb")
            return
        self._writer.wait()
        name = _name(conversation)
        with self._lock:
            self._unwritten[name] = saved
        self._writer.run(lambda: self._write(name, saved))

    def tokens(self, conversation: str) -> Sequence[int]:
        """Return the tokens of a conversation; empty if there is no file, or its head is refused."""
        name = _name(conversation)
        with self._lock:
            saved = self._unwritten.get(name)
        if saved is not None:
            return saved.tokens
        try:
            with self._path(name).open("rb") as file:
                return _read_head(file)[0]
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as error:
            self._refuse(conversation, error)
            return ()

    def take(self, conversation: str) -> Saved | None:
        """Return a conversation and delete its file; None if there was none, or it was refused."""
        name = _name(conversation)
        with self._lock:
            saved = self._unwritten.get(name)
        try:
            saved = saved or self._read(name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._refuse(conversation, error)
            return None
        self.discard(conversation)
        return saved

    def discard(self, conversation: str) -> None:
        """Delete what is of no use any more; a failure is logged."""
        with self._lock:
            self._unwritten.pop(_name(conversation), None)
        try:
            _delete_conversation(self._directory, conversation)
        except OSError as error:
            log.warning("state.kept", detail=error.strerror)

    async def forget(self, conversation: str) -> None:
        """Delete what is kept of a conversation, of all models, also what is being written.

        Raises:
            GenerationError: a file cannot be deleted.
        """
        with self._lock:
            self._unwritten.pop(_name(conversation), None)
        await delete(self._directory, conversations=(conversation,))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.kv"

    def _refuse(self, conversation: str, error: OSError | ValueError) -> None:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        log.warning("state.refused", detail=reason)
        self.discard(conversation)

    def _read(self, name: str) -> Saved:
        """Return the whole file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not what was written.
        """
        with self._path(name).open("rb") as file:
            tokens, state_bytes, digest = _read_head(file)
            saved = Saved(tokens, bytearray(state_bytes))
            file.readinto(saved.state)
        if self._digest(name, saved) != digest:
            raise ValueError("it is damaged, or of another conversation or model")
        return saved

    def _write(self, name: str, saved: Saved) -> None:
        partial = self._folder / f"{name}.{os.getpid()}.partial"
        header = HEADER.pack(MAGIC, len(saved.tokens), len(saved.state), self._digest(name, saved))
        try:
            self._make_room(saved.size_bytes)
            try:
                descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.writelines((header, saved.tokens, saved.state))
                with self._lock:
                    if self._unwritten.get(name) is saved:  # nobody took or forgot it meanwhile
                        partial.replace(self._path(name))
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            log.warning("state.dropped", detail=error.strerror)
        finally:
            with self._lock:
                if self._unwritten.get(name) is saved:
                    del self._unwritten[name]

    def _make_room(self, size_bytes: int) -> None:
        """Delete the oldest files until there is room for one of that size."""
        stats = _stats(self._directory)
        held_bytes = sum(stat.st_size for stat in stats.values())
        for path in sorted(stats, key=lambda path: stats[path].st_mtime_ns):
            if held_bytes + size_bytes <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            held_bytes -= stats[path].st_size

    def _digest(self, name: str, saved: Saved) -> bytes:
        digest = hashlib.sha256(f"{self._folder.name}/{name}\n".encode())
        digest.update(saved.tokens)
        digest.update(saved.state)
        return digest.digest()


async def delete(
    directory: Path, *, conversations: Iterable[str] = (), older_than_s: float = math.inf
) -> None:
    """Delete files of all models, while none of them is loaded, or on behalf of the owner's retention.

    Args:
        directory: the folder `llm.llama_cpp.state_dir`; it need not be there.
        conversations: whose files go.
        older_than_s: conversations that left the cache longer ago than this go too.

    Raises:
        GenerationError: a file cannot be deleted.
    """
    deleting = ModelThread("llm")
    try:
        await deleting.run(lambda _: _delete(directory, conversations, older_than_s))
    except OSError as error:
        detail = f"A file in llm.llama_cpp.state_dir cannot be deleted: {error.strerror}."
        raise GenerationError("llm_failed", detail) from None
    finally:
        await deleting.close()


def _delete(directory: Path, conversations: Iterable[str], older_than_s: float) -> None:
    before_s = time.time() - older_than_s
    for path, stat in _stats(directory).items():
        if stat.st_mtime < before_s:
            path.unlink(missing_ok=True)
    for conversation in conversations:
        _delete_conversation(directory, conversation)


def _delete_conversation(directory: Path, conversation: str) -> None:
    for path in directory.glob(f"*/{_name(conversation)}.kv"):
        path.unlink(missing_ok=True)


def _name(conversation: str) -> str:
    return hashlib.sha256(conversation.encode()).hexdigest()


def _stats(directory: Path) -> dict[Path, os.stat_result]:
    """Return the files of all models; those that another thread deletes meanwhile may be missing."""
    stats = {}
    for path in directory.glob("*/*"):
        if NAME.fullmatch(path.name):
            with suppress(FileNotFoundError):
                stats[path] = path.stat()
    return stats


def _read_head(file: BinaryIO) -> "tuple[array[int], int, bytes]":
    """Return tokens, bytes of state, and SHA-256.

    Raises:
        ValueError: the file is of another kind, or not whole.
    """
    head = file.read(HEADER.size)
    if len(head) != HEADER.size:
        raise ValueError("it is not whole")
    magic, n_tokens, state_bytes, digest = HEADER.unpack(head)
    if magic != MAGIC:
        raise ValueError("it is of another kind")
    tokens = array("i")
    if os.fstat(file.fileno()).st_size != HEADER.size + n_tokens * tokens.itemsize + state_bytes:
        raise ValueError("it is not whole")
    tokens.frombytes(file.read(n_tokens * tokens.itemsize))
    return tokens, state_bytes, digest
