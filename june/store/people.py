"""Who was let in or shut out besides the settings, what people spent, and what a chat has set."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from june.messages import ChatPreferences
from june.store.database import Database, Transaction, transaction

Access = Literal["allowed", "denied"]


@dataclass(frozen=True, slots=True)
class Person:
    """Someone whom an owner let in or shut out."""

    user: str
    """Such as "telegram:123456789"."""
    role: Access
    name: str
    added_by: str
    added_at_s: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What one person sent."""

    messages: int
    audio_s: float
    """Length of the recordings, in seconds."""
    tokens: int = 0
    """Of the prompts and of the answers."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one person sent of late."""

    user: str
    name: str
    """As the chat app gave it last."""
    today: Spent
    month: Spent


class People(Database):
    """People and chats."""

    @transaction
    def people(self, sql: Transaction) -> list[Person]:
        """Everyone who was let in or shut out, in the order in which it happened."""
        return [
            Person(**row)
            for row in sql.rows("SELECT user, role, name, added_by, added_at_s FROM people ORDER BY rowid")
        ]

    @transaction
    def person(self, sql: Transaction, user: str) -> Access | None:
        """Whether someone was let in or shut out; None: neither."""
        row = sql.row("SELECT role FROM people WHERE user = :user", user=user)
        return None if row is None else row["role"]

    @transaction
    def set_person(self, sql: Transaction, user: str, role: Access, *, name: str, added_by: str) -> None:
        """Let someone in or shut them out, whatever they were before."""
        _set_person(sql, user, role, name=name, added_by=added_by)

    @transaction
    def add_pairing_code(self, sql: Transaction, code: str, *, made_by: str, valid_s: float) -> None:
        """Accept a code once during the next `valid_s` seconds; only its hash is kept."""
        sql.execute("DELETE FROM pairing_codes WHERE expires_at_s <= :now_s", now_s=sql.now_s)
        sql.execute(
            "INSERT OR REPLACE INTO pairing_codes (code_sha256, expires_at_s, made_by)"
            " VALUES (:hash, :expires_at_s, :made_by)",
            hash=_hash(code),
            expires_at_s=sql.now_s + valid_s,
            made_by=made_by,
        )

    @transaction
    def redeem(self, sql: Transaction, code: str, user: str, name: str) -> bool:
        """Whether the code was good: it is spent now, and the person let in.

        Whoever was shut out stays so, and spends no code.
        """
        row = sql.row(
            "DELETE FROM pairing_codes WHERE code_sha256 = :hash AND expires_at_s > :now_s"
            " AND NOT EXISTS (SELECT 1 FROM people WHERE user = :user AND role = 'denied') RETURNING made_by",
            hash=_hash(code),
            now_s=sql.now_s,
            user=user,
        )
        if row is None:
            return False
        _set_person(sql, user, "allowed", name=name, added_by=row["made_by"])
        return True

    @transaction
    def spent(self, sql: Transaction, user: str, *, since_s: float) -> Spent:
        """What someone's messages since a time in seconds since 1970 come to."""
        row = sql.one(
            "SELECT count(*) AS messages, coalesce(sum(duration_s), 0.0) AS audio_s,"
            " coalesce(sum(prompt_tokens + completion_tokens), 0) AS tokens FROM messages"
            " WHERE direction = 'in' AND user = :user AND created_at_s >= :since_s",
            user=user,
            since_s=since_s,
        )
        return Spent(**row)

    @transaction
    def use(self, sql: Transaction, *, day_since_s: float, month_since_s: float) -> list[Use]:
        """What each person sent since two times (since 1970), the most diligent of the longer time first."""
        rows = sql.rows(
            "SELECT user, user_name, max(id), count(*) AS messages, total(duration_s) AS audio_s,"
            " sum(prompt_tokens + completion_tokens) AS tokens,"
            " coalesce(sum(prompt_tokens + completion_tokens) FILTER (WHERE created_at_s >= :day_since_s), 0)"
            " AS tokens_today,"
            " count(*) FILTER (WHERE created_at_s >= :day_since_s) AS messages_today,"
            " total(duration_s) FILTER (WHERE created_at_s >= :day_since_s) AS audio_today_s"
            " FROM messages WHERE direction = 'in' AND created_at_s >= :month_since_s"
            " GROUP BY user ORDER BY messages DESC, user",  # with max(id) the name is that row's
            day_since_s=day_since_s,
            month_since_s=month_since_s,
        )
        return [
            Use(
                row["user"],
                row["user_name"],
                today=Spent(row["messages_today"], row["audio_today_s"], row["tokens_today"]),
                month=Spent(row["messages"], row["audio_s"], row["tokens"]),
            )
            for row in rows
        ]

    @transaction
    def preferences(self, sql: Transaction, chat: str) -> ChatPreferences:
        """What the chat has set for itself."""
        row = sql.row("SELECT mode, language FROM chats WHERE chat = :chat", chat=chat)
        return ChatPreferences() if row is None else ChatPreferences(**row)

    @transaction
    def set_preferences(self, sql: Transaction, chat: str, preferences: ChatPreferences) -> None:
        """Keep what the chat sets for itself."""
        sql.execute(
            "INSERT INTO chats (chat, mode, language) VALUES (:chat, :mode, :language)"
            " ON CONFLICT (chat) DO UPDATE SET mode = excluded.mode, language = excluded.language",
            chat=chat,
            mode=preferences.mode,
            language=preferences.language,
        )


def _set_person(sql: Transaction, user: str, role: Access, *, name: str, added_by: str) -> None:
    sql.execute(
        "INSERT OR REPLACE INTO people (user, role, name, added_by, added_at_s)"
        " VALUES (:user, :role, :name, :added_by, :now_s)",
        user=user,
        role=role,
        name=name,
        added_by=added_by,
        now_s=sql.now_s,
    )


def _hash(code: str) -> bytes:
    return hashlib.sha256(code.encode("utf-8", "replace")).digest()
