"""What programs read: messages by filters, one message, recordings, and what changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from june.errors import QueueError
from june.store.database import Database, Transaction, Value, transaction
from june.store.rows import Message, message

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
    """Which messages are meant: those that are as each value that is given says.

    Attributes:
        since_s: created then or later, in seconds since 1970.
        until_s: created before it.
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
        """The condition in SQL, and its values."""
        values = {name: value for name in CONDITIONS if (value := getattr(self, name)) is not None}
        return " AND ".join([CONDITIONS[name] for name in values] or ["TRUE"]), values


@dataclass(frozen=True, slots=True)
class Change:
    """One event: a message, as it is now."""

    id: int
    message: Message


class Feed(Database):
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
        """At most `limit` messages that match, behind `after_id`; and the last id if there are more."""
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
        """One message.

        Raises:
            QueueError: there is none with this id.
        """
        return read_message(sql, message_id)

    @transaction
    def reply(self, sql: Transaction, message_id: int) -> tuple[Message, Message | None]:
        """A question, and its answer; None: it has none yet.

        Raises:
            QueueError: there is none with this id, or it is no question.
        """
        question = read_message(sql, message_id)
        if not question.is_question:
            raise QueueError("conflict", f"Message {message_id} is no question.")
        if question.status != "RESPONDED" or question.answered_by is None:
            return question, None
        return question, read_message(sql, question.answered_by)

    @transaction
    def recording(self, sql: Transaction, message_id: int) -> bytes:
        """The recording of a message: OGG/Opus, 48 000 Hz, mono.

        Raises:
            QueueError: there is no such message, or none of it is kept.
        """
        read_message(sql, message_id)
        row = sql.row("SELECT ogg_opus FROM voices WHERE message_id = :id", id=message_id)
        if row is None:
            raise QueueError("unknown", f"No recording of message {message_id} is kept.")
        return bytes(row["ogg_opus"])

    @transaction
    def last_change(self, sql: Transaction) -> int:
        """The id of the newest event; 0: there is none."""
        row = sql.row("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return 0 if row is None else row["seq"]

    @transaction
    def changes(self, sql: Transaction, *, after_id: int, limit: int) -> tuple[Sequence[Change], bool]:
        """At most `limit` events behind the one `after_id`, and whether none was missed in between."""
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

    @transaction
    def private_chat(self, sql: Transaction, user: str) -> str:
        """The private chat that someone wrote in last; "" if they never did."""
        row = sql.row(
            "SELECT chat FROM messages WHERE direction = 'in' AND user = :user AND NOT is_group"
            " ORDER BY created_at_s DESC LIMIT 1",
            user=user,
        )
        return "" if row is None else row["chat"]


def read_message(sql: Transaction, message_id: int) -> Message:
    """One message.

    Raises:
        QueueError: there is none with this id.
    """
    row = sql.row("SELECT * FROM entries WHERE id = :id AND kind <> 'edit'", id=message_id)
    if row is None:
        raise QueueError("unknown", f"There is no message {message_id}.")
    return message(row)
