"""The owner's queue: messages that programs claim and answer, what they send, and what they ask.

Each method is one transaction. A `QueueError` means that the call was refused and nothing was changed. A
program's claim has a lease, which stays valid while june restarts; `expire` ends the leases that have run
out. A repeated call with the same `Once` is not carried out again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from june.errors import QueueError
from june.messages import Outbound, Purpose
from june.store.database import Part, transaction
from june.store.feed import Filter, read_message
from june.store.idempotency import Once, earlier, note
from june.store.outbox import add_outbound
from june.store.rows import Message
from june.store.status import Status, changes_allowed, set_status
from june.store.transactions import Row, Transaction

UNANSWERED = "is_question AND answered_by IS NULL AND status IN ('NEW', 'SENT') AND expires_at_s <= :now_s"
"""A question whose time has run out."""
LEASE_ENDED = "status = 'PROCESSING' AND claimed_by = 'program' AND lease_until_s <= :now_s"
MAX_TEXT = 20_000
"""The longest text that a program may send, in characters."""

Explain = Callable[[Message], Outbound | None]
"""Returns what the owner is told about a message that was given up, or None if nothing."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that a program sends."""

    chat: str
    user: str
    """Whom it is for."""
    text: str
    purpose: Purpose = "message"
    is_spoken: bool = False
    reply_to: int | None = None
    """The id of a message in the same chat."""
    expires_in_s: float | None = None
    """The message is a question, and waits this long for its answer; None: it is not a question."""
    other_users: tuple[str, ...] = ()
    """Who gets it instead, in this order, if the chat does not take it."""


