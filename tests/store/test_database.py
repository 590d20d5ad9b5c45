"""The open file: who may open it, what is refused, and callers that are cancelled."""

import asyncio
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from june.errors import StoreError
from june.store import Store, open_store
from june.store.schema import VERSION
from june.store.transactions import Transaction
from tests.stored import claim, inbound, place_by_default, receive


def publish(path: Path) -> None:
    path.chmod(0o644)


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


async def test_only_the_owner_can_read_the_file(path: Path) -> None:
    async with open_store(path):
        pass
    publish(path)  # like a copy from elsewhere may be
    async with open_store(path) as store:
        await receive(store, inbound(1))
        found = modes(path.parent)
    assert found == dict.fromkeys(["june.db", "june.db-wal", "june.db-shm", "june.db.lock"], 0o600)


async def test_a_second_june_on_the_same_file_is_refused(store: Store, path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    for same in (path, link):
        with pytest.raises(StoreError, match=r"^/.*june\.db is in use by another june$"):
            async with open_store(same):
                pass
    await receive(store, inbound(1))


async def test_a_file_can_be_opened_again_when_it_was_closed(path: Path) -> None:
    async with open_store(path) as store:
        await receive(store, inbound(1))
    async with open_store(path) as store:
        assert (await claim(store)).message == inbound(1, route="assistant")


async def test_reading_needs_a_file(path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        async with open_store(path, read_only=True):
            pass
    assert modes(path.parent) == {}


async def test_a_reader_reads_beside_the_writer_and_writes_nothing(store: Store, path: Path) -> None:
    await receive(store, inbound(1))
    async with open_store(path, read_only=True) as reader:
        assert len(await reader.history.entries()) == 1
        await receive(store, inbound(2))
        assert len(await reader.history.entries()) == 2
        with pytest.raises(StoreError, match="readonly"):
            await receive(reader, inbound(3))
        assert len(await reader.history.entries()) == 2


async def test_a_newer_file_is_refused(path: Path) -> None:
    async with open_store(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(StoreError, match="newer june"):
            async with open_store(path, read_only=read_only):
                pass


async def test_a_file_that_june_did_not_write_is_not_read(path: Path) -> None:
    sqlite3.connect(path).executescript("CREATE TABLE diary (entry)").connection.close()
    with pytest.raises(StoreError, match="older june"):
        async with open_store(path, read_only=True):
            pass


async def test_a_file_that_cannot_be_used_is_refused_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "letters.db").write_text("Dear diary, " * 1000)
    (tmp_path / "folder.db").mkdir()
    for name, reason in [
        ("letters.db", "not a database"),
        ("folder.db", "Is a directory"),
        ("missing/june.db", "No such file"),
    ]:
        with pytest.raises(StoreError, match=reason):
            async with open_store(tmp_path / name):
                pass
        with pytest.raises(StoreError):
            async with open_store(tmp_path / name, read_only=True):
                pass


async def test_an_impossible_id_is_a_store_error(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.history.entry(2**63)
    assert await store.history.entry(2**63 - 1) is None


async def test_a_damaged_character_neither_hides_the_message_nor_shows_it_in_an_error(path: Path) -> None:
    async with open_store(path) as store:
        await receive(store, inbound(1, text="secret"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE messages SET text = CAST(x'736563726574ff' AS TEXT)")
    connection.close()
    async with open_store(path) as store:
        assert (await claim(store)).message.text == "secret\ufffd"


async def test_every_commit_reaches_the_disk(store: Store) -> None:
    def settings(sql: Transaction) -> list[int | str]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [sql.one(f"PRAGMA {name}")[0] for name in names]

    assert await store.transact(settings) == ["wal", 2, 1]


async def test_a_failing_transaction_leaves_nothing_behind(store: Store) -> None:
    def fail(sql: Transaction) -> None:
        sql.execute("INSERT INTO cursors VALUES ('a', 'b')")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.transact(fail)
    assert await store.inbox.cursor("a") == ""


async def test_a_cancelled_caller_leaves_no_open_transaction(store: Store) -> None:
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()
    go_on = threading.Event()

    def write_slowly(sql: Transaction) -> None:
        sql.execute("INSERT INTO cursors VALUES ('a', '1')")
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(10)
        sql.execute("INSERT INTO cursors VALUES ('b', '2')")

    running = asyncio.create_task(store.transact(write_slowly))
    waiting = asyncio.create_task(store.inbox.receive([(inbound(1), "owner")], place=place_by_default))
    await begun.wait()
    running.cancel()
    waiting.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    go_on.set()
    for task in (running, waiting):
        with pytest.raises(asyncio.CancelledError):
            await task
    # The transaction that had begun was completed, the other one did not begin, and the store works on.
    assert (await store.inbox.cursor("a"), await store.inbox.cursor("b")) == ("1", "2")
    assert len(await receive(store, inbound(1))) == 1


async def test_cancelling_the_block_closes_the_file(path: Path) -> None:
    opened = asyncio.Event()

    async def hold() -> None:
        async with open_store(path):
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await opened.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # an impatient caller cancels again while the file is being closed
    with pytest.raises(asyncio.CancelledError):
        await task
    async with open_store(path) as store:
        await receive(store, inbound(1))
