"""The inbox: what was received, once each, until it is answered; and what was said, for the next answer."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from june.messages import ChatMessage, Inbound, Outbound, Transcript, Usage
from june.store.database import Database, Transaction, transaction
from june.store.outbox import add_outbound
from june.store.questions import forwarded, free, open_question, replied_to, reserve, settle
from june.store.rows import Received, Role, received, to_json
from june.telemetry import new_trace_context


class Inbox(Database):
    """What was received."""

    @transaction
    def receive(
        self,
        sql: Transaction,
        batch: Sequence[tuple[Inbound, Role]],
        *,
        cursor: tuple[str, str] | None = None,
        replies: Sequence[Outbound] = (),
        confirm: Callable[[Received], Outbound | None] = lambda _: None,
    ) -> list[Received]:
        """The messages of the batch that were not known; they are now committed as NEW.

        The cursor (its name and value) and the replies, which go to the outbox, are part of the transaction;
        so is what `confirm` says of each message that was not known.
        """
        rows = [_add_inbound(sql, message, role) for message, role in batch]
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
        """The value that was committed last under this name; "" if none was."""
        row = sql.row("SELECT value FROM cursors WHERE name = :name", name=name)
        return "" if row is None else row["value"]

    @transaction
    def claim(self, sql: Transaction, *, exclude_chats: Collection[str], lease_s: float) -> Received | None:
        """The oldest NEW message that june takes up, now PROCESSING and with one more attempt; None: none is.

        Chats of which june has a message in work are passed over; the command /stop comes first.
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
        """Keep what was heard, so that another attempt need not listen again."""
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
        """Keep the platform's id of the message that shows the answer while it is written."""
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
        """Whether the message was PROCESSING without an answer; if so it has one, and the outbox the replies.

        Another attempt finds the answer and need not write it, nor send these replies, a second time.
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
        """Whether the message was PROCESSING; if so it has its status now, and the replies are in the outbox.

        The outcome "answered" puts the message and its answer into the conversation; `answer` may be left out
        if it was noted. `error` says why it failed, without content. `forget_text` drops the text, recording
        and transcript of a message that was not meant for june. `timings_s` are the seconds of each stage,
        `usage` the tokens of the answer, which are added to those of earlier attempts.
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
        """Make a message that is PROCESSING NEW again, as if it had never been claimed."""
        sql.execute(
            "UPDATE messages SET status = 'NEW', claimed_by = '', lease_until_s = NULL,"
            " attempts = attempts - 1, updated_at_s = :now_s"
            " WHERE id = :id AND direction = 'in' AND status = 'PROCESSING' AND claimed_by = 'june'",
            id=message_id,
            now_s=sql.now_s,
        )

    @transaction
    def recover(self, sql: Transaction, *, max_attempts: int, explain: Callable[[Received], Outbound]) -> int:
        """How many received messages june was interrupted over; to be called once, at start.

        They become NEW again whatever their lease: the lock on the file says that nobody works on them. Those
        that were tried `max_attempts` times become ERROR, and `explain` says so to the chat. What was being
        sent is NEW again too.
        """
        interrupted = sql.rows(
            "SELECT * FROM messages WHERE direction = 'in' AND status = 'PROCESSING' AND claimed_by = 'june'"
            " ORDER BY id"
        )
        for row in interrupted:
            is_spent = row["attempts"] >= max_attempts
            sql.execute(
                "UPDATE messages SET status = :status, outcome = :outcome, error = :error, claimed_by = '',"
                " lease_until_s = NULL, updated_at_s = :now_s WHERE id = :id",
                id=row["id"],
                status="ERROR" if is_spent else "NEW",
                outcome="failed" if is_spent else "",
                error="attempts_spent" if is_spent else "",
                now_s=sql.now_s,
            )
            if is_spent:
                free(sql, row["id"])
                add_outbound(sql, explain(received(row)), answers=row["id"])
        sql.execute(
            "UPDATE messages SET status = 'NEW', claimed_by = '', updated_at_s = :now_s"
            " WHERE direction = 'out' AND status = 'PROCESSING'",
            now_s=sql.now_s,
        )
        return len(interrupted)

    @transaction
    def retry_last(self, sql: Transaction, chat: str) -> bool:
        """Whether there was a message to answer anew: the chat's last one that is done and is no command.

        It is NEW now, as if it had just been received: without its answer, with all its attempts, and with
        a trace of its own.
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
    def conversation(self, sql: Transaction, chat: str, limit: int) -> tuple[ChatMessage, ...]:
        """What was said in the chat since `forget`, oldest first: at most the last `limit` // 2 turns.

        Once there are more, the first turn shown moves by half of that at a time: in between each answer's
        prompt begins as the one before, and the model has evaluated it already.
        """
        said = (
            "FROM messages WHERE direction = 'in' AND chat = :chat AND outcome = 'answered'"
            " AND id > coalesce((SELECT forgotten_up_to_id FROM chats WHERE chat = :chat), 0)"
        )
        count = sql.row(f"SELECT count(*) AS turns {said}", chat=chat)
        most, turns = limit // 2, 0 if count is None else count["turns"]
        step = max(most // 2, 1)
        skipped = max(math.ceil((turns - most) / step), 0) * step
        rows = sql.rows(
            "SELECT trim(text || char(10) || coalesce(transcript, ''), char(10)) AS question, answer"
            f" {said} ORDER BY id LIMIT -1 OFFSET :skipped",
            chat=chat,
            skipped=skipped,
        )
        return tuple(
            message
            for row in rows
            for message in (ChatMessage("user", row["question"]), ChatMessage("assistant", row["answer"]))
        )

    @transaction
    def forget(self, sql: Transaction, chat: str) -> None:
        """Begin the chat's conversation anew, with the messages that are NEW."""
        sql.execute(
            "INSERT INTO chats (chat, forgotten_up_to_id)"
            " SELECT :chat, coalesce(max(id), 0) FROM messages"
            " WHERE chat = :chat AND direction = 'in' AND status <> 'NEW'"
            " ON CONFLICT (chat) DO UPDATE SET forgotten_up_to_id = excluded.forgotten_up_to_id",
            chat=chat,
        )


def _reply(sql: Transaction, message_id: int, replies: Sequence[Outbound]) -> Literal[True]:
    for reply in replies:
        add_outbound(sql, reply, answers=message_id)
    return True


def _add_inbound(sql: Transaction, message: Inbound, role: Role) -> Received | None:
    """The message as it was stored; None: it was known."""
    attachment = message.attachment
    answers, route = replied_to(sql, message), message.route
    if (question := open_question(sql, message, answers)) is not None:
        answers, route = question, "answer"
    elif (original := forwarded(sql, answers, role)) is not None and message.kind != "command":
        answers, route = original, "return"
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
        route=route,
        taker="program" if route == "queue" and attachment is None else "june",
        answers=answers,
        trace_context=new_trace_context(),
        now_s=sql.now_s,
    )
    if row is None:
        return None
    if question is not None:
        reserve(sql, question, row["id"])
        if attachment is None:
            settle(sql, row["id"])
    return received(row)
