"""The owner's queue: messages that programs claim and answer, what they send, and what they ask.

Each method is one transaction, and tells of a refusal by a `QueueError` that changes nothing. A program's
claim has a lease, which outlives june: `expire` ends what has run out. Where a call carries a `Once`, a
repeated one is not carried out again.

What a program may change by itself is `MAY_CHANGE`; every other change of a status is june's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from june.errors import QueueError
from june.messages import Outbound, Purpose, Voice
from june.store.database import Database, Row, Transaction, transaction
from june.store.feed import Filter, read_message
from june.store.outbox import add_outbound, add_voice
from june.store.questions import settle
from june.store.rows import Message, Status

MAY_CHANGE: Mapping[str, Mapping[Status, tuple[Status, ...]]] = {
    "queued": {
        "NEW": ("PROCESSING", "RESPONDED", "ERROR"),
        "PROCESSING": ("NEW", "RESPONDED", "ERROR"),
        "ERROR": ("NEW",),
    },
    "sent": {"NEW": ("ERROR",), "ERROR": ("NEW",)},
    "asked": {"NEW": ("ERROR",), "ERROR": ("NEW",), "SENT": ("TIMEOUT",)},
}
"""By what a message is: one that programs may claim, one that a program sent, a question of a program."""

UNANSWERED = "is_question AND answered_by IS NULL AND status IN ('NEW', 'SENT') AND expires_at_s <= :now_s"
"""A question whose time is over."""
LEASE_ENDED = "status = 'PROCESSING' AND claimed_by = 'program' AND lease_until_s <= :now_s"
MAX_TEXT = 20_000
"""Characters of a message that a program sends."""
KEY_VALID_S = 24 * 3600.0
MAX_KEYS = 10_000

Explain = Callable[[Message], Outbound | None]
"""What the owner is told of a message that was given up."""


@dataclass(frozen=True, slots=True)
class Once:
    """An idempotency key, and the hash of the request that it stands for."""

    key: str
    request_sha256: str


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
    """It is a question, and waits so long for its answer."""
    other_users: tuple[str, ...] = ()
    """Whom it goes to instead, in this order, if the chat does not take it."""


@dataclass(frozen=True, slots=True)
class Unspoken:
    """A voice message that is yet to be spoken."""

    id: int
    text: str
    chat: str


class Queue(Database):
    """What programs do."""

    @transaction
    def claim_for_program(
        self, sql: Transaction, wanted: Filter, *, lease_s: float, once: Once | None = None
    ) -> Message | None:
        """The oldest NEW message of the queue that matches, now PROCESSING with a lease; None: none does.

        Raises:
            QueueError: the key stands for a claim that is over, or for another request.
        """
        if (earlier := _earlier(sql, once)) is not None:
            found = read_message(sql, earlier["message_id"])
            if found.status != "PROCESSING" or found.attempts != earlier["attempts"]:
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
        return _noted(sql, once, row["id"])

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
        """The message, whose lease ends `lease_s` from now.

        Raises:
            QueueError: it is not claimed, or was claimed again since.
        """
        if (earlier := _earlier(sql, once)) is not None:
            return read_message(sql, earlier["message_id"])
        _claimed(sql, message_id, attempts)
        sql.execute(
            "UPDATE messages SET lease_until_s = :now_s + :lease_s, updated_at_s = :now_s WHERE id = :id",
            id=message_id,
            lease_s=lease_s,
            now_s=sql.now_s,
        )
        return _noted(sql, once, message_id)

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
        """The message, now RESPONDED; the answer is in the outbox.

        Raises:
            QueueError: it is not claimed, or was claimed again since.
        """
        if (earlier := _earlier(sql, once)) is not None:
            return read_message(sql, earlier["message_id"])
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
        _set(sql, message_id, "RESPONDED", outcome="responded")
        return _noted(sql, once, message_id)

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
        """The message, now ERROR; or NEW, if it is to be retried and was not claimed `max_attempts` times.

        Raises:
            QueueError: it is not claimed, or was claimed again since.
        """
        if (earlier := _earlier(sql, once)) is not None:
            return read_message(sql, earlier["message_id"])
        _claimed(sql, message_id, attempts)
        if retry:
            _retry(sql, message_id, error=error, max_attempts=max_attempts, explain=explain)
        else:
            _set(sql, message_id, "ERROR", outcome="failed", error=error or "failed")
        return _noted(sql, once, message_id)

    @transaction
    def send(self, sql: Transaction, letter: Letter, *, once: Once | None = None) -> Message:
        """The message, which is now committed as NEW.

        Raises:
            QueueError: it replies to a message that is not in its chat; the key stands for another request.
        """
        if (earlier := _earlier(sql, once)) is not None:
            return read_message(sql, earlier["message_id"])
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
        return _noted(sql, once, message_id)

    @transaction
    def change_text(
        self,
        sql: Transaction,
        message_id: int,
        text: str,
        *,
        op: Literal["append", "prepend", "replace"] = "replace",
    ) -> Message:
        """The message, whose text is another one now; the edit of what its chat shows is in the outbox.

        Raises:
            QueueError: it is no text that was or will be sent, or would be too long.
        """
        found = read_message(sql, message_id)
        row = sql.one("SELECT * FROM messages WHERE id = :id", id=message_id)
        if row["direction"] != "out" or row["kind"] != "text":
            raise QueueError("conflict", f"Message {message_id} is no text that june sent.")
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
        """The message, whose status was `if_status` and is `status` now; a claim gets the lease.

        Raises:
            QueueError: its status is another one, or must not become this one.
        """
        found = read_message(sql, message_id)
        row = sql.one("SELECT * FROM messages WHERE id = :id", id=message_id)
        if found.status != if_status:
            raise QueueError("conflict", f"Message {message_id} is {found.status}, not {if_status}.")
        if status not in MAY_CHANGE.get(_nature(row), {}).get(found.status, ()):
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
            _set(sql, message_id, "NEW")
        elif status == "TIMEOUT" and found.answered_by is not None:
            raise QueueError("conflict", f"Message {message_id} is being answered.")
        else:
            _set(sql, message_id, status, error="by_program" if status == "ERROR" else "")
        return read_message(sql, message_id)

    @transaction
    def has_run_out(self, sql: Transaction) -> bool:
        """Whether `expire` would find something."""
        found = sql.rows(
            f"SELECT 1 FROM messages WHERE {UNANSWERED} UNION ALL"  # noqa: S608 - a constant
            f" SELECT 1 FROM messages WHERE {LEASE_ENDED} LIMIT 1",
            now_s=sql.now_s,
        )
        return bool(found)

    @transaction
    def expire(self, sql: Transaction, *, max_attempts: int, explain: Explain) -> int:
        """How many leases and questions ran out: the messages are NEW again or ERROR, the questions TIMEOUT.

        What was claimed `max_attempts` times is ERROR, and `explain` may tell the owner.
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

    @transaction
    def hand_over(self, sql: Transaction, message_id: int, voice: Voice, *, text: str) -> bool:
        """Whether june had the message in work; if so programs may claim it, with what was heard as `text`.

        An answer to a question answers it now.
        """
        found = sql.row(
            "UPDATE messages SET route = iif(route = 'answer', route, 'queue'), transcript = :text,"
            " updated_at_s = :now_s"
            " WHERE id = :id AND direction = 'in' AND status = 'PROCESSING' AND claimed_by = 'june'"
            " RETURNING route",
            id=message_id,
            text=text,
            now_s=sql.now_s,
        )
        if found is None:
            return False
        add_voice(sql, message_id, voice)
        if found["route"] == "answer":
            settle(sql, message_id)
        else:
            sql.execute("UPDATE messages SET taker = 'program', attempts = 0 WHERE id = :id", id=message_id)
            _set(sql, message_id, "NEW")
        return True

    @transaction
    def next_unspoken(self, sql: Transaction) -> Unspoken | None:
        """The oldest voice message that is yet to be spoken; None: there is none."""
        row = sql.row(
            "SELECT id, text, chat FROM messages WHERE is_unspoken AND status = 'NEW' ORDER BY id LIMIT 1"
        )
        return None if row is None else Unspoken(**row)

    @transaction
    def note_spoken(self, sql: Transaction, message_id: int, voices: Sequence[Voice]) -> None:
        """Have a voice message sent as it was spoken; what did not fit into the first follows it."""
        row = sql.row(
            "SELECT * FROM messages WHERE id = :id AND is_unspoken AND status = 'NEW'", id=message_id
        )
        if row is None:  # withdrawn meanwhile
            return
        first, *rest = voices
        add_voice(sql, message_id, first)
        sql.execute(
            "UPDATE messages SET is_unspoken = 0, duration_s = :duration_s, updated_at_s = :now_s"
            " WHERE id = :id",
            id=message_id,
            duration_s=first.duration_s,
            now_s=sql.now_s,
        )
        for voice in rest:
            more = Outbound(
                row["chat"],
                "voice",
                voice.text,
                voice=voice,
                text_is_sent=True,
                user=row["user"],
                purpose=row["purpose"],
            )
            add_outbound(sql, more, answers=row["answers"])

    @transaction
    def give_up_speaking(self, sql: Transaction, message_id: int, *, error: str) -> None:
        """Make a voice message ERROR that could not be spoken; its words are sent in writing."""
        _set(sql, message_id, "ERROR", error=error)


