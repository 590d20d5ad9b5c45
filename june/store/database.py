"""The SQLite file: how it is opened, locked, copied and migrated, and what a transaction is.

Every public method of the store is one function that runs on the store's thread as one transaction. A caller
that is cancelled leaves it undone or done, never half done. A transaction that was committed survives the
power (WAL, `synchronous=FULL`). A second june on the same file is refused: SQLite before 3.51.3 can reset
its WAL wrongly under two writers. Programs that only read may open it, and copy it, at any time.

What this does not cover: a network file system, where locks and WAL do not hold; a disk that lies; a bit that
flips inside a text or a recording, for which SQLite keeps no checksum.
"""

import asyncio
import fcntl
import glob
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from june.errors import StoreError
from june.store.schema import MIGRATIONS
from june.telemetry import log
from june.workers import ModelThread, StopFlag, settled

P = ParamSpec("P")
T = TypeVar("T")
Room = TypeVar("Room", bound="Database")

Row = sqlite3.Row
Value = str | bytes | int | float | None

VERSION = len(MIGRATIONS)
MAX_JOBS = 4096
BUSY_TIMEOUT_S = 5.0

PARTIAL = ".partial"
"""Ends the name of a copy that is not whole yet."""
LOGS = ("-wal", "-shm")
"""What SQLite keeps beside an open file, by what follows its name."""
STALE_S = 86_400.0
"""No copy takes so long: a partial one of this age was left by a program that was killed."""

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
        any_schema: if it is only read, also what an older june wrote.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, *, read_only: bool, any_schema: bool, clock: Callable[[], float]) -> None:
        self._path = path.resolve()
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
            StoreError: it cannot be used; or another june has it.
        """
        self._loop = asyncio.get_running_loop()
        await self._thread.run(self._open)

    def next_change(self) -> asyncio.Event:
        """Set when a transaction changed something after this call; to be taken before one reads."""
        return self._changed

    async def close(self) -> None:
        """Finish what is queued and let go of the file, even if the caller is cancelled meanwhile."""
        ending = asyncio.create_task(self._thread.run(self._close))
        try:
            await settled(ending)
        finally:
            await self._thread.close()
        ending.result()

    async def transact(self, function: Callable[[Transaction], T]) -> T:
        """The result of the function, which ran as one transaction.

        Raises:
            StoreError: the file could not be read or written; nothing was changed.
            StageError: too many calls wait already (code "busy"); nothing was changed.
        """
        return await self._thread.run(self._transact, function)

    async def back_up(self, target: Path, *, overwrite: bool = False) -> None:
        """Write a copy of the file as it is at one moment, whatever is written meanwhile.

        It is whole, verified and on the disk before it gets its name. It is readable by its owner only, and
        holds nothing of what was deleted.

        Raises:
            StoreError: it could not be written, or `target` exists and may not be overwritten; what stood at
                `target` stands there still.
        """
        await self._thread.run(self._back_up, target, overwrite=overwrite)

    async def compact(self) -> None:
        """Give the space of what was deleted back to the disk; nothing of it is left in the file then.

        Raises:
            StoreError: it could not be done, for want of disk space for instance.
        """
        await self._thread.run(self._compact)

    async def put_in_place_of(self, path: Path) -> Path | None:
        """Let a copy of this file replace the one at `path`, if no june has that; where that is kept now.

        None: there was none.

        Raises:
            StoreError: another june has it, or the copy could not be made; it is as it was.
        """
        return await self._thread.run(self._put_in_place_of, path)

    def _transact(self, _: StopFlag, function: Callable[[Transaction], T]) -> T:
        connection = self._opened()
        changes = connection.total_changes
        with translated(f"{self._path}"):
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
        if str(target.resolve()) in {f"{self._path}{suffix}" for suffix in ("", ".lock", *LOGS)}:
            raise StoreError(f"{target} is in use by june itself: a copy needs another name")
        with translated(f"{self._path} was not copied to {target}"), stop.interrupts(connection.interrupt):
            _write_copy(connection, target, overwrite=overwrite)

    def _put_in_place_of(self, stop: StopFlag, path: Path) -> Path | None:
        connection, path = self._opened(), path.resolve()
        if path == self._path:
            raise StoreError(f"{path} cannot replace itself")
        with translated(f"{path} was not replaced"), stop.interrupts(connection.interrupt):
            lock = _lock(path)
            copy = path.with_name(f"{path.name}.restored")
            try:
                _write_copy(connection, copy, overwrite=True)
                kept = _set_aside(path)
                copy.replace(path)
                _sync(path.parent)
            finally:
                copy.unlink(missing_ok=True)
                os.close(lock)
        return kept

    def _compact(self, stop: StopFlag) -> None:
        connection = self._opened()
        with translated(f"{self._path} was not made smaller"), stop.interrupts(connection.interrupt):
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _open(self, _: StopFlag) -> None:
        with translated(f"{self._path}"):
            if self._read_only:
                if not self._path.is_file():
                    raise StoreError(f"{self._path} does not exist: june has not run with it yet")
            else:
                self._acquire()
            self._connect()

    def _acquire(self) -> None:
        """Become the only june on the file, and make the file, readable by its owner only."""
        self._lock = _lock(self._path)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(file, 0o600)
        os.close(file)

    def _connect(self) -> None:
        self._connection = connection = _connect(self._path, "ro" if self._read_only else "rw")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise StoreError(f"{self._path} was written by a newer june (schema {version}, known: {VERSION})")
        if self._read_only:
            if version < VERSION and not self._any_schema:
                raise StoreError(
                    f"{self._path} was written by an older june: start this one once to convert it"
                )
            return
        (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if journal != "wal":
            raise StoreError(f"{self._path} lies on a file system without write-ahead logging")
        connection.execute("PRAGMA synchronous = FULL")
        if 0 < version < VERSION:
            backup = self._path.with_name(f"{self._path.name}.schema-{version}.backup")
            log.info("store.migrating", schema=version, to=VERSION, backup=backup.name)
            _write_copy(connection, backup, overwrite=True)
        for number, migration in enumerate(MIGRATIONS[version:], version + 1):
            connection.executescript(f"BEGIN IMMEDIATE; {migration}; PRAGMA user_version = {number}; COMMIT")

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self._path} is not open")
        return self._connection

    def _close(self, _: StopFlag) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock >= 0:
            os.close(self._lock)  # which releases it
            self._lock = -1


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


def damage(sql: Transaction) -> str:
    """What of the file itself is broken, in one sentence; "" if nothing is.

    SQLite reads all of it, and the tables must be those of a schema that june had.
    """
    (version,) = sql.one("PRAGMA user_version")
    if not 0 < version <= VERSION:
        return f"its schema is {version}, and june knows 1 to {VERSION}"
    with closing(_connect_to(":memory:")) as empty:
        empty.executescript(";".join(MIGRATIONS[:version]))
        if missing := _columns(Transaction(empty, 0)) - _columns(sql):
            return f"it is no file of june's: it has no {min(missing)}"
    (first,) = sql.rows("PRAGMA integrity_check(1)")[0]
    if first != "ok":
        return f"SQLite finds it damaged: {' '.join(first.split())}"
    if orphan := sql.row("PRAGMA foreign_key_check"):
        return f"its table {orphan['table']} refers to what is not in {orphan['parent']}"
    return ""


@contextmanager
def translated(subject: str) -> Iterator[None]:
    """Raises a StoreError with what SQLite or the system says; SQLite names columns, never their content."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{subject}: {error.strerror}") from error
    except (sqlite3.Error, OverflowError) as error:  # OverflowError: an id beyond 64 bits
        raise StoreError(f"{subject}: {error}") from error


