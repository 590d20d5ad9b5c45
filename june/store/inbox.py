"""The inbox: what was received, each message once, from its arrival until it is answered."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from june.messages import Inbound, Outbound, Transcript, Usage, Voice
from june.store.database import Part, transaction
from june.store.outbox import add_outbound, add_voice
from june.store.questions import find_ties, free, reserve, settle
from june.store.rows import Placed, Received, Role, Ties, received, to_json
from june.store.status import set_status
from june.store.transactions import Transaction
from june.telemetry import new_trace_context


class Inbox(Part):
    """What was received, and what june does with it."""

    @transaction
    def receive(
        self,
        sql: Transaction,
        batch: Sequence[tuple[Inbound, Role]],
        *,
        place: Callable[[Inbound, Role, Ties], Placed],
        cursor: tuple[str, str] | None = None,
        replies: Sequence[Outbound] = (),
        confirm: Callable[[Received], Outbound | None] = lambda _: None,
    ) -> list[Received]:
        """Commit those messages of the batch that are not known yet as NEW, and return them.

        Args:
            batch: messages with the role of their sender.
            place: returns how a message is stored; it is called in the transaction, on the store's thread.
            cursor: the name and the value of a cursor to store in the same transaction.
            replies: messages for the outbox, in the same transaction.
            confirm: returns the message, if any, that goes to the outbox for a message that was not known.
        """
        rows = [_add_inbound(sql, message, role, place) for message, role in batch]
        for row in rows:
            if row is not None and (notice := confirm(row)) is not None:
                add_outbound(sql, notice, answers=row.id)
        for reply in replies:
            add_outbound(sql, reply)
        if cursor is not None:
            sql.execute(
                "INSERT INTO cursors (name, value) VALUES (:name, :value)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                name=cursor[0],
                value=cursor[1],
            )
        return [row for row in rows if row is not None]

    @transaction
    def cursor(self, sql: Transaction, name: str) -> str:
        """Return the cursor that was committed last under this name, or "" if none was."""
        row = sql.row("SELECT value FROM cursors WHERE name = :name", name=name)
        return "" if row is None else row["value"]

    @transaction
    def claim(self, sql: Transaction, *, exclude_chats: Collection[str], lease_s: float) -> Received | None:
        """Claim the oldest NEW message for june and return it, or None if there is none.

        The message is PROCESSING now and has one more attempt. A chat is passed over while june works on
        one of its messages. The command /stop comes first.
        """
        row = sql.row(
            "UPDATE messages SET status = 'PROCESSING', claimed_by = 'june', attempts = attempts + 1,"
            " lease_until_s = :now_s + :lease_s, updated_at_s = :now_s"
            " WHERE id = ("
            "  SELECT id FROM messages WHERE direction = 'in' AND status = 'NEW' AND taker = 'june'"
            "  AND chat NOT IN (SELECT value FROM json_each(:excluded))"
            "  AND chat NOT IN (SELECT chat FROM messages"
            "   WHERE direction = 'in' AND status = 'PROCESSING' AND claimed_by = 'june')"
            "  ORDER BY is_urgent DESC, id LIMIT 1"
            " ) RETURNING *",
            excluded=to_json(exclude_chats),
            lease_s=lease_s,
            now_s=sql.now_s,
        )
        return None if row is None else received(row)

    @transaction
    def note_transcript(self, sql: Transaction, message_id: int, transcript: Transcript) -> None:
        """Store what was heard, so that another attempt need not transcribe the recording again."""
        sql.execute(
            "UPDATE messages SET transcript = :text, language = :language, duration_s = :duration_s,"
            " updated_at_s = :now_s WHERE id = :id AND direction = 'in'",
            id=message_id,
            text=transcript.text,
            language=transcript.language,
            duration_s=transcript.duration_s,
            now_s=sql.now_s,
        )

    @transaction
    def note_preview(self, sql: Transaction, message_id: int, preview_id: str) -> None:
        """Store the platform's id of the message that shows the answer while it is written."""
        sql.execute(
            "UPDATE messages SET preview_id = :preview_id, updated_at_s = :now_s"
            " WHERE id = :id AND direction = 'in'",
            id=message_id,
            preview_id=preview_id,
            now_s=sql.now_s,
        )

    @transaction
    def note_answer(
        self, sql: Transaction, message_id: int, answer: str, replies: Sequence[Outbound]
    ) -> bool:
        """Store the answer to a message and put the replies into the outbox; return whether this was done.

        It is done only if the message is PROCESSING and has no answer. Another attempt then finds the
        answer: it neither writes the answer nor sends these replies again.
        """
        found = sql.execute(
            "UPDATE messages SET answer = :answer, updated_at_s = :now_s"
            " WHERE id = :id AND direction = 'in' AND status = 'PROCESSING' AND answer = ''",
            id=message_id,
            answer=answer,
            now_s=sql.now_s,
        ).rowcount
        return _reply(sql, message_id, replies) if found else False

    @transaction
    def finish(
        self,
        sql: Transaction,
        message_id: int,
        replies: Sequence[Outbound],
        *,
        outcome: str,
        answer: str = "",
        error: str = "",
        status: Literal["RESPONDED", "FORWARDED", "ERROR"] = "RESPONDED",
        forget_text: bool = False,
        timings_s: Mapping[str, float] | None = None,
        usage: Usage | None = None,
    ) -> bool:
        """End june's work on a message and put the replies into the outbox; return whether this was done.

        It is done only if the message is PROCESSING and june has claimed it.

        Args:
            message_id: the message.
            replies: what goes to the outbox.
            outcome: what became of it; "answered" puts it and its answer into the conversation.
            answer: what the model wrote; may be left out if `note_answer` stored it.
            error: why it failed; nothing of what people said.
            status: the status that the message gets.
            forget_text: delete the text, the link to the recording and the transcript of a message that was
                not meant for june.
            timings_s: seconds by stage.
            usage: tokens of this attempt; they are added to those of earlier attempts.
        """
        found = sql.execute(
            "UPDATE messages SET status = :status, outcome = :outcome, error = :error,"
            " answer = coalesce(nullif(:answer, ''), answer), claimed_by = '', lease_until_s = NULL,"
            " timings_s = :timings_s, prompt_tokens = prompt_tokens + :prompt_tokens,"
            " completion_tokens = completion_tokens + :completion_tokens, updated_at_s = :now_s"
            " WHERE id = :id AND direction = 'in' AND status = 'PROCESSING' AND claimed_by = 'june'",
            id=message_id,
            status=status,
            outcome=outcome,
            answer=answer,
            error=error,
            timings_s=json.dumps(timings_s or {}),
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            now_s=sql.now_s,
        ).rowcount
        if not found:
            return False
        if status == "ERROR":
            free(sql, message_id)
        if outcome == "returned":
            sql.execute(
                "UPDATE messages SET status = 'RESPONDED', updated_at_s = :now_s"
                " WHERE id = (SELECT answers FROM messages WHERE id = :id) AND status = 'FORWARDED'",
                id=message_id,
                now_s=sql.now_s,
            )
        if forget_text:
            sql.execute(
                "UPDATE messages SET text = '', transcript = NULL, attachment = NULL WHERE id = :id",
                id=message_id,
            )
        return _reply(sql, message_id, replies)

    @transaction
    def release(self, sql: Transaction, message_id: int) -> None:
        """Set a message that june has claimed back to NEW, as if it had never been claimed."""
        sql.execute(
            "UPDATE messages SET status = 'NEW', claimed_by = '', lease_until_s = NULL,"
            " attempts = attempts - 1, updated_at_s = :now_s"
            " WHERE id = :id AND direction = 'in' AND status = 'PROCESSING' AND claimed_by = 'june'",
            id=message_id,
            now_s=sql.now_s,
        )

    @transaction
    def retry_last(self, sql: Transaction, chat: str) -> bool:
        """Let june answer the chat's last message again; return False if there is no such message.

        It is the last message that is done and is not a command. It becomes NEW as if it had just been
        received: it has no answer, no attempts, and a new trace.
        """
        return bool(
            sql.execute(
                "UPDATE messages SET status = 'NEW', attempts = 0, outcome = '', answer = '', error = '',"
                " preview_id = '', trace_context = :trace_context, due_at_s = :now_s, updated_at_s = :now_s"
                " WHERE id = ("
                "  SELECT id FROM messages WHERE direction = 'in' AND chat = :chat AND kind <> 'command'"
                "  AND route = 'assistant' AND status IN ('RESPONDED', 'ERROR')"
                "  AND (text <> '' OR attachment IS NOT NULL)"
                "  ORDER BY id DESC LIMIT 1"
                " )",
                chat=chat,
                trace_context=new_trace_context(),
                now_s=sql.now_s,
            ).rowcount
        )

    @transaction
    def hand_over(self, sql: Transaction, message_id: int, voice: Voice, *, text: str) -> bool:
        """Let programs claim a message that june was working on; return whether june was.

        Args:
            message_id: the message.
            voice: its recording.
            text: what was heard in it.
        """
        if not _note_heard(sql, message_id, voice, text):
            return False
        sql.execute(
            "UPDATE messages SET route = 'queue', taker = 'program', attempts = 0 WHERE id = :id",
            id=message_id,
        )
        set_status(sql, message_id, "NEW")
        return True

    @transaction
    def answer_question(self, sql: Transaction, message_id: int, voice: Voice, *, text: str) -> bool:
        """Let a message that june was working on answer its question; return whether june was.

        Args:
            message_id: the message.
            voice: its recording.
            text: what was heard in it.
        """
        if not _note_heard(sql, message_id, voice, text):
            return False
        settle(sql, message_id)
        return True


