"""Which message received answers which question: the platform's reply to it, or the person's next message.

Of several open questions in a chat, a message that replies to none of them answers the one asked last: it
stands right above. A recording is the answer once it has been heard; until then its question is reserved.
"""

from june.messages import Inbound
from june.store.database import Transaction, Value
from june.store.rows import Role

OPEN = (
    "is_question AND answered_by IS NULL AND chat = :chat AND user = :user"
    " AND status IN ('NEW', 'PROCESSING', 'SENT') AND delivered <> '[]' AND expires_at_s > :now_s"
)
"""A question that its person has seen."""


def replied_to(sql: Transaction, message: Inbound) -> int | None:
    """The id of the message, in either direction, that one received replies to; None: none of ours."""
    if not message.reply_to:
        return None
    row = sql.row(
        "SELECT message_id AS id FROM sent_as WHERE chat = :chat AND platform_message_id = :reply_to"
        " UNION ALL SELECT id FROM messages"
        " WHERE direction = 'in' AND chat = :chat AND platform_message_id = :reply_to LIMIT 1",
        chat=message.chat,
        reply_to=message.reply_to,
    )
    return None if row is None else row["id"]


def open_question(sql: Transaction, message: Inbound, replied: int | None) -> int | None:
    """The id of the question that a message received answers; None: it answers none."""
    asked: dict[str, Value] = {"chat": message.chat, "user": message.user, "now_s": sql.now_s}
    if message.kind == "command":
        return None
    if message.reply_to:
        row = sql.row(
            f"SELECT id FROM messages WHERE {OPEN} AND id IN"  # noqa: S608 - a constant
            " (:replied, (SELECT answers FROM messages WHERE id = :replied AND direction = 'out'))",
            replied=replied,
            **asked,
        )
    elif message.may_answer and message.is_addressed:
        row = sql.row(f"SELECT id FROM messages WHERE {OPEN} ORDER BY id DESC LIMIT 1", **asked)  # noqa: S608
    else:
        row = None
    return None if row is None else row["id"]


def forwarded(sql: Transaction, replied: int | None, role: Role) -> int | None:
    """The id of the message that was passed on to the owner, who replies to it now; None: there is none."""
    if replied is None or role != "owner":
        return None
    row = sql.row("SELECT forwards FROM messages WHERE id = :id", id=replied)
    return None if row is None else row["forwards"]


def reserve(sql: Transaction, question: int, answer: int) -> None:
    """Let no other message answer the question, and let it not expire."""
    sql.execute("UPDATE messages SET answered_by = :answer WHERE id = :id", id=question, answer=answer)


def settle(sql: Transaction, answer: int) -> None:
    """Make a message received, which a question is reserved for, its answer."""
    sql.execute(
        "UPDATE messages SET status = 'RESPONDED', outcome = 'answer', claimed_by = '', lease_until_s = NULL,"
        " updated_at_s = :now_s WHERE id = :id",
        id=answer,
        now_s=sql.now_s,
    )
    # One that is not sent to its end yet becomes RESPONDED when it is.
    sql.execute(
        "UPDATE messages SET status = 'RESPONDED', updated_at_s = :now_s"
        " WHERE id = (SELECT answers FROM messages WHERE id = :id) AND answered_by = :id AND status = 'SENT'",
        id=answer,
        now_s=sql.now_s,
    )


def free(sql: Transaction, answer: int) -> None:
    """Let another message answer the question that was reserved for this one, which is no answer."""
    sql.execute(
        "UPDATE messages SET answered_by = NULL"
        " WHERE id = (SELECT answers FROM messages WHERE id = :id) AND answered_by = :id"
        " AND status <> 'RESPONDED'",
        id=answer,
    )
