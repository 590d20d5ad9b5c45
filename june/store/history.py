"""What was said and what became of it, for people to read."""

import math
from dataclasses import dataclass

from june.store.database import Database, Transaction, transaction
from june.store.rows import Direction, HistoryEntry, Status, history_entry


@dataclass(frozen=True, slots=True)
class Count:
    """How many messages are alike."""

    direction: Direction
    platform: str
    kind: str
    status: Status
    messages: int


@dataclass(frozen=True, slots=True)
class Stats:
    """How much was received and sent, and how long an answer takes."""

    counts: tuple[Count, ...]
    response_p50_s: float | None
    """From the commit of a message to that of its answer; None: nothing was answered."""
    response_p95_s: float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is not done."""

    new: int
    """In the inbox."""
    processing: int
    unsent: int
    """In the outbox."""
    sending: int
    oldest_new_s: float
    """Age of the oldest message of the inbox that is NEW, in seconds; 0: there is none."""


class History(Database):
    """What is kept of all messages."""

    @transaction
    def history(
        self, sql: Transaction, *, chat: str = "", since_s: float = 0, limit: int = 100
    ) -> list[HistoryEntry]:
        """The newest `limit` messages of a chat, or of all, since a time (since 1970), oldest first."""
        newest_first = (
            "SELECT * FROM entries WHERE chat = :chat AND created_at_s >= :since_s"
            " ORDER BY id DESC LIMIT :limit"
            if chat
            else "SELECT * FROM entries WHERE created_at_s >= :since_s ORDER BY id DESC LIMIT :limit"
        )
        rows = sql.rows(newest_first, chat=chat, since_s=since_s, limit=limit)
        return [history_entry(row) for row in reversed(rows)]

    @transaction
    def entry(self, sql: Transaction, message_id: int) -> HistoryEntry | None:
        """One message of either direction; None: there is none with this id."""
        row = sql.row("SELECT * FROM entries WHERE id = :id", id=message_id)
        return None if row is None else history_entry(row)

    @transaction
    def stats(self, sql: Transaction, *, since_s: float = 0) -> Stats:
        """Counts and response times of the messages since a time in seconds since 1970."""
        counts = sql.rows(
            "SELECT direction, platform, kind, status, count(*) AS messages FROM messages"
            " WHERE created_at_s >= :since_s GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
            since_s=since_s,
        )
        times = [
            row["response_s"]
            for row in sql.rows(
                "SELECT updated_at_s - created_at_s AS response_s FROM messages"
                " WHERE direction = 'in' AND outcome = 'answered' AND created_at_s >= :since_s ORDER BY 1",
                since_s=since_s,
            )
        ]
        return Stats(tuple(Count(**row) for row in counts), _percentile(times, 0.5), _percentile(times, 0.95))

    @transaction
    def waiting(self, sql: Transaction) -> Waiting:
        """How much is not done."""
        row = sql.one(
            "SELECT"
            " (SELECT count(*) FROM messages WHERE direction = 'in' AND status = 'NEW') AS new,"
            " (SELECT count(*) FROM messages WHERE direction = 'in' AND status = 'PROCESSING') AS processing,"
            " (SELECT count(*) FROM messages WHERE direction = 'out' AND status = 'NEW') AS unsent,"
            " (SELECT count(*) FROM messages WHERE direction = 'out' AND status = 'PROCESSING') AS sending,"
            " (SELECT coalesce(max(0.0, :now_s - min(created_at_s)), 0.0) FROM messages"
            "  WHERE direction = 'in' AND status = 'NEW') AS oldest_new_s",
            now_s=sql.now_s,
        )
        return Waiting(**row)


def _percentile(ordered: list[float], share: float) -> float | None:
    """The value that `share` of the values do not exceed, by the nearest rank."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
