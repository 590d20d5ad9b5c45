"""Conversations: what was said in a chat, and what the chat has set for itself."""

import math

from june.messages import ChatMessage, ChatPreferences
from june.store.database import Part, transaction
from june.store.transactions import Transaction


class Conversations(Part):
    """What was said in each chat since it was told to forget, and the chat's preferences."""

    @transaction
    def messages(self, sql: Transaction, chat: str, limit: int) -> tuple[ChatMessage, ...]:
        """Return what was said in a chat since `forget`, oldest first: at most the last `limit` // 2 turns.

        A turn is a question and its answer. When there are more turns, the beginning moves forward by half
        of that number at a time. Between two moves, every prompt begins like the one before it, and the
        model has evaluated that beginning already.
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
        """Begin the chat's conversation anew; messages that are NEW still belong to it."""
        sql.execute(
            "INSERT INTO chats (chat, forgotten_up_to_id)"
            " SELECT :chat, coalesce(max(id), 0) FROM messages"
            " WHERE chat = :chat AND direction = 'in' AND status <> 'NEW'"
            " ON CONFLICT (chat) DO UPDATE SET forgotten_up_to_id = excluded.forgotten_up_to_id",
            chat=chat,
        )

    @transaction
    def preferences(self, sql: Transaction, chat: str) -> ChatPreferences:
        """Return what the chat has set for itself."""
        row = sql.row("SELECT mode, language FROM chats WHERE chat = :chat", chat=chat)
        return ChatPreferences() if row is None else ChatPreferences(**row)

    @transaction
    def set_preferences(self, sql: Transaction, chat: str, preferences: ChatPreferences) -> None:
        """Store what the chat sets for itself."""
        sql.execute(
            "INSERT INTO chats (chat, mode, language) VALUES (:chat, :mode, :language)"
            " ON CONFLICT (chat) DO UPDATE SET mode = excluded.mode, language = excluded.language",
            chat=chat,
            mode=preferences.mode,
            language=preferences.language,
        )
