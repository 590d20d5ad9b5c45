"""The SQLite file as a file: connect to it, lock it, verify it, copy it, set it aside.

Limits: locks and write-ahead logging do not work on a network file system. SQLite keeps no checksums, so
`damage` does not notice a bit that flipped inside a text or a recording.
"""

import fcntl
import glob
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal

from june.errors import StoreError
from june.store import schema
from june.store.transactions import Transaction

BUSY_TIMEOUT_S = 5.0

PARTIAL = ".partial"
"""The end of the name of an unfinished copy."""
LOGS = ("-wal", "-shm")
"""The ends of the names of the files that SQLite keeps beside an open file."""
STALE_S = 86_400.0
"""An unfinished copy of this age was left behind by a killed program: no copy takes so long."""


@contextmanager
def translated(subject: str) -> Iterator[None]:
    """Turn errors of SQLite and of the system into StoreErrors that begin with `subject`.

    SQLite's messages name columns, never their content.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(f"{subject}: {error.strerror}") from error
    except (sqlite3.Error, OverflowError) as error:  # OverflowError: an id beyond 64 bits
        raise StoreError(f"{subject}: {error}") from error


def connect(path: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    """Return a connection to an existing file, read-only or for reading and writing."""
    return _connect_to(f"{path.as_uri()}?mode={mode}")


def lock(path: Path) -> int:
    """Lock a file and return the lock's descriptor; closing that releases the lock.

    Raises:
        StoreError: another june has locked the file.
    """
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"{path} is in use by another june") from None
    return descriptor


def damage(sql: Transaction) -> str:
    """Return one sentence about what is broken in the file, or "" if it is sound.

    SQLite reads the whole file. The tables must match a schema that some version of june had.
    """
    (version,) = sql.one("PRAGMA user_version")
    if not 0 < version <= schema.VERSION:
        return f"its schema is {version}, and june knows 1 to {schema.VERSION}"
    with closing(_connect_to(":memory:")) as empty:
        empty.executescript(";".join(schema.MIGRATIONS[:version]))
        if missing := _columns(Transaction(empty, 0)) - _columns(sql):
            return f"it is not a file of june's: it has no {min(missing)}"
    (first,) = sql.rows("PRAGMA integrity_check(1)")[0]
    if first != "ok":
        return f"SQLite finds it damaged: {' '.join(first.split())}"
    if orphan := sql.row("PRAGMA foreign_key_check"):
        return f"its table {orphan['table']} refers to what is not in {orphan['parent']}"
    return ""


def write_copy(connection: sqlite3.Connection, target: Path, *, overwrite: bool) -> None:
    """Write a verified copy of an open file to `target`.

    The copy gets its name only when it is complete and on the disk; until then `target` stays as it is.

    Raises:
        StoreError: `target` exists and `overwrite` is false, or the copy is damaged.
        OSError, sqlite3.Error: the copy could not be written.
    """
    for left in target.parent.glob(f"{glob.escape(target.name)}.*{PARTIAL}"):
        if time.time() - left.stat().st_mtime > STALE_S:
            left.unlink(missing_ok=True)
    if not overwrite and target.exists():
        raise StoreError(f"{target} exists already")
    descriptor, name = tempfile.mkstemp(
        PARTIAL, f"{target.name}.", target.parent
    )  # only its owner can read it
    partial = Path(name)
    try:
        os.close(descriptor)
        connection.execute("VACUUM INTO :name", {"name": name})  # one transaction, which only reads
        with closing(connect(partial.resolve(), "ro")) as copy:
            if fault := damage(Transaction(copy, 0)):
                raise StoreError(f"the copy at {target} was not kept: {fault}")
        sync(partial)
        partial.replace(target)
        sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def set_aside(path: Path) -> Path | None:
    """Give a file that nobody writes to a second name and return that, or None if there is no file.

    What was committed only to the file's write-ahead log is moved into the file. If the file is too damaged
    for that, the log moves with it: SQLite would take the log for that of a new file with the old name.
    """
    kept = path.with_name(f"{path.name}.replaced-{time.strftime('%Y%m%d-%H%M%S')}")
    if is_there := path.exists():
        with suppress(sqlite3.Error), closing(connect(path, "rw")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        os.link(path, kept)  # the old name stays valid until the new file takes it
    for suffix in LOGS:
        if (beside := path.with_name(path.name + suffix)).exists():
            beside.replace(kept.with_name(kept.name + suffix))
    return kept if is_there else None


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect_to(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    connection.row_factory = sqlite3.Row
    # A damaged character must not make a message unreadable, nor put the message into an error's text.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _columns(sql: Transaction) -> set[str]:
    """Return the name of every table, view and index, and every column, such as "messages.id"."""
    objects = sql.rows("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    columns = sql.rows(
        "SELECT object.name || '.' || field.name AS name"
        " FROM sqlite_master AS object JOIN pragma_table_info(object.name) AS field"
        " WHERE object.type = 'table'"
    )
    return {row["name"] for row in (*objects, *columns)}
