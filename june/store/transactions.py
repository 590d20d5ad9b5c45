"""What one transaction reads and writes with."""

import re
import sqlite3

Row = sqlite3.Row
Value = str | bytes | int | float | None

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""Surrogates, which UTF-8 cannot hold, and NUL, at which SQLite's own functions end a text."""


class Transaction:
    """One transaction that has begun; whoever began it commits it or rolls it back.

    Args:
        connection: the connection on which it has begun.
        now_s: the time that all its changes carry, in seconds since 1970.
    """

    def __init__(self, connection: sqlite3.Connection, now_s: float) -> None:
        self._connection = connection
        self.now_s = now_s

    def execute(self, query: str, **values: Value) -> sqlite3.Cursor:
        """Run a query with named values and return its cursor.

        Characters that SQLite cannot store become U+FFFD.
        """
        storable = {
            name: UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else value
            for name, value in values.items()
        }
        return self._connection.execute(query, storable)

    def rows(self, query: str, **values: Value) -> list[Row]:
        """Return all rows of a query."""
        return self.execute(query, **values).fetchall()

    def row(self, query: str, **values: Value) -> Row | None:
        """Return the first row of a query, or None if it finds nothing."""
        found = self.rows(query, **values)
        return found[0] if found else None

    def one(self, query: str, **values: Value) -> Row:
        """Return the row of a query that always finds exactly one."""
        (found,) = self.rows(query, **values)
        return found
