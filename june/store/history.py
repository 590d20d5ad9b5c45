"""History: what was said, what became of it, what waits and what people used, for people to read."""

import math
from dataclasses import dataclass

from june.store.database import Part, transaction
from june.store.rows import Direction, HistoryEntry, history_entry
from june.store.status import Status
from june.store.transactions import Transaction


@dataclass(frozen=True, slots=True)
class Count:
    """How many messages have these properties."""

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
    """Median time from the commit of a message to that of its answer; None: nothing was answered."""
    response_p95_s: float | None
    """The 95th percentile of this time."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many messages are not done."""

    new: int
    """In the inbox."""
    processing: int
    """In the inbox; june or a program works on them."""
    unsent: int
    """In the outbox."""
    sending: int
    """In the outbox."""
    oldest_new_s: float
    """Age in seconds of the oldest message in the inbox that is NEW; 0: none is."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What one person sent."""

    messages: int
    audio_s: float
    """Length of the recordings, in seconds."""
    tokens: int = 0
    """Tokens of the prompts and of the answers."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one person sent in two periods."""

    user: str
    name: str
    """The name that the chat app gave last."""
    today: Spent
    month: Spent


class History(Part):
    """All messages, those that wait, and sums over them."""

    @transaction
    def entries(
        self, sql: Transaction, *, chat: str = "", since_s: float = 0, limit: int = 100
    ) -> list[HistoryEntry]:
        """Return the newest messages, oldest first.

        Args:
            chat: only messages of this chat; "": of all chats.
            since_s: only messages since this time, in seconds since 1970.
            limit: at most this many.
        """
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
        """Return one message of either direction, or None if no message has this id."""
        row = sql.row("SELECT * FROM entries WHERE id = :id", id=message_id)
        return None if row is None else history_entry(row)

    @transaction
    def stats(self, sql: Transaction, *, since_s: float = 0) -> Stats:
        """Return counts and response times of the messages since a time, in seconds since 1970."""
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
        """Return how many messages are not done."""
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

    @transaction
    def spent(self, sql: Transaction, user: str, *, since_s: float) -> Spent:
        """Return what a person sent since a time, in seconds since 1970."""
        row = sql.one(
            "SELECT count(*) AS messages, coalesce(sum(duration_s), 0.0) AS audio_s,"
            " coalesce(sum(prompt_tokens + completion_tokens), 0) AS tokens FROM messages"
            " WHERE direction = 'in' AND user = :user AND created_at_s >= :since_s",
            user=user,
            since_s=since_s,
        )
        return Spent(**row)

    @transaction
    def use(self, sql: Transaction, *, day_since_s: float, month_since_s: float) -> list[Use]:
        """Return what each person sent since two times, in seconds since 1970.

        Whoever sent the most messages since `month_since_s`, the earlier time, comes first.
        """
        rows = sql.rows(
            "SELECT user, user_name, max(id), count(*) AS messages, total(duration_s) AS audio_s,"
            " sum(prompt_tokens + completion_tokens) AS tokens,"
            " coalesce(sum(prompt_tokens + completion_tokens) FILTER (WHERE created_at_s >= :day_since_s), 0)"
            " AS tokens_today,"
            " count(*) FILTER (WHERE created_at_s >= :day_since_s) AS messages_today,"
            " total(duration_s) FILTER (WHERE created_at_s >= :day_since_s) AS audio_today_s"
            " FROM messages WHERE direction = 'in' AND created_at_s >= :month_since_s"
            " GROUP BY user ORDER BY messages DESC, user",  # max(id) makes user_name that of the newest row
            day_since_s=day_since_s,
            month_since_s=month_since_s,
        )
        return [
            Use(
                row["user"],
                row["user_name"],
                today=Spent(row["messages_today"], row["audio_today_s"], row["tokens_today"]),
                month=Spent(row["messages"], row["audio_s"], row["tokens"]),
            )
            for row in rows
        ]


def _percentile(ordered: list[float], share: float) -> float | None:
    """Return the value that `share` of the values do not exceed, by the nearest rank; None: no values."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
