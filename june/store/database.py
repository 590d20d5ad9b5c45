"""The SQLite file: how it is opened, locked and migrated, and what a transaction is.

Every public method of the store is one function that runs on the store's thread as one transaction. A caller
that is cancelled leaves it undone or done, never half done. A transaction that was committed survives the
power (WAL, `synchronous=FULL`). A second june on the same file is refused: SQLite before 3.51.3 can reset
its WAL wrongly under two writers. Programs that only read may open it at any time.

What this does not cover: a network file system, where locks and WAL do not hold; a disk that lies.
"""

import asyncio
import fcntl
import os
import re
import sqlite3
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from june.errors import StoreError
from june.store.schema import MIGRATIONS
from june.workers import ModelThread, StopFlag, settled

P = ParamSpec("P")
T = TypeVar("T")
Room = TypeVar("Room", bound="Database")

Row = sqlite3.Row
Value = str | bytes | int | float | None

VERSION = len(MIGRATIONS)
MAX_JOBS = 4096
BUSY_TIMEOUT_S = 5.0

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""What is no text in UTF-8, or ends one in SQLite's own functions."""


class Transaction:
    """One transaction: what a method of the store reads and writes with.

    Args:
        connection: where it has begun.
        now_s: the time of everything that it writes, seconds since 1970.
    """

    def __init__(self, connection: sqlite3.Connection, now_s: float) -> None:
        self._connection = connection
        self.now_s = now_s

    def execute(self, query: str, **values: Value) -> sqlite3.Cursor:
        """The cursor of a query with named values; what no file can hold becomes U+FFFD."""
        storable = {
            name: UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else value
            for name, value in values.items()
        }
        return self._connection.execute(query, storable)

    def rows(self, query: str, **values: Value) -> list[Row]:
        """All rows of a query."""
        return self.execute(query, **values).fetchall()

    def row(self, query: str, **values: Value) -> Row | None:
        """The row of a query that finds at most one; None: it finds none."""
        found = self.rows(query, **values)
        return found[0] if found else None

    def one(self, query: str, **values: Value) -> Row:
        """The row of a query that always has one."""
        (found,) = self.rows(query, **values)
        return found


class Database:
    """An open file.

    Args:
        path: the file; made if it is missing and may be written.
        read_only: read what is there, beside another june if need be.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, *, read_only: bool, clock: Callable[[], float]) -> None:
        self._path = path.resolve()
        self._read_only = read_only
        self._clock = clock
        self._thread = ModelThread("store", max_jobs=MAX_JOBS)
        self._lock = -1
        self._connection: sqlite3.Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """Lock, open and migrate the file.

        Raises:
            StoreError: it cannot be used; or another june has it.
        """
        self._loop = asyncio.get_running_loop()
        await self._thread.run(self._open)

    def next_change(self) -> asyncio.Event:
        """Set when a transaction changed something after this call; to be taken before one reads."""
        return self._changed

    async def close(self) -> None:
        """Finish what is queued and let go of the file, even if the caller is cancelled meanwhile."""
        closing = asyncio.create_task(self._thread.run(self._close))
        try:
            await settled(closing)
        finally:
            await self._thread.close()
        closing.result()

    async def transact(self, function: Callable[[Transaction], T]) -> T:
        """The result of the function, which ran as one transaction.

        Raises:
            StoreError: the file could not be read or written; nothing was changed.
            StageError: too many calls wait already (code "busy"); nothing was changed.
        """
        return await self._thread.run(self._transact, function)

    def _transact(self, _: StopFlag, function: Callable[[Transaction], T]) -> T:
        connection = self._connection
        if connection is None:
            raise StoreError(f"{self._path} is not open")
        changes = connection.total_changes
        try:
            connection.execute("BEGIN" if self._read_only else "BEGIN IMMEDIATE")
            try:
                result = function(Transaction(connection, self._clock()))
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except (sqlite3.Error, OverflowError) as error:  # OverflowError: an id beyond 64 bits
            raise self._translated(error) from error
        if connection.total_changes != changes and self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell)
        return result

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _open(self, _: StopFlag) -> None:
        try:
            if self._read_only:
                if not self._path.is_file():
                    raise StoreError(f"{self._path} does not exist: june has not run with it yet")
            else:
                self._acquire()
            self._connect()
        except OSError as error:
            raise StoreError(f"{self._path} cannot be opened: {error.strerror}") from error
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _acquire(self) -> None:
        """Become the only june on the file, and make the file, readable by its owner only."""
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{self._path} is in use by another june") from None
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(file, 0o600)
        os.close(file)

    def _connect(self) -> None:
        mode = "ro" if self._read_only else "rw"
        self._connection = connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S
        )
        connection.row_factory = sqlite3.Row
        # One damaged letter must not make a message unreadable, nor an error's text hold the message.
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        connection.execute("PRAGMA foreign_keys = ON")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise StoreError(f"{self._path} was written by a newer june (schema {version}, known: {VERSION})")
        if self._read_only:
            if version < VERSION:
                raise StoreError(
                    f"{self._path} was written by an older june: start this one once to convert it"
                )
            return
        (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if journal != "wal":
            raise StoreError(f"{self._path} lies on a file system without write-ahead logging")
        connection.execute("PRAGMA synchronous = FULL")
        for number, migration in enumerate(MIGRATIONS[version:], version + 1):
            connection.executescript(f"BEGIN IMMEDIATE; {migration}; PRAGMA user_version = {number}; COMMIT")

    def _close(self, _: StopFlag) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock >= 0:
            os.close(self._lock)  # which releases it
            self._lock = -1

    def _translated(self, error: sqlite3.Error | OverflowError) -> StoreError:
        """What SQLite said; its own texts name columns, never their content."""
        return StoreError(f"{self._path}: {error}")


def transaction(
    method: Callable[Concatenate[Room, Transaction, P], T],
) -> Callable[Concatenate[Room, P], Coroutine[Any, Any, T]]:
    """A method that, awaited, runs on the store's thread as one transaction.

    It raises what `Database.transact` raises.
    """

    @wraps(method)
    async def run(room: Room, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def body(sql: Transaction) -> T:
            return method(room, sql, *args, **kwargs)

        return await room.transact(body)

    return run