def _nature(row: Row) -> str:
    """Which part of `MAY_CHANGE` holds; "" if none does."""
    if row["direction"] == "in":
        return "queued" if row["taker"] == "program" else ""
    if row["role"] != "program":
        return ""
    return "asked" if row["is_question"] else "sent"


def _claim(sql: Transaction, message_id: int, lease_s: float) -> None:
    sql.execute(
        "UPDATE messages SET status = 'PROCESSING', claimed_by = 'program', attempts = attempts + 1,"
        " lease_until_s = :now_s + :lease_s, updated_at_s = :now_s WHERE id = :id",
        id=message_id,
        lease_s=lease_s,
        now_s=sql.now_s,
    )


def _claimed(sql: Transaction, message_id: int, attempts: int | None) -> Row:
    """The row of a message that a program has claimed."""
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
        _set(sql, message_id, "NEW", error=error)
        return
    _set(sql, message_id, "ERROR", outcome="failed", error=error or "attempts_spent")
    notice = explain(found)
    if notice is not None:
        add_outbound(sql, notice)


def _set(sql: Transaction, message_id: int, status: Status, *, outcome: str = "", error: str = "") -> None:
    sql.execute(
        "UPDATE messages SET status = :status, outcome = :outcome, error = :error, claimed_by = '',"
        " lease_until_s = NULL, updated_at_s = :now_s WHERE id = :id",
        id=message_id,
        status=status,
        outcome=outcome,
        error=error,
        now_s=sql.now_s,
    )


def _add(sql: Transaction, message: Outbound, *, answers: int | None, is_spoken: bool) -> int:
    """The id of a program's message in the outbox; one that speaks it is put behind it."""
    message_id = add_outbound(sql, message, answers=answers)
    if is_spoken:
        voice = replace(message, kind="voice", text_is_sent=True, is_unspoken=True)
        add_outbound(sql, voice, answers=message_id)
    return message_id


def _platform_id(sql: Transaction, letter: Letter) -> str:
    """The chat app's id of the message that a letter replies to; "" if it replies to none, or it has none."""
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


def _earlier(sql: Transaction, once: Once | None) -> Row | None:
    """What became of the first request with this key; None: this is the first, or has no key."""
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


def _noted(sql: Transaction, once: Once | None, message_id: int) -> Message:
    """The message, once its idempotency key is kept."""
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
