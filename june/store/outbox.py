"""The outbox: what june sends, each chat in order, until a chat app takes it or june gives it up.

It also holds voice messages of programs that june has yet to speak; they are sent once they are spoken.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from june.messages import Delivered, Outbound, Voice
from june.store.database import Part, transaction
from june.store.rows import DueMessage, due_message, to_json
from june.store.status import set_status
from june.store.transactions import Row, Transaction

# The first message of each chat in which nothing is being sent, and when that message is due.
HEADS = """
    WITH heads AS (
        SELECT min(id) AS id FROM messages
        WHERE direction = 'out' AND status = 'NEW' AND NOT is_unspoken
            AND chat NOT IN (SELECT value FROM json_each(:excluded))
            AND chat NOT IN (SELECT chat FROM messages WHERE direction = 'out' AND status = 'PROCESSING')
        GROUP BY chat
    )
    SELECT
        head.id, head.chat, head.may_group,
        max(head.due_at_s, CASE
            WHEN head.may_group AND NOT EXISTS (
                SELECT 1 FROM messages AS later
                WHERE later.direction = 'out' AND later.status = 'NEW' AND NOT later.is_unspoken
                    AND later.chat = head.chat AND later.id > head.id AND NOT later.may_group
            )
            THEN head.created_at_s + :group_window_s ELSE 0
        END) AS due_s
    FROM heads JOIN messages AS head USING (id)
    ORDER BY due_s, id LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Unspoken:
    """A voice message that june has yet to speak."""

    id: int
    text: str
    chat: str


class Outbox(Part):
    """What is to be sent, and what is to be spoken first."""

    @transaction
    def add(self, sql: Transaction, messages: Sequence[Outbound]) -> list[int]:
        """Commit messages as NEW and return their ids."""
        return [add_outbound(sql, message) for message in messages]

    @transaction
    def take_due(
        self, sql: Transaction, *, exclude_chats: Collection[str], group_window_s: float
    ) -> tuple[DueMessage, ...]:
        """Take the message that is due first and those that are grouped with it; return () if none is due.

        They are PROCESSING now and have one more attempt. Each chat is sent in order, one message or group
        at a time: only a chat in which nothing is PROCESSING is considered, and only its first message. If
        that was postponed, the rest of the chat waits, too.

        A first message that may be grouped is due `group_window_s` after it was made, or at once if a
        message that may not be grouped follows it. The messages right behind it that may be grouped come
        with it.
        """
        head = _next_head(sql, exclude_chats, group_window_s)
        if head is None or head["due_s"] > sql.now_s:
            return ()
        ids = [head["id"]]
        if head["may_group"]:
            for row in sql.rows(
                "SELECT id, may_group FROM messages WHERE direction = 'out' AND status = 'NEW'"
                " AND NOT is_unspoken AND chat = :chat AND id > :id ORDER BY id",
                chat=head["chat"],
                id=head["id"],
            ):
                if not row["may_group"]:
                    break
                ids.append(row["id"])
        sql.execute(
            "UPDATE messages SET status = 'PROCESSING', claimed_by = 'june', attempts = attempts + 1,"
            " updated_at_s = :now_s WHERE id IN (SELECT value FROM json_each(:ids))",
            ids=to_json(ids),
            now_s=sql.now_s,
        )
        return tuple(due_message(row) for row in _with_voices(sql, ids))

    @transaction
    def next_due_s(
        self, sql: Transaction, *, exclude_chats: Collection[str], group_window_s: float
    ) -> float | None:
        """Return in how many seconds (0 or more) `take_due` may find something, or None if nothing waits."""
        head = _next_head(sql, exclude_chats, group_window_s)
        return None if head is None else max(0.0, head["due_s"] - sql.now_s)

    @transaction
    def note_delivered(self, sql: Transaction, message_id: int, delivered: Delivered) -> None:
        """Note which piece of a message a chat app has just taken, so that june does not send it again."""
        sql.execute(
            "UPDATE messages SET delivered = json_insert(delivered, '$[#]', json(:delivered)),"
            " updated_at_s = :now_s WHERE id = :id AND direction = 'out'",
            id=message_id,
            delivered=to_json(delivered),
            now_s=sql.now_s,
        )
        sql.execute(
            "INSERT OR IGNORE INTO sent_as (chat, platform_message_id, message_id)"
            " SELECT chat, :platform_message_id, id FROM messages WHERE id = :id AND kind <> 'edit'",
            id=message_id,
            platform_message_id=delivered.message_id,
        )

    @transaction
    def mark_sent(self, sql: Transaction, ids: Sequence[int]) -> None:
        """Set messages that are PROCESSING to SENT, or to RESPONDED if they are questions with an answer."""
        _leave_processing(sql, ids, "SENT")
        sql.execute(
            "UPDATE messages SET status = 'RESPONDED' WHERE id IN (SELECT value FROM json_each(:ids))"
            " AND status = 'SENT' AND is_question AND answered_by IN"
            " (SELECT id FROM messages WHERE direction = 'in' AND status = 'RESPONDED')",
            ids=to_json(ids),
        )

    @transaction
    def postpone(self, sql: Transaction, ids: Sequence[int], *, due_at_s: float, error: str) -> None:
        """Set messages that are PROCESSING back to NEW, due at a time in seconds since 1970."""
        _leave_processing(sql, ids, "NEW", due_at_s=due_at_s, error=error)

    @transaction
    def readdress(
        self, sql: Transaction, message_id: int, *, chat: str, user: str, other_users: Sequence[str]
    ) -> None:
        """Set a message that is PROCESSING back to NEW and send it to another person's chat."""
        sql.execute(
            "UPDATE messages SET status = 'NEW', claimed_by = '', attempts = 0, delivered = '[]',"
            " chat = :chat, platform = :platform, user = :user, other_users = :other_users, reply_to = '',"
            " updated_at_s = :now_s"
            " WHERE id = :id AND direction = 'out' AND status = 'PROCESSING'",
            id=message_id,
            chat=chat,
            platform=chat.partition(":")[0],
            user=user,
            other_users=to_json(other_users),
            now_s=sql.now_s,
        )

    @transaction
    def give_up(
        self, sql: Transaction, ids: Sequence[int], *, error: str, notice: Outbound | None = None
    ) -> None:
        """Set messages that are PROCESSING to ERROR; if there were any, enqueue the notice as well."""
        if _leave_processing(sql, ids, "ERROR", error=error) and notice is not None:
            add_outbound(sql, notice)

    @transaction
    def message(self, sql: Transaction, message_id: int) -> DueMessage | None:
        """Return a message of any status with what was delivered of it, or None if none has this id."""
        rows = _with_voices(sql, [message_id])
        return due_message(rows[0]) if rows else None

    @transaction
    def next_unspoken(self, sql: Transaction) -> Unspoken | None:
        """Return the oldest voice message that june has yet to speak, or None if there is none."""
        row = sql.row(
            "SELECT id, text, chat FROM messages WHERE is_unspoken AND status = 'NEW' ORDER BY id LIMIT 1"
        )
        return None if row is None else Unspoken(**row)

    @transaction
    def note_spoken(self, sql: Transaction, message_id: int, voices: Sequence[Voice]) -> None:
        """Send a voice message as it was spoken; its first recording is the message, the others follow it."""
        row = sql.row(
            "SELECT * FROM messages WHERE id = :id AND is_unspoken AND status = 'NEW'", id=message_id
        )
        if row is None:  # it was withdrawn meanwhile
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
        """Set a voice message that could not be spoken to ERROR; its words are sent as text anyway."""
        set_status(sql, message_id, "ERROR", error=error)


