"""A file of an older june is copied before it is converted."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from june.errors import StoreError
from june.store import open_store, schema
from june.store.schema import MIGRATIONS, VERSION
from tests.stored import inbound, receive


def add_migration(monkeypatch: pytest.MonkeyPatch, migration: str) -> None:
    """Let june know one more migration than it does."""
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, migration))
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


async def test_a_file_is_copied_before_it_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copy = tmp_path / "june.db", tmp_path / f"june.db.schema-{VERSION}.backup"
    async with open_store(path) as store:
        await receive(store, inbound(1))
    assert not copy.exists()  # a new file is not converted
    with monkeypatch.context() as context:
        add_migration(context, "ALTER TABLE messages ADD COLUMN mood TEXT")
        async with open_store(path) as store:
            assert [entry.text for entry in await store.history.entries()] == ["Hello"]
        assert version_of(path) == VERSION + 1
    assert (version_of(copy), oct(copy.stat().st_mode)[-3:]) == (VERSION, "600")
    with pytest.raises(StoreError, match="newer june"):
        async with open_store(path):
            pass
    async with open_store(copy, read_only=True) as store:
        assert await store.upkeep.faults() == []
        assert await store.put_in_place_of(path)
    async with open_store(path) as store:  # the older june can use it again
        assert [entry.text for entry in await store.history.entries()] == ["Hello"]


async def test_a_conversion_that_fails_leaves_the_file_and_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copy = tmp_path / "june.db", tmp_path / f"june.db.schema-{VERSION}.backup"
    async with open_store(path) as store:
        await receive(store, inbound(1))
    with monkeypatch.context() as context:
        add_migration(context, "ALTER TABLE messages ADD COLUMN mood TEXT; DROP TABLE gone")
        for _ in range(2):  # the second time replaces the copy
            with pytest.raises(StoreError, match="no such table: gone"):
                async with open_store(path):
                    pass
    assert version_of(path) == version_of(copy) == VERSION
    async with open_store(path) as store:
        assert await store.upkeep.faults() == []
        await receive(store, inbound(2))


async def test_a_backup_of_an_older_file_can_be_made_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copy = tmp_path / "june.db", tmp_path / "copy.db"
    async with open_store(path) as store:
        await receive(store, inbound(1))
    add_migration(monkeypatch, "ALTER TABLE messages ADD COLUMN mood TEXT")
    async with open_store(path, read_only=True, any_schema=True) as store:
        await store.back_up(copy)
        assert await store.upkeep.faults() == []
    async with open_store(copy, read_only=True, any_schema=True) as store:
        assert (await store.upkeep.contents()).schema == VERSION
        await store.put_in_place_of(path)
    async with open_store(path) as store:
        assert (await store.upkeep.contents()).schema == VERSION + 1
