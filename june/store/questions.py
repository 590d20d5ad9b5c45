"""How a received message relates to stored ones: to questions, and to what was forwarded.

The open question of a message is the one that it replies to in the chat app. If it is not a reply, it is the
one that its chat was asked last, since that stands right above it. Whether the message answers it is decided
in `june.conversation.deciding`. A recording becomes the answer once it has been transcribed; until then the
question is reserved for it.
"""

from june.messages import Inbound
from june.store.rows import Ties
from june.store.transactions import Transaction, Value

OPEN = (
    "is_question AND answered_by IS NULL AND chat = :chat AND user = :user"
    " AND status IN ('NEW', 'PROCESSING', 'SENT') AND delivered <> '[]' AND expires_at_s > :now_s"
)
"""A question without an answer that the person has seen."""


def find_ties(sql: Transaction, message: Inbound) -> Ties:
    """Return how a received message relates to stored ones."""
    replied = _replied_to(sql, message)
    return Ties(replied, _open_question(sql, message, replied), _forwarded(sql, replied))


def _replied_to(sql: Transaction, message: Inbound) -> int | None:
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


def _open_question(sql: Transaction, message: Inbound, replied: int | None) -> int | None:
    asked: dict[str, Value] = {"chat": message.chat, "user": message.user, "now_s": sql.now_s}
    if message.reply_to:
        row = sql.row(
            f"SELECT id FROM messages WHERE {OPEN} AND id IN"  # noqa: S608 - a constant
            " (:replied, (SELECT answers FROM messages WHERE id = :replied AND direction = 'out'))",
            replied=replied,
            **asked,
        )
    else:
        row = sql.row(f"SELECT id FROM messages WHERE {OPEN} ORDER BY id DESC LIMIT 1", **asked)  # noqa: S608
    return None if row is None else row["id"]


def _forwarded(sql: Transaction, replied: int | None) -> int | None:
    if replied is None:
        return None
    row = sql.row("SELECT forwards FROM messages WHERE id = :id", id=replied)
    return None if row is None else row["forwards"]


def reserve(sql: Transaction, question: int, answer: int) -> None:
    """Reserve a question for an answer: no other message can answer it, and it does not expire."""
    sql.execute("UPDATE messages SET answered_by = :answer WHERE id = :id", id=question, answer=answer)


def settle(sql: Transaction, answer: int) -> None:
    """Make a received message the answer to the question that is reserved for it."""
    sql.execute(
        "UPDATE messages SET status = 'RESPONDED', outcome = 'answer', claimed_by = '', lease_until_s = NULL,"
        " updated_at_s = :now_s WHERE id = :id",
        id=answer,
        now_s=sql.now_s,
    )
    # A question that is still being sent becomes RESPONDED when all of it is sent.
    sql.execute(
        "UPDATE messages SET status = 'RESPONDED', updated_at_s = :now_s"
        " WHERE id = (SELECT answers FROM messages WHERE id = :id) AND answered_by = :id AND status = 'SENT'",
        id=answer,
        now_s=sql.now_s,
    )


def free(sql: Transaction, answer: int) -> None:
    """Let other messages answer the question that was reserved for this one, which is not an answer."""
    sql.execute(
        "UPDATE messages SET answered_by = NULL"
        " WHERE id = (SELECT answers FROM messages WHERE id = :id) AND answered_by = :id"
        " AND status <> 'RESPONDED'",
        id=answer,
    )