def _connect(path: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    return _connect_to(f"{path.as_uri()}?mode={mode}")


def _connect_to(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    connection.row_factory = sqlite3.Row
    # One damaged letter must not make a message unreadable, nor an error's text hold the message.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _lock(path: Path) -> int:
    """The open lock of a file, which is released when it is closed.

    Raises:
        StoreError: another june has it.
    """
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StoreError(f"{path} is in use by another june") from None
    return lock


def _columns(sql: Transaction) -> set[str]:
    """Every table, view and index, and every table's columns, such as "messages.id"."""
    objects = sql.rows("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    columns = sql.rows(
        "SELECT object.name || '.' || field.name AS name"
        " FROM sqlite_master AS object JOIN pragma_table_info(object.name) AS field"
        " WHERE object.type = 'table'"
    )
    return {row["name"] for row in (*objects, *columns)}


def _write_copy(connection: sqlite3.Connection, target: Path, *, overwrite: bool) -> None:
    """Put a whole and verified copy of an open file at `target`, or leave it as it is."""
    for left in target.parent.glob(f"{glob.escape(target.name)}.*{PARTIAL}"):
        if time.time() - left.stat().st_mtime > STALE_S:
            left.unlink(missing_ok=True)
    if not overwrite and target.exists():
        raise StoreError(f"{target} exists already")
    descriptor, name = tempfile.mkstemp(PARTIAL, f"{target.name}.", target.parent)  # for its owner only
    partial = Path(name)
    try:
        os.close(descriptor)
        connection.execute("VACUUM INTO :name", {"name": name})  # in one transaction that only reads
        with closing(_connect(partial.resolve(), "ro")) as copy:
            if fault := damage(Transaction(copy, 0)):
                raise StoreError(f"the copy at {target} was not kept: {fault}")
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def _set_aside(path: Path) -> Path | None:
    """Where a file that nobody writes to can be found by another name now; None: there was none.

    What was committed to its log alone goes into the file, or, if it is too damaged for that, its log goes
    with it: beside a new file of the old name, the log would be taken for that one's.
    """
    kept = path.with_name(f"{path.name}.replaced-{time.strftime('%Y%m%d-%H%M%S')}")
    if is_there := path.exists():
        with suppress(sqlite3.Error), closing(_connect(path, "rw")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        os.link(path, kept)  # the old name stays valid until the new file takes it
    for suffix in LOGS:
        if (beside := path.with_name(path.name + suffix)).exists():
            beside.replace(kept.with_name(kept.name + suffix))
    return kept if is_there else None


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
