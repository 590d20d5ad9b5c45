"""What is deleted because it is old, and what stays."""

import asyncio
import math
import sqlite3
import tempfile
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from june.messages import Outbound, Voice
from june.sections import StoreSettings
from june.store import Pruned, Store, open_store
from june.store.retention import keep_tidy
from june.store.transactions import Transaction
from tests.stored import ANNA, BERT, VOICE, Clock, claim, inbound, receive, reply, take

DAY_S = 86_400
NOW_S = 1_000 * DAY_S

MESSAGE = st.fixed_dictionaries(
    {
        "direction": st.sampled_from(["in", "in", "out"]),
        "chat": st.sampled_from([ANNA, BERT]),
        "status": st.sampled_from(["NEW", "PROCESSING", "DONE", "DONE", "DONE", "ERROR"]),
        "outcome": st.sampled_from(["answered", "answered", "command"]),
        "age_days": st.integers(0, 20),
        "refers_back": st.integers(0, 4),
        "has_voice": st.booleans(),
    }
)


def insert(sql: Transaction, messages: list[dict[str, Any]], forgotten: int) -> None:
    """Insert the messages as rows 1, 2, …; a sent one refers to the row `refers_back` before it."""
    for number, message in enumerate(messages, 1):
        is_in = message["direction"] == "in"
        target = number - message["refers_back"]
        is_reference = not is_in and message["refers_back"] and target > 0
        column = "answers" if is_reference and messages[target - 1]["direction"] == "in" else "edits"
        done = "RESPONDED" if is_in else "SENT"
        sql.execute(
            "INSERT INTO messages (direction, platform, chat, kind, text, status, claimed_by, attempts,"
            " outcome, answer, platform_message_id, created_at_s, updated_at_s, answers, edits)"
            " VALUES (:direction, 'telegram', :chat, 'text', :text, :status, :claimed_by, 1, :outcome,"
            " 'Blue.', :text, :at_s, :at_s, :answers, :edits)",
            direction=message["direction"],
            chat=message["chat"],
            text=str(number),
            status=done if message["status"] == "DONE" else message["status"],
            claimed_by="june" if message["status"] == "PROCESSING" else "",
            outcome=message["outcome"] if is_in and message["status"] == "DONE" else "",
            at_s=NOW_S - message["age_days"] * DAY_S,
            answers=target if is_reference and column == "answers" else None,
            edits=target if is_reference and column == "edits" else None,
        )
        if message["has_voice"] and not is_in:
            sql.execute("INSERT INTO voices VALUES (:id, x'4f', x'00')", id=number)
    sql.execute("INSERT INTO chats (chat, forgotten_up_to_id) VALUES (:chat, :id)", chat=BERT, id=forgotten)


