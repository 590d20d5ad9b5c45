"""Upkeep: recover after a crash, check the file, delete what is old, export what is stored of one person.

Messages are deleted in small transactions, the newest first, because a message that refers to another is
newer than it. `contents`, `faults`, `back_up` and `put_in_place_of` also work with the file of an older june.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from june.messages import Outbound
from june.store.database import Part, transaction
from june.store.files import damage
from june.store.outbox import add_outbound
from june.store.questions import free
from june.store.rows import Received, received
from june.store.transactions import Row, Transaction

BATCH = 200
"""Rows that one transaction looks at. It takes some milliseconds; other calls run between two of them."""

JSON_COLUMNS = {"attachment", "delivered", "other_users", "timings_s"}

IMPOSSIBLE = {
    "have an unknown status": """
        SELECT count(*) FROM messages
        WHERE status NOT IN ('NEW', 'PROCESSING', 'RESPONDED', 'FORWARDED', 'SENT', 'ERROR', 'TIMEOUT')
            OR status = (CASE direction WHEN 'in' THEN 'SENT' ELSE 'FORWARDED' END)
    """,
    "are PROCESSING, and nobody works on them": """
        SELECT count(*) FROM messages WHERE status = 'PROCESSING' AND (claimed_by = '' OR attempts < 1)
    """,
    "refer to a later message": """
        SELECT count(*) FROM messages WHERE answers >= id OR edits >= id
    """,
    "replace a message that june did not send": """
        SELECT count(*) FROM messages AS new JOIN messages AS old ON old.id = new.edits
        WHERE old.direction = 'in'
    """,
    "have a column that is not JSON": """
        SELECT count(*) FROM messages
        WHERE NOT json_valid(delivered) OR NOT json_valid(coalesce(attachment, '{}'))
    """,
}
"""What must not be true of any message, and the query that counts the messages of which it is true."""

# Which messages of a page were done before a time, except the last turns, which the model is still shown.
PAGE = """
    SELECT
        id, chat,
        status IN ('RESPONDED', 'SENT', 'ERROR', 'TIMEOUT') AND updated_at_s < :before_s
        AND NOT (is_question AND status = 'SENT') AND NOT (
            direction = 'in' AND outcome = 'answered'
            AND id > coalesce((SELECT forgotten_up_to_id FROM chats WHERE chats.chat = page.chat), 0)
            AND :keep_turns > (
                SELECT count(*) FROM (
                    SELECT 1 FROM messages AS later
                    WHERE later.direction = 'in' AND later.outcome = 'answered'
                        AND later.chat = page.chat AND later.id > page.id
                    LIMIT :keep_turns
                )
            )
        ) AS is_removable
    FROM messages AS page WHERE id < :below_id ORDER BY id DESC LIMIT :limit
"""

# Messages of a chat and its topics, messages that a person sent anywhere, and the answers to all these.
MESSAGES_OF = """
    WITH own AS (
        SELECT id FROM messages
        WHERE chat = :name OR substr(chat, 1, length(:name) + 1) = :name || '/'
            OR (direction = 'in' AND user = :name)
    )
    SELECT * FROM entries WHERE id IN own OR answers IN own ORDER BY id
"""
CHATS_OF = """
    SELECT * FROM chats WHERE chat = :name OR substr(chat, 1, length(:name) + 1) = :name || '/' ORDER BY chat
"""
PEOPLE_OF = """
    SELECT * FROM people WHERE user = :name OR user IN (
        SELECT user FROM messages WHERE chat = :name AND direction = 'in' AND NOT is_group
    ) ORDER BY user
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """How much is in a file."""

    schema: int
    messages: int
    voices: int
    people: int
    chats: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """How much was deleted."""

    messages: int
    voices: int
    chats: frozenset[str] = frozenset()
    """The chats that lost a message."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Everything that is stored of a chat, or of a person in all chats; rows by column name."""

    messages: tuple[dict[str, Any], ...]
    chats: tuple[dict[str, Any], ...]
    """What the chats have set for themselves."""
    people: tuple[dict[str, Any], ...]
    """The people who were let in or shut out."""


