"""The open file of messages: its thread, its connection and its transactions.

Every method of the store's parts is one function that runs on the store's thread as one transaction. If the
caller is cancelled, the transaction runs to its end or does not begin; it is never left half done. A
committed transaction survives a power failure (WAL, `synchronous=FULL`).

Only one june may write to a file: SQLite before 3.51.3 can reset its write-ahead log wrongly if two programs
write. Programs that only read may open and copy the file at any time.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from june.errors import StoreError
from june.store import schema
from june.store.files import LOGS, connect, lock, set_aside, sync, translated, write_copy
from june.store.transactions import Transaction
from june.telemetry import log
from june.workers import ModelThread, StopFlag, settled

P = ParamSpec("P")
T = TypeVar("T")
AnyPart = TypeVar("AnyPart", bound="Part")

MAX_JOBS = 4096


class Database:
    """A file of messages; `open` opens it.

    Args:
        path: the file. It is made if it is missing, unless it is only read.
        read_only: only read the file; another june may have it open.
        any_schema: if the file is only read, also accept one that an older june wrote.
        clock: returns the time in seconds since 1970.
    """

    def __init__(self, path: Path, *, read_only: bool, any_schema: bool, clock: Callable[[], float]) -> None:
        self.path = path.resolve()
        self._read_only = read_only
        self._any_schema = any_schema
        self._clock = clock
        self._thread = ModelThread("store", max_jobs=MAX_JOBS)
        self._lock = -1
        self._connection: sqlite3.Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """Lock, open and migrate the file.

        Raises:
            StoreError: the file cannot be used, or another june has it.
        """
        self._loop = asyncio.get_running_loop()
        await self._thread.run(self._open)

    def next_change(self) -> asyncio.Event:
        """Return an event that is set when the next transaction changes something.

        To miss no change, take the event first and read afterwards.
        """
        return self._changed

    async def close(self) -> None:
        """Finish the calls that wait and close the file, even if the caller is cancelled meanwhile."""
        ending = asyncio.create_task(self._thread.run(self._close))
        try:
            await settled(ending)
        finally:
            await self._thread.close()
        ending.result()

    async def transact(self, function: Callable[[Transaction], T]) -> T:
        """Run a function as one transaction and return its result.

        Raises:
            StoreError: the file could not be read or written; nothing was changed.
            StageError: too many calls wait already (code "busy"); nothing was changed.
        """
        return await self._thread.run(self._transact, function)

    async def back_up(self, target: Path, *, overwrite: bool = False) -> None:
        """Write a copy of the file as it is at one moment; others may write to the file meanwhile.

        The copy is complete, verified and on the disk before it gets its name. Only its owner can read it.
        It contains nothing that was deleted.

        Raises:
            StoreError: the copy could not be written, or `target` exists and `overwrite` is false; whatever
                was at `target` is still there.
        """
        await self._thread.run(self._back_up, target, overwrite=overwrite)

    async def compact(self) -> None:
        """Give the space of deleted rows back to the disk; nothing of them stays in the file.

        Raises:
            StoreError: it failed, for example because the disk is full.
        """
        await self._thread.run(self._compact)

    async def put_in_place_of(self, path: Path) -> Path | None:
        """Replace the file at `path` with a copy of this one, and return where the old file is kept.

        Return None if there was no file at `path`.

        Raises:
            StoreError: another june has the file at `path`, or the copy could not be made; the file at
                `path` is unchanged.
        """
        return await self._thread.run(self._put_in_place_of, path)

    def _transact(self, _: StopFlag, function: Callable[[Transaction], T]) -> T:
        connection = self._opened()
        changes = connection.total_changes
        with translated(f"{self.path}"):
            connection.execute("BEGIN" if self._read_only else "BEGIN IMMEDIATE")
            try:
                result = function(Transaction(connection, self._clock()))
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        if connection.total_changes != changes and self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell)
        return result

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _back_up(self, stop: StopFlag, target: Path, *, overwrite: bool) -> None:
        connection = self._opened()
        if str(target.resolve()) in {f"{self.path}{suffix}" for suffix in ("", ".lock", *LOGS)}:
            raise StoreError(f"{target} is in use by june itself: a copy needs another name")
        with translated(f"{self.path} was not copied to {target}"), stop.interrupts(connection.interrupt):
            write_copy(connection, target, overwrite=overwrite)

    def _put_in_place_of(self, stop: StopFlag, path: Path) -> Path | None:
        connection, path = self._opened(), path.resolve()
        if path == self.path:
            raise StoreError(f"{path} cannot replace itself")
        with translated(f"{path} was not replaced"), stop.interrupts(connection.interrupt):
            locked = lock(path)
            copy = path.with_name(f"{path.name}.restored")
            try:
                write_copy(connection, copy, overwrite=True)
                kept = set_aside(path)
                copy.replace(path)
                sync(path.parent)
            finally:
                copy.unlink(missing_ok=True)
                os.close(locked)
        return kept

    def _compact(self, stop: StopFlag) -> None:
        connection = self._opened()
        with translated(f"{self.path} was not made smaller"), stop.interrupts(connection.interrupt):
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _open(self, _: StopFlag) -> None:
        with translated(f"{self.path}"):
            if self._read_only:
                if not self.path.is_file():
                    raise StoreError(f"{self.path} does not exist: june has not run with it yet")
            else:
                self._acquire()
            self._connect()

    def _acquire(self) -> None:
        """Lock the file against other junes, and make it; only its owner can read it."""
        self._lock = lock(self.path)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(file, 0o600)
        os.close(file)

    def _connect(self) -> None:
        self._connection = connection = connect(self.path, "ro" if self._read_only else "rw")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > schema.VERSION:
            raise StoreError(
                f"{self.path} was written by a newer june (schema {version}, known: {schema.VERSION})"
            )
        if self._read_only:
            if version < schema.VERSION and not self._any_schema:
                raise StoreError(
                    f"{self.path} was written by an older june: start this one once to convert it"
                )
            return
        (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if journal != "wal":
            raise StoreError(f"{self.path} lies on a file system without write-ahead logging")
        connection.execute("PRAGMA synchronous = FULL")
        self._migrate(connection, version)

    def _migrate(self, connection: sqlite3.Connection, version: int) -> None:
        """Convert the file to the newest schema; a file that an older june wrote is copied first."""
        if 0 < version < schema.VERSION:
            backup = self.path.with_name(f"{self.path.name}.schema-{version}.backup")
            log.info("migration.started", schema=version, to=schema.VERSION, backup=backup.name)
            write_copy(connection, backup, overwrite=True)
        for number, migration in enumerate(schema.MIGRATIONS[version:], version + 1):
            connection.executescript(f"BEGIN IMMEDIATE; {migration}; PRAGMA user_version = {number}; COMMIT")

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.path} is not open")
        return self._connection

    def _close(self, _: StopFlag) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock >= 0:
            os.close(self._lock)  # closing releases the lock
            self._lock = -1


class Part:
    """The methods of the store that belong to one subject.

    Args:
        database: the file that they read and write.
    """

    def __init__(self, database: Database) -> None:
        self.database = database


def transaction(
    method: Callable[Concatenate[AnyPart, Transaction, P], T],
) -> Callable[Concatenate[AnyPart, P], Coroutine[Any, Any, T]]:
    """Let a part's method run on the store's thread as one transaction when it is awaited.

    The method then also raises what `Database.transact` raises.
    """

    @wraps(method)
    async def run(part: AnyPart, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def body(sql: Transaction) -> T:
            return method(part, sql, *args, **kwargs)

        return await part.database.transact(body)

    return run