@hypothesis_settings(max_examples=60, deadline=None)
@given(messages=st.lists(MESSAGE, max_size=25), forgotten=st.integers(0, 25), keep_turns=st.integers(0, 3))
def test_pruning_deletes_everything_that_is_old_and_done_and_nothing_that_is_needed(
    messages: list[dict[str, Any]], forgotten: int, keep_turns: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before, after, pruned, faults = asyncio.run(prune_all(Path(folder), messages, forgotten, keep_turns))
    assert faults == []
    assert pruned.messages == len(before) - len(after)
    assert all(after[key] == before[key] for key in after)  # nothing else changed

    def is_turn(row: sqlite3.Row) -> bool:
        said = row["direction"] == "in" and row["outcome"] == "answered"
        return said and not (row["chat"] == BERT and row["id"] <= forgotten)

    turns = {
        chat: [key for key in before if before[key]["chat"] == chat and is_turn(before[key])]
        for chat in (ANNA, BERT)
    }
    remembered = {key for keys in turns.values() for key in keys[len(keys) - min(keep_turns, len(keys)) :]}
    needed = set(remembered)
    for key, row in before.items():
        is_old = row["updated_at_s"] < NOW_S - 10 * DAY_S
        if not is_old or row["status"] in {"NEW", "PROCESSING"}:
            needed.add(key)
    for key in sorted(before, reverse=True):  # a needed message needs those that it refers to
        if key in needed:
            needed |= {before[key][column] for column in ("answers", "edits") if before[key][column]}
    assert set(after) == needed


async def prune_all(
    folder: Path, messages: list[dict[str, Any]], forgotten: int, keep_turns: int
) -> tuple[dict[int, sqlite3.Row], dict[int, sqlite3.Row], Pruned, list[str]]:
    """Prune a new file; return its rows before and after, what was deleted, and the faults of the file."""

    def rows(sql: Transaction) -> dict[int, sqlite3.Row]:
        return {row["id"]: row for row in sql.rows("SELECT * FROM entries ORDER BY id")}

    async with open_store(folder / "june.db", clock=lambda: NOW_S) as store:
        await store.transact(partial(insert, messages=messages, forgotten=forgotten))
        before = await store.transact(rows)
        pruned = await store.upkeep.prune(messages_age_s=10 * DAY_S, keep_turns=keep_turns)
        return before, await store.transact(rows), pruned, await store.upkeep.faults()


async def test_a_long_history_is_pruned_in_small_transactions_between_other_calls(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with open_store(tmp_path / "june.db", clock=clock) as store:
        await store.outbox.add([reply(str(number)) for number in range(2_000)])
        await store.transact(lambda sql: sql.execute("UPDATE messages SET status = 'SENT'"))
        clock.now_s += 100
        sizes = []
        pruning = asyncio.create_task(store.upkeep.prune(messages_age_s=50, keep_turns=0))
        while not pruning.done():
            sizes.append((await store.upkeep.contents()).messages)
        assert await pruning == Pruned(messages=2_000, voices=0, chats=frozenset({ANNA}))
    steps = [one - other for one, other in pairwise(sizes)]
    assert len({size for size in sizes if 0 < size < 2_000}) > 5
    assert max(steps) <= 400


async def test_retention_begins_at_once_and_keeps_what_the_settings_keep(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "june.db", clock=clock) as store:
        for number in range(4):
            await receive(store, inbound(number, text=f"question {number}"))
            await store.inbox.finish((await claim(store)).id, [], outcome="answered", answer="Blue.")
        voice = Outbound(ANNA, "voice", "spoken", Voice(b"OggS", 1, b""))
        await store.outbox.add([voice])
        await store.transact(
            lambda sql: sql.execute("UPDATE messages SET status = 'SENT' WHERE direction = 'out'")
        )
        clock.now_s += 8 * DAY_S
        for settings, texts, voices in (
            (StoreSettings(keep_audio_days=9), 5, 1),
            (StoreSettings(keep_audio_days=7), 5, 0),
            (StoreSettings(keep_messages_days=9), 5, 0),
            (StoreSettings(keep_messages_days=7), 2, 0),
        ):
            forgotten = asyncio.get_running_loop().create_future()

            async def forget(*what: object, told: asyncio.Future[object] = forgotten) -> None:
                told.set_result(what)

            tidying = asyncio.create_task(keep_tidy(store.upkeep, settings, keep_turns=2, forget=forget))
            found = await reaches(store, (texts, voices))
            age_s = settings.keep_messages_days * DAY_S or math.inf
            assert await forgotten == (age_s, {ANNA} if texts == 2 else set())
            assert not tidying.done()  # it waits until tomorrow
            tidying.cancel()
            assert found == (texts, voices)
        assert [message.content for message in await store.conversations.messages(ANNA, 4)][::2] == [
            "question 2",
            "question 3",
        ]


async def reaches(store: Store, expected: tuple[int, int]) -> tuple[int, int]:
    """Wait until the numbers of messages and voices are as expected; return what they are after 200 looks."""
    found = (-1, -1)
    for _ in range(200):
        contents = await store.upkeep.contents()
        found = (contents.messages, contents.voices)
        if found == expected:
            break
    return found


async def test_old_recordings_are_deleted_and_their_text_stays(store: Store, clock: Clock) -> None:
    spoken = Outbound(ANNA, "voice", "spoken", VOICE)
    sent, given_up, recent, unsent = await store.outbox.add([spoken] * 4)
    await take(store)
    await store.outbox.mark_sent([sent])
    await take(store)
    await store.outbox.give_up([given_up], error="403")
    clock.now_s += 100
    await take(store)
    await store.outbox.mark_sent([recent])
    assert await store.upkeep.prune(audio_age_s=0, keep_turns=0) == Pruned(messages=0, voices=2)
    kept = {entry.id: entry.has_audio for entry in await store.history.entries()}
    assert kept == {sent: False, given_up: False, recent: True, unsent: True}
    due = await store.outbox.message(sent)
    assert due is not None
    assert due.message == replace(spoken, voice=None)
    (waiting,) = await take(store)
    assert waiting.message == spoken
