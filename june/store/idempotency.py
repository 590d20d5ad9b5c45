"""Idempotency keys: a request that a program repeats is not carried out again.

A method that accepts a `Once` first asks `earlier` whether the request was carried out already, and ends
with `note`, which stores the key.
"""

from dataclasses import dataclass

from june.errors import QueueError
from june.store.feed import read_message
from june.store.rows import Message
from june.store.transactions import Row, Transaction

KEY_VALID_S = 24 * 3600.0
MAX_KEYS = 10_000
"""Older keys are deleted."""


@dataclass(frozen=True, slots=True)
class Once:
    """An idempotency key, and the hash of the request that was sent with it."""

    key: str
    request_sha256: str


def earlier(sql: Transaction, once: Once | None) -> Row | None:
    """Return what the first request with this key did, or None if this is the first or has no key.

    The row has `message_id`, and `attempts`: those of the message after that request.

    Raises:
        QueueError: the key was used for another request.
    """
    if once is None:
        return None
    row = sql.row(
        "SELECT * FROM idempotency_keys WHERE key = :key AND created_at_s > :since_s",
        key=once.key,
        since_s=sql.now_s - KEY_VALID_S,
    )
    if row is not None and row["request_sha256"] != once.request_sha256:
        raise QueueError("conflict", "That Idempotency-Key was used for another request.")
    return row


def note(sql: Transaction, once: Once | None, message_id: int) -> Message:
    """Store the key, if there is one, with the message that the request is about, and return the message."""
    found = read_message(sql, message_id)
    if once is not None:
        row = sql.one(
            "INSERT OR REPLACE INTO idempotency_keys"
            " (key, request_sha256, message_id, attempts, created_at_s)"
            " VALUES (:key, :sha256, :message_id, :attempts, :now_s) RETURNING id",
            key=once.key,
            sha256=once.request_sha256,
            message_id=message_id,
            attempts=found.attempts,
            now_s=sql.now_s,
        )
        sql.execute("DELETE FROM idempotency_keys WHERE id <= :last", last=row["id"] - MAX_KEYS)
    return found