class Upkeep(Part):
    """What concerns the file as a whole."""

    @transaction
    def contents(self, sql: Transaction) -> Contents:
        """Return how much is in the file."""
        row = sql.one(
            "SELECT (SELECT user_version FROM pragma_user_version) AS schema,"
            " (SELECT count(*) FROM messages) AS messages, (SELECT count(*) FROM voices) AS voices,"
            " (SELECT count(*) FROM people) AS people, (SELECT count(*) FROM chats) AS chats"
        )
        return Contents(**row)

    @transaction
    def faults(self, sql: Transaction) -> list[str]:
        """Return what is wrong with the file, one sentence each; an empty list if it is sound."""
        if fault := damage(sql):
            return [f"{self.database.path}: {fault}."]
        counts = {what: sql.one(query)[0] for what, query in IMPOSSIBLE.items()}
        return [
            f"{self.database.path}: {count} of its messages {what}."
            for what, count in counts.items()
            if count
        ]

    @transaction
    def recover(self, sql: Transaction, *, max_attempts: int, explain: Callable[[Received], Outbound]) -> int:
        """Take up the work that a crash interrupted, and return how many received messages it interrupted.

        Call it once, at start. The messages that june was working on become NEW again whatever their lease
        says: the lock on the file proves that nobody works on them. Those that were tried `max_attempts`
        times become ERROR, and what `explain` returns is sent to the chat. Messages that were being sent
        become NEW again, too.
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

    async def prune(
        self, *, messages_age_s: float = math.inf, audio_age_s: float = math.inf, keep_turns: int
    ) -> Pruned:
        """Delete what is old, and return how much that was; others may use the file meanwhile.

        Args:
            messages_age_s: delete messages that have been done for longer than this, with their recordings.
                Messages that wait or are in work are never deleted, nor are those that they refer to.
            audio_age_s: delete the recordings of messages that have been done for longer than this; their
                text and length stay.
            keep_turns: this many last turns of each conversation stay, however old they are, unless the
                chat has forgotten them.

        Raises:
            StoreError: the file could not be written; what was deleted before that stays deleted.
            StageError: too many calls wait already (code "busy").
        """
        messages, voices, chats = 0, 0, frozenset[str]()
        while removed := await self._remove_voices(audio_age_s):
            voices += removed
        below_id: int | None = None if messages_age_s == math.inf else 2**63 - 1
        while below_id is not None:
            below_id, batch = await self._remove_messages(below_id, messages_age_s, keep_turns)
            messages, voices = messages + batch.messages, voices + batch.voices
            chats |= batch.chats
        return Pruned(messages, voices, chats)

    @transaction
    def kept_of(self, sql: Transaction, name: str) -> Kept:
        """Return everything that is stored of a chat, or of a person, such as "telegram:123456789".

        These are the messages of the chat (and its topics), those that the person sent elsewhere, and the
        answers to them; what the chat has set; and whether the person, or whoever wrote in the private chat,
        was let in or shut out.
        """
        messages, chats, people = (
            tuple(map(_readable, sql.rows(query, name=name))) for query in (MESSAGES_OF, CHATS_OF, PEOPLE_OF)
        )
        return Kept(messages, chats, people)

    @transaction
    def _remove_voices(self, sql: Transaction, age_s: float) -> int:
        return sql.execute(
            "DELETE FROM voices WHERE message_id IN (SELECT id FROM voices JOIN messages ON id = message_id"
            " WHERE status IN ('SENT', 'RESPONDED', 'TIMEOUT', 'ERROR') AND updated_at_s < :before_s"
            " LIMIT :limit)",
            before_s=sql.now_s - age_s,
            limit=BATCH,
        ).rowcount

    @transaction
    def _remove_messages(
        self, sql: Transaction, below_id: int, age_s: float, keep_turns: int
    ) -> tuple[int | None, Pruned]:
        """Delete what is old in one batch; return where the next begins (None: nowhere), and what it was."""
        page = sql.rows(
            PAGE, below_id=below_id, before_s=sql.now_s - age_s, keep_turns=keep_turns, limit=BATCH
        )
        messages, voices, chats = 0, 0, set()
        for message_id, chat in ((row["id"], row["chat"]) for row in page if row["is_removable"]):
            if sql.row(
                "SELECT 1 WHERE EXISTS (SELECT 1 FROM messages WHERE answers = :id)"
                " OR EXISTS (SELECT 1 FROM messages WHERE edits = :id)",
                id=message_id,
            ):
                continue
            voices += sql.execute("DELETE FROM voices WHERE message_id = :id", id=message_id).rowcount
            messages += sql.execute("DELETE FROM messages WHERE id = :id", id=message_id).rowcount
            chats.add(chat)
        return page[-1]["id"] if page else None, Pruned(messages, voices, frozenset(chats))


def _readable(row: Row) -> dict[str, Any]:
    """Return a row by column name, with its JSON columns decoded."""
    values = dict(row)
    for column in JSON_COLUMNS & values.keys():
        if values[column] is not None:
            values[column] = json.loads(values[column])
    return values
