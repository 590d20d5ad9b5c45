"""Feed: what programs read, that is messages by filters, single messages, recordings and changes."""

from collections.abc import Sequence
from dataclasses import dataclass

from june.errors import QueueError
from june.store.database import Part, transaction
from june.store.rows import Message, message
from june.store.transactions import Transaction, Value

CONDITIONS = {
    "id": "id = :id",
    "platform": "platform = :platform",
    "chat": "chat = :chat",
    "user": "user = :user",
    "direction": "direction = :direction",
    "kind": "iif(kind = 'text' AND purpose <> '', purpose, kind) = :kind",
    "status": "status = :status",
    "since_s": "created_at_s >= :since_s",
    "until_s": "created_at_s < :until_s",
}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which messages to read; a message matches if it matches every value that is given.

    Attributes:
        since_s: it was created at this time or later, in seconds since 1970.
        until_s: it was created before this time, in seconds since 1970.
    """

    id: int | None = None
    platform: str | None = None
    chat: str | None = None
    user: str | None = None
    direction: str | None = None
    kind: str | None = None
    status: str | None = None
    since_s: float | None = None
    until_s: float | None = None

    def where(self) -> tuple[str, dict[str, Value]]:
        """Return the condition in SQL, and its values by name."""
        values = {name: value for name in CONDITIONS if (value := getattr(self, name)) is not None}
        return " AND ".join([CONDITIONS[name] for name in values] or ["TRUE"]), values


@dataclass(frozen=True, slots=True)
class Change:
    """One event: a message changed. `message` is the message as it is now."""

    id: int
    message: Message


class Feed(Part):
    """What programs read."""

    @transaction
    def messages(
        self,
        sql: Transaction,
        wanted: Filter,
        *,
        limit: int,
        after_id: int | None = None,
        is_oldest_first: bool = False,
    ) -> tuple[list[Message], int | None]:
        """Return one page of the messages that match, and its last id, or None if no page follows.

        Args:
            wanted: which messages to read.
            limit: at most this many.
            after_id: the last id of the page before; None: the first page.
            is_oldest_first: their order; by default the newest comes first.
        """
        clause, values = wanted.where()
        order, beyond = ("ASC", ">") if is_oldest_first else ("DESC", "<")
        behind = "" if after_id is None else f" AND id {beyond} :after_id"
        rows = sql.rows(
            f"SELECT * FROM entries WHERE {clause}{behind} AND kind <> 'edit'"  # noqa: S608 - columns only
            f" ORDER BY id {order} LIMIT :limit",
            **values,
            after_id=after_id,
            limit=limit + 1,
        )
        found = [message(row) for row in rows[:limit]]
        return found, found[-1].id if len(rows) > limit else None

    @transaction
    def message(self, sql: Transaction, message_id: int) -> Message:
        """Return one message.

        Raises:
            QueueError: no message has this id.
        """
        return read_message(sql, message_id)

    @transaction
    def reply(self, sql: Transaction, message_id: int) -> tuple[Message, Message | None]:
        """Return a question, and its answer or None if it has no answer yet.

        Raises:
            QueueError: no message has this id, or the message is not a question.
        """
        question = read_message(sql, message_id)
        if not question.is_question:
            raise QueueError("conflict", f"Message {message_id} is not a question.")
        if question.status != "RESPONDED" or question.answered_by is None:
            return question, None
        return question, read_message(sql, question.answered_by)

    @transaction
    def recording(self, sql: Transaction, message_id: int) -> bytes:
        """Return the recording of a message: OGG/Opus, 48 000 Hz, mono.

        Raises:
            QueueError: no message has this id, or june keeps no recording of it.
        """
        read_message(sql, message_id)
        row = sql.row("SELECT ogg_opus FROM voices WHERE message_id = :id", id=message_id)
        if row is None:
            raise QueueError("unknown", f"No recording of message {message_id} is kept.")
        return bytes(row["ogg_opus"])

    @transaction
    def last_change(self, sql: Transaction) -> int:
        """Return the id of the newest event, or 0 if there is none."""
        row = sql.row("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return 0 if row is None else row["seq"]

    @transaction
    def changes(self, sql: Transaction, *, after_id: int, limit: int) -> tuple[Sequence[Change], bool]:
        """Return at most `limit` events after the event `after_id`, and whether none in between is lost.

        Old events are deleted, so a program that reads too seldom can miss some.
        """
        rows = sql.rows(
            "SELECT events.id AS event_id, entries.* FROM events JOIN entries ON entries.id = message_id"
            " WHERE events.id > :after_id ORDER BY events.id LIMIT :limit",
            after_id=after_id,
            limit=limit,
        )
        kept = sql.one(
            "SELECT (SELECT coalesce(min(id), :after_id + 1) FROM events) <= :after_id + 1"
            " AND :after_id <= coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)"
            " AS is_whole",
            after_id=after_id,
        )
        return [Change(row["event_id"], message(row)) for row in rows], bool(kept["is_whole"])


def read_message(sql: Transaction, message_id: int) -> Message:
    """Return one message.

    Raises:
        QueueError: no message has this id.
    """
    row = sql.row("SELECT * FROM entries WHERE id = :id AND kind <> 'edit'", id=message_id)
    if row is None:
        raise QueueError("unknown", f"There is no message {message_id}.")
    return message(row)
