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

    @transaction
    def move(self, sql: Transaction, old: str, new: str) -> bool:
        """Keep under a chat's new name all that is kept of it and of its topics, whatever its status.

        Return whether anything was kept under the old name.

        Messages get new ids in the new chat. So that a new message is not mistaken for an old one, id 7 of
        the chat "telegram:-5" becomes "telegram:-5 7", which is not an id of any app. Where both chats have
        set something, the new chat's setting stays. Call it again for messages that still came under the
        old name.
        """
        moved = "chat = :old OR substr(chat, 1, length(:old) + 1) = :old || '/'"
        name = ":new || substr(chat, length(:old) + 1)"
        messages = sql.execute(
            f"UPDATE messages SET chat = {name}, platform_message_id = {_left('platform_message_id')},"  # noqa: S608
            f" reply_to = {_left('reply_to')}, preview_id = {_left('preview_id')},"
            " delivered = (SELECT json_group_array("
            " json_set(value, '$.message_id', messages.chat || ' ' || json_extract(value, '$.message_id')))"
            f" FROM json_each(messages.delivered)) WHERE {moved}",
            old=old,
            new=new,
        ).rowcount
        sql.execute(
            f"UPDATE sent_as SET chat = {name}, platform_message_id = {_left('platform_message_id')}"  # noqa: S608
            f" WHERE {moved}",
            old=old,
            new=new,
        )
        sql.execute(
            "INSERT INTO chats (chat, mode, language, forgotten_up_to_id)"  # noqa: S608
            f" SELECT {name}, mode, language, forgotten_up_to_id FROM chats WHERE {moved}"
            " ON CONFLICT (chat) DO UPDATE SET mode = coalesce(nullif(mode, ''), excluded.mode),"
            " language = coalesce(nullif(language, ''), excluded.language),"
            " forgotten_up_to_id = max(forgotten_up_to_id, excluded.forgotten_up_to_id)",
            old=old,
            new=new,
        )
        preferences = sql.execute(f"DELETE FROM chats WHERE {moved}", old=old).rowcount  # noqa: S608
        return messages + preferences > 0


def _left(column: str) -> str:
    """Return SQL for a platform's id that its chat has left behind."""
    return f"CASE {column} WHEN '' THEN '' ELSE chat || ' ' || {column} END"