def _note_heard(sql: Transaction, message_id: int, voice: Voice, text: str) -> bool:
    """Store the recording of a message and what was heard in it, if june is working on the message."""
    is_claimed = sql.execute(
        "UPDATE messages SET transcript = :text, updated_at_s = :now_s"
        " WHERE id = :id AND direction = 'in' AND status = 'PROCESSING' AND claimed_by = 'june'",
        id=message_id,
        text=text,
        now_s=sql.now_s,
    ).rowcount
    if is_claimed:
        add_voice(sql, message_id, voice)
    return bool(is_claimed)


def _reply(sql: Transaction, message_id: int, replies: Sequence[Outbound]) -> Literal[True]:
    for reply in replies:
        add_outbound(sql, reply, answers=message_id)
    return True


def _add_inbound(
    sql: Transaction, arrived: Inbound, role: Role, place: Callable[[Inbound, Role, Ties], Placed]
) -> Received | None:
    """Store a message and return it, or None if it was known already."""
    placed = place(arrived, role, find_ties(sql, arrived))
    message, attachment = placed.message, placed.message.attachment
    row = sql.row(
        "INSERT INTO messages (direction, platform, chat, user, user_name, role, kind, text,"
        " platform_message_id, reply_to, duration_s, is_group, is_addressed, is_urgent, sent_at_s,"
        " attachment, route, taker, answers, trace_context, created_at_s, updated_at_s)"
        " VALUES ('in', :platform, :chat, :user, :user_name, :role, :kind, :text,"
        " :platform_message_id, :reply_to, :duration_s, :is_group, :is_addressed, :is_urgent, :sent_at_s,"
        " :attachment, :route, :taker, :answers, :trace_context, :now_s, :now_s)"
        " ON CONFLICT (chat, platform_message_id) WHERE direction = 'in' DO NOTHING RETURNING *",
        platform=message.platform,
        chat=message.chat,
        user=message.user,
        user_name=message.user_name,
        role=role,
        kind=message.kind,
        text=message.text,
        platform_message_id=message.message_id,
        reply_to=message.reply_to,
        duration_s=attachment.duration_s if attachment else None,
        is_group=message.is_group,
        is_addressed=message.is_addressed,
        is_urgent=message.is_stop_command,
        sent_at_s=message.sent_at_s,
        attachment=to_json(attachment) if attachment else None,
        route=placed.route,
        taker="program" if placed.taker == "program" else "june",
        answers=placed.answers,
        trace_context=new_trace_context(),
        now_s=sql.now_s,
    )
    if row is None:
        return None
    if placed.route == "answer" and placed.answers is not None:
        reserve(sql, placed.answers, row["id"])
    if placed.taker == "nobody":
        settle(sql, row["id"])
    return received(row)
