"""People: whom an owner let in or shut out, in addition to the settings, and their private chats."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from june.store.database import Part, transaction
from june.store.transactions import Transaction

Access = Literal["allowed", "denied"]


@dataclass(frozen=True, slots=True)
class Person:
    """Someone whom an owner let in or shut out."""

    user: str
    """Such as "telegram:123456789"."""
    role: Access
    name: str
    added_by: str
    added_at_s: float


class People(Part):
    """Whom an owner let in or shut out, and where they write."""

    @transaction
    def all(self, sql: Transaction) -> list[Person]:
        """Return everyone who was let in or shut out, in the order in which it happened."""
        return [
            Person(**row)
            for row in sql.rows("SELECT user, role, name, added_by, added_at_s FROM people ORDER BY rowid")
        ]

    @transaction
    def access(self, sql: Transaction, user: str) -> Access | None:
        """Return whether a person was let in or shut out, or None if neither happened."""
        row = sql.row("SELECT role FROM people WHERE user = :user", user=user)
        return None if row is None else row["role"]

    @transaction
    def set_access(self, sql: Transaction, user: str, role: Access, *, name: str, added_by: str) -> None:
        """Let a person in or shut them out; this replaces what was set before."""
        _set_access(sql, user, role, name=name, added_by=added_by)

    @transaction
    def add_pairing_code(self, sql: Transaction, code: str, *, made_by: str, valid_s: float) -> None:
        """Accept a code once during the next `valid_s` seconds; the file holds only its hash."""
        sql.execute("DELETE FROM pairing_codes WHERE expires_at_s <= :now_s", now_s=sql.now_s)
        sql.execute(
            "INSERT OR REPLACE INTO pairing_codes (code_sha256, expires_at_s, made_by)"
            " VALUES (:hash, :expires_at_s, :made_by)",
            hash=_hash(code),
            expires_at_s=sql.now_s + valid_s,
            made_by=made_by,
        )

    @transaction
    def redeem(self, sql: Transaction, code: str, user: str, name: str) -> bool:
        """Let a person in who has a valid code, which is then used up, and return whether the code was valid.

        A person who was shut out stays shut out, and the code stays valid.
        """
        row = sql.row(
            "DELETE FROM pairing_codes WHERE code_sha256 = :hash AND expires_at_s > :now_s"
            " AND NOT EXISTS (SELECT 1 FROM people WHERE user = :user AND role = 'denied') RETURNING made_by",
            hash=_hash(code),
            now_s=sql.now_s,
            user=user,
        )
        if row is None:
            return False
        _set_access(sql, user, "allowed", name=name, added_by=row["made_by"])
        return True

    @transaction
    def private_chat(self, sql: Transaction, user: str) -> str:
        """Return the private chat that a person wrote in last, or "" if they never wrote in one."""
        row = sql.row(
            "SELECT chat FROM messages WHERE direction = 'in' AND user = :user AND NOT is_group"
            " ORDER BY created_at_s DESC LIMIT 1",
            user=user,
        )
        return "" if row is None else row["chat"]


def _set_access(sql: Transaction, user: str, role: Access, *, name: str, added_by: str) -> None:
    sql.execute(
        "INSERT OR REPLACE INTO people (user, role, name, added_by, added_at_s)"
        " VALUES (:user, :role, :name, :added_by, :now_s)",
        user=user,
        role=role,
        name=name,
        added_by=added_by,
        now_s=sql.now_s,
    )


def _hash(code: str) -> bytes:
    return hashlib.sha256(code.encode("utf-8", "replace")).digest()