class Queue(Part):
    """What programs claim, answer and send."""

    @transaction
    def claim(
        self, sql: Transaction, wanted: Filter, *, lease_s: float, once: Once | None = None
    ) -> Message | None:
        """Claim the oldest NEW message of the queue that matches; return it, or None if none matches.

        The message is PROCESSING now and has a lease.

        Raises:
            QueueError: the claim that this key made is over, or the key was used for another request.
        """
        if (first := earlier(sql, once)) is not None:
            found = read_message(sql, first["message_id"])
            if found.status != "PROCESSING" or found.attempts != first["attempts"]:
                raise QueueError("conflict", f"That claim of message {found.id} is over.")
            return found
        clause, values = wanted.where()
        row = sql.row(
            f"SELECT id FROM messages WHERE {clause} AND direction = 'in'"  # noqa: S608 - columns only
            " AND status = 'NEW' AND taker = 'program' ORDER BY is_urgent DESC, id LIMIT 1",
            **values,
        )
        if row is None:
            return None
        _claim(sql, row["id"], lease_s)
        return note(sql, once, row["id"])

    @transaction
    def extend(
        self,
        sql: Transaction,
        message_id: int,
        *,
        lease_s: float,
        attempts: int | None = None,
        once: Once | None = None,
    ) -> Message:
        """Let the lease of a claimed message end `lease_s` from now, and return the message.

        Raises:
            QueueError: the message is not claimed, or was claimed again since.
        """
        if (first := earlier(sql, once)) is not None:
            return read_message(sql, first["message_id"])
        _claimed(sql, message_id, attempts)
        sql.execute(
            "UPDATE messages SET lease_until_s = :now_s + :lease_s, updated_at_s = :now_s WHERE id = :id",
            id=message_id,
            lease_s=lease_s,
            now_s=sql.now_s,
        )
        return note(sql, once, message_id)

    @transaction
    def respond(
        self,
        sql: Transaction,
        message_id: int,
        text: str,
        *,
        is_spoken: bool = False,
        attempts: int | None = None,
        once: Once | None = None,
    ) -> Message:
        """Put the answer to a claimed message into the outbox; return the message, which is RESPONDED now.

        Raises:
            QueueError: the message is not claimed, or was claimed again since.
        """
        if (first := earlier(sql, once)) is not None:
            return read_message(sql, first["message_id"])
        row = _claimed(sql, message_id, attempts)
        answer = Outbound(
            row["chat"],
            "text",
            text,
            reply_to=row["platform_message_id"],
            user=row["user"],
            purpose="message",
        )
        _add(sql, answer, answers=message_id, is_spoken=is_spoken)
        set_status(sql, message_id, "RESPONDED", outcome="responded")
        return note(sql, once, message_id)

    @transaction
    def fail(
        self,
        sql: Transaction,
        message_id: int,
        *,
        error: str,
        retry: bool,
        max_attempts: int,
        explain: Explain,
        attempts: int | None = None,
        once: Once | None = None,
    ) -> Message:
        """End a claim without an answer, and return the message.

        The message is ERROR now; with `retry` it is NEW if it was claimed fewer than `max_attempts` times.

        Raises:
            QueueError: the message is not claimed, or was claimed again since.
        """
        if (first := earlier(sql, once)) is not None:
            return read_message(sql, first["message_id"])
        _claimed(sql, message_id, attempts)
        if retry:
            _retry(sql, message_id, error=error, max_attempts=max_attempts, explain=explain)
        else:
            set_status(sql, message_id, "ERROR", outcome="failed", error=error or "failed")
        return note(sql, once, message_id)

    @transaction
    def send(self, sql: Transaction, letter: Letter, *, once: Once | None = None) -> Message:
        """Commit a program's message as NEW and return it.

        Raises:
            QueueError: it replies to a message that is not in its chat, or the key was used for another
                request.
        """
        if (first := earlier(sql, once)) is not None:
            return read_message(sql, first["message_id"])
        outbound = Outbound(
            letter.chat,
            "text",
            letter.text,
            reply_to=_platform_id(sql, letter),
            user=letter.user,
            other_users=letter.other_users,
            purpose=letter.purpose,
        )
        message_id = _add(sql, outbound, answers=letter.reply_to, is_spoken=letter.is_spoken)
        expires_in_s = letter.expires_in_s
        sql.execute(
            "UPDATE messages SET is_question = :is_question, expires_at_s = :expires_at_s WHERE id = :id",
            id=message_id,
            is_question=expires_in_s is not None,
            expires_at_s=None if expires_in_s is None else sql.now_s + expires_in_s,
        )
        return note(sql, once, message_id)

    @transaction
    def change_text(
        self,
        sql: Transaction,
        message_id: int,
        text: str,
        *,
        op: Literal["append", "prepend", "replace"] = "replace",
    ) -> Message:
        """Change the text of a message and return the message.

        If its chat shows the text already, an edit of it is put into the outbox.

        Raises:
            QueueError: the message is not a text that was or will be sent, or it would be too long.
        """
        found = read_message(sql, message_id)
        row = sql.one("SELECT * FROM messages WHERE id = :id", id=message_id)
        if row["direction"] != "out" or row["kind"] != "text":
            raise QueueError("conflict", f"Message {message_id} is not a text that june sent.")
        is_shown = row["delivered"] != "[]" or row["status"] == "PROCESSING"
        if not is_shown and row["status"] != "NEW":
            raise QueueError("conflict", f"Message {message_id} is {row['status']}: its chat never got it.")
        whole = {"append": found.text + text, "prepend": text + found.text, "replace": text}[op]
        if len(whole) > MAX_TEXT:
            raise QueueError("conflict", f"Message {message_id} would be longer than {MAX_TEXT} characters.")
        column = "edited_text" if is_shown else "text"
        sql.execute(
            f"UPDATE messages SET {column} = :text, updated_at_s = :now_s WHERE id = :id",  # noqa: S608
            id=message_id,
            text=whole,
            now_s=sql.now_s,
        )
        if is_shown:
            edit = Outbound(
                row["chat"], "edit", whole, echo=row["echo"], edits=message_id, purpose=row["purpose"]
            )
            add_outbound(sql, edit)
        return read_message(sql, message_id)

    @transaction
    def change_status(
        self, sql: Transaction, message_id: int, status: Status, *, if_status: Status, lease_s: float
    ) -> Message:
        """Change the status of a message from `if_status` to `status`, and return the message.

        A message that becomes PROCESSING gets a lease of `lease_s`.

        Raises:
            QueueError: its status is not `if_status`, or a program may not make this change.
        """
        found = read_message(sql, message_id)
        row = sql.one("SELECT * FROM messages WHERE id = :id", id=message_id)
        if found.status != if_status:
            raise QueueError("conflict", f"Message {message_id} is {found.status}, not {if_status}.")
        if status not in changes_allowed(row).get(found.status, ()):
            raise QueueError(
                "conflict", f"A program cannot make message {message_id}, which is {found.status}, {status}."
            )
        if status == "PROCESSING":
            _claim(sql, message_id, lease_s)
        elif status == "NEW" and found.status == "ERROR":
            sql.execute(
                "UPDATE messages SET attempts = 0, due_at_s = :now_s WHERE id = :id",
                id=message_id,
                now_s=sql.now_s,
            )
            set_status(sql, message_id, "NEW")
        elif status == "TIMEOUT" and found.answered_by is not None:
            raise QueueError("conflict", f"Message {message_id} is being answered.")
        else:
            set_status(sql, message_id, status, error="by_program" if status == "ERROR" else "")
        return read_message(sql, message_id)

    @transaction
    def has_run_out(self, sql: Transaction) -> bool:
        """Return whether `expire` would find something."""
        found = sql.rows(
            f"SELECT 1 FROM messages WHERE {UNANSWERED} UNION ALL"  # noqa: S608 - a constant
            f" SELECT 1 FROM messages WHERE {LEASE_ENDED} LIMIT 1",
            now_s=sql.now_s,
        )
        return bool(found)

    @transaction
    def expire(self, sql: Transaction, *, max_attempts: int, explain: Explain) -> int:
        """End the leases and questions that ran out, and return how many there were.

        The questions become TIMEOUT. The messages become NEW again, or ERROR if they were claimed
        `max_attempts` times; `explain` says what the owner is told of those.
        """
        leases = sql.rows(
            f"SELECT id FROM messages WHERE {LEASE_ENDED} ORDER BY id",  # noqa: S608 - a constant
            now_s=sql.now_s,
        )
        for row in leases:
            _retry(sql, row["id"], error="lease_ended", max_attempts=max_attempts, explain=explain)
        questions = sql.execute(
            f"UPDATE messages SET status = 'TIMEOUT', updated_at_s = :now_s WHERE {UNANSWERED}",  # noqa: S608
            now_s=sql.now_s,
        ).rowcount
        return len(leases) + questions