def add_outbound(sql: Transaction, message: Outbound, *, answers: int | None = None) -> int:
    """Put a message behind the others of its chat and return its id."""
    row = sql.one(
        "INSERT INTO messages (direction, platform, chat, kind, text, reply_to, duration_s, preview_id,"
        " answers, edits, echo, text_is_sent, may_group, user, role, other_users, purpose,"
        " is_unspoken, forwards, trace_context, due_at_s, created_at_s, updated_at_s)"
        " VALUES ('out', :platform, :chat, :kind, :text, :reply_to, :duration_s, :preview_id,"
        " :answers, :edits, :echo, :text_is_sent, :may_group, :user, :role, :other_users, :purpose,"
        " :is_unspoken, :forwards, coalesce((SELECT trace_context FROM messages WHERE id = :answers), ''),"
        " :now_s, :now_s, :now_s) RETURNING id",
        platform=message.chat.partition(":")[0],
        chat=message.chat,
        kind=message.kind,
        text=message.text,
        reply_to=message.reply_to,
        duration_s=message.voice.duration_s if message.voice else None,
        preview_id=message.preview_id,
        answers=answers,
        edits=message.edits or None,
        echo=message.echo,
        text_is_sent=message.text_is_sent,
        may_group=message.may_group and message.kind == "text",
        user=message.user,
        role="program" if message.purpose else "",
        other_users=to_json(message.other_users),
        purpose=message.purpose,
        is_unspoken=message.is_unspoken,
        forwards=message.forwards or None,
        now_s=sql.now_s,
    )
    if message.voice is not None:
        add_voice(sql, row["id"], message.voice)
    return int(row["id"])


def add_voice(sql: Transaction, message_id: int, voice: Voice) -> None:
    """Store the recording of a message; it replaces the one that the message has."""
    sql.execute(
        "INSERT OR REPLACE INTO voices (message_id, ogg_opus, waveform) VALUES (:id, :ogg_opus, :waveform)",
        id=message_id,
        ogg_opus=voice.ogg_opus,
        waveform=voice.waveform,
    )


def _next_head(sql: Transaction, exclude_chats: Collection[str], group_window_s: float) -> Row | None:
    return sql.row(HEADS, excluded=to_json(exclude_chats), group_window_s=group_window_s)


def _with_voices(sql: Transaction, ids: Sequence[int]) -> list[Row]:
    return sql.rows(
        "SELECT messages.*, ogg_opus, waveform FROM messages LEFT JOIN voices ON message_id = id"
        " WHERE id IN (SELECT value FROM json_each(:ids)) AND direction = 'out' ORDER BY id",
        ids=to_json(ids),
    )


def _leave_processing(
    sql: Transaction, ids: Sequence[int], status: str, *, due_at_s: float | None = None, error: str = ""
) -> int:
    """Set the status of those messages that are PROCESSING and return how many they were."""
    return sql.execute(
        "UPDATE messages SET status = :status, claimed_by = '', error = :error,"
        " due_at_s = coalesce(:due_at_s, due_at_s), updated_at_s = :now_s"
        " WHERE id IN (SELECT value FROM json_each(:ids)) AND direction = 'out' AND status = 'PROCESSING'",
        ids=to_json(ids),
        status=status,
        due_at_s=due_at_s,
        error=error,
        now_s=sql.now_s,
    ).rowcount
