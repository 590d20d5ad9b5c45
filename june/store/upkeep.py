"""Upkeep: whether the file is sound, what is too old to be kept, and all that is kept of one person.

What was done with is deleted in small transactions, newest first, since what refers to a message is newer
than it. `contents`, `faults`, `back_up` and `put_in_place_of` work with the file of an older june as well.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from june.errors import JuneError
from june.sections import StoreSettings
from june.store.database import Database, Row, Transaction, damage, transaction
from june.telemetry import log

DAY_S = 86_400.0
RETRY_S = 600.0
"""Pause after a failure to delete what is too old."""

BATCH = 200
"""Rows that one transaction looks at; it takes some milliseconds, and others have their turn in between."""

JSON_COLUMNS = {"attachment", "delivered", "other_users", "timings_s"}

IMPOSSIBLE = {
    "have a status that there is not": """
        SELECT count(*) FROM messages
        WHERE status NOT IN ('NEW', 'PROCESSING', 'RESPONDED', 'FORWARDED', 'SENT', 'ERROR', 'TIMEOUT')
            OR status = (CASE direction WHEN 'in' THEN 'SENT' ELSE 'FORWARDED' END)
    """,
    "are in work, and nobody works on them": """
        SELECT count(*) FROM messages WHERE status = 'PROCESSING' AND (claimed_by = '' OR attempts < 1)
    """,
    "refer to what came after them": """
        SELECT count(*) FROM messages WHERE answers >= id OR edits >= id
    """,
    "replace what june never sent": """
        SELECT count(*) FROM messages AS new JOIN messages AS old ON old.id = new.edits
        WHERE old.direction = 'in'
    """,
    "have a column that is no JSON": """
        SELECT count(*) FROM messages
        WHERE NOT json_valid(delivered) OR NOT json_valid(coalesce(attachment, '{}'))
    """,
}
"""What no message can be, and the query that counts those that are."""

# What of a page of messages is done since before a time, but for the last turns that a model is shown.
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

# Of a chat and its topics, or of what a person sent anywhere, and what answers it.
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
    """What is in a file."""

    schema: int
    messages: int
    voices: int
    people: int
    chats: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted."""

    messages: int
    voices: int
    chats: frozenset[str] = frozenset()
    """Those that lost a message."""


@dataclass(frozen=True, slots=True)
class Kept:
    """All that is kept of a chat, or of a person in all chats; rows as they are, by column."""

    messages: tuple[dict[str, Any], ...]
    chats: tuple[dict[str, Any], ...]
    """What chats have set for themselves."""
    people: tuple[dict[str, Any], ...]
    """Who was let in or shut out."""


class Upkeep(Database):
    """The file as a whole."""

    @transaction
    def contents(self, sql: Transaction) -> Contents:
        """How much is in the file."""
        row = sql.one(
            "SELECT (SELECT user_version FROM pragma_user_version) AS schema,"
            " (SELECT count(*) FROM messages) AS messages, (SELECT count(*) FROM voices) AS voices,"
            " (SELECT count(*) FROM people) AS people, (SELECT count(*) FROM chats) AS chats"
        )
        return Contents(**row)

    @transaction
    def faults(self, sql: Transaction) -> list[str]:
        """What is wrong with the file, one sentence each; empty: nothing."""
        if fault := damage(sql):
            return [f"{self._path}: {fault}."]
        counts = {what: sql.one(query)[0] for what, query in IMPOSSIBLE.items()}
        return [f"{self._path}: {count} of its messages {what}." for what, count in counts.items() if count]

    async def prune(
        self, *, messages_age_s: float = math.inf, audio_age_s: float = math.inf, keep_turns: int
    ) -> Pruned:
        """How much was deleted; others may use the file meanwhile.

        Args:
            messages_age_s: messages that are done with for longer than this go, with their recordings; never
                what waits or is in work, nor what such a message refers to.
            audio_age_s: of messages that are done with for longer than this the recordings go; text and
                length stay.
            keep_turns: so many last turns of a conversation stay however old they are, unless the chat has
                forgotten them.

        Raises:
            StoreError: the file could not be written; what was deleted before that stays so.
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
        """All that is kept of a chat, or of a person, such as "telegram:123456789".

        That is the messages of the chat (and its topics) and those that the person sent elsewhere, with the
        answers to them; what the chat has set; the person's own admission, or that of whoever wrote in a
        chat of two.
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
        """Where the next batch begins (None: there is none), and what was deleted of this one."""
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


async def keep_tidy(
    store: Upkeep,
    settings: StoreSettings,
    *,
    keep_turns: int,
    forget: Callable[[float, frozenset[str]], Awaitable[None]],
) -> None:
    """Delete what is older than the settings say, now and once a day, until cancelled.

    Args:
        store: the file.
        settings: say how old that is.
        keep_turns: see `prune`.
        forget: called after that with the age of messages in seconds, and the chats that lost one: nothing is
            to be kept of them elsewhere.
    """
    age_s = settings.keep_messages_days * DAY_S or math.inf
    chats: frozenset[str] = frozenset()
    while True:
        try:
            pruned = await store.prune(
                messages_age_s=age_s,
                audio_age_s=settings.keep_audio_days * DAY_S,
                keep_turns=keep_turns,
            )
            chats |= pruned.chats
            await forget(age_s, chats)
            chats = frozenset()
        except JuneError as error:  # june can work on; should the file be gone, others end it
            log.error("store.prune_failed", detail=str(error))
            await asyncio.sleep(RETRY_S)
        else:
            log.info("store.pruned", messages=pruned.messages, voices=pruned.voices)
            await asyncio.sleep(DAY_S)


def _readable(row: Row) -> dict[str, Any]:
    """A row by column, with what is JSON in it as what it says."""
    values = dict(row)
    for column in JSON_COLUMNS & values.keys():
        if values[column] is not None:
            values[column] = json.loads(values[column])
    return values