def _claim(sql: Transaction, message_id: int, lease_s: float) -> None:
    sql.execute(
        "UPDATE messages SET status = 'PROCESSING', claimed_by = 'program', attempts = attempts + 1,"
        " lease_until_s = :now_s + :lease_s, updated_at_s = :now_s WHERE id = :id",
        id=message_id,
        lease_s=lease_s,
        now_s=sql.now_s,
    )


def _claimed(sql: Transaction, message_id: int, attempts: int | None) -> Row:
    """Return the row of a message that a program has claimed; `attempts`, if given, must be its own."""
    found = read_message(sql, message_id)
    row = sql.one("SELECT * FROM messages WHERE id = :id", id=message_id)
    if found.status != "PROCESSING" or row["claimed_by"] != "program":
        raise QueueError("conflict", f"Message {message_id} is {found.status}, and not claimed by a program.")
    if attempts is not None and attempts != found.attempts:
        raise QueueError("conflict", f"Message {message_id} was claimed again since.")
    return row


def _retry(sql: Transaction, message_id: int, *, error: str, max_attempts: int, explain: Explain) -> None:
    found = read_message(sql, message_id)
    if found.attempts < max_attempts:
        set_status(sql, message_id, "NEW", error=error)
        return
    set_status(sql, message_id, "ERROR", outcome="failed", error=error or "attempts_spent")
    notice = explain(found)
    if notice is not None:
        add_outbound(sql, notice)


def _add(sql: Transaction, message: Outbound, *, answers: int | None, is_spoken: bool) -> int:
    """Put a program's message, and a voice message if it is spoken, into the outbox; return its id."""
    message_id = add_outbound(sql, message, answers=answers)
    if is_spoken:
        voice = replace(message, kind="voice", text_is_sent=True, is_unspoken=True)
        add_outbound(sql, voice, answers=message_id)
    return message_id


def _platform_id(sql: Transaction, letter: Letter) -> str:
    """Return the chat app's id of the message that a letter replies to, or "" if there is none."""
    if letter.reply_to is None:
        return ""
    row = sql.row(
        "SELECT coalesce(nullif(platform_message_id, ''), json_extract(delivered, '$[0].message_id'), '')"
        " AS platform_id FROM messages WHERE id = :id AND chat = :chat",
        id=letter.reply_to,
        chat=letter.chat,
    )
    if row is None:
        raise QueueError("conflict", f"There is no message {letter.reply_to} in that person's chat.")
    return str(row["platform_id"])
