"""Backups: one that is killed, and some that are made while june works."""

import asyncio
import random
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from june.messages import Outbound, Voice
from june.sections import PROJECT_ROOT
from june.store import open_store
from tests.program import running, write_settings
from tests.stored import BERT
from tests.telegram_server import ALICE, TelegramServer


async def fill(path: Path, messages: int, size: int) -> None:
    """Store this many sent recordings, each of `size` random bytes."""
    moment = random.Random(5)  # noqa: S311 - no secret
    async with open_store(path) as store:
        await store.outbox.add(
            [
                Outbound(BERT, "voice", "spoken", Voice(moment.randbytes(size), 1, b""))
                for _ in range(messages)
            ]
        )
        await store.transact(lambda sql: sql.execute("UPDATE messages SET status = 'SENT'"))


async def data(settings: Path, *arguments: str | Path) -> asyncio.subprocess.Process:
    """Start `june data …`."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "june", "data", *map(str, arguments), "--settings", str(settings)),
        cwd=PROJECT_ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def done(process: asyncio.subprocess.Process) -> str:
    """Wait for a command that must succeed, and return what it printed."""
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_a_killed_backup_leaves_no_partial_file_under_its_name(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, store={"path": "june.db"})
    await fill(tmp_path / "june.db", 150, 100_000)
    copy = tmp_path / "copy.db"
    for least_bytes in (0, 8_000_000):
        process = await data(settings, "backup", copy)
        while not any(half.stat().st_size >= least_bytes for half in halves(copy)):
            assert process.returncode is None
            await asyncio.sleep(0)
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        assert not copy.exists()
        for half in halves(copy):
            half.unlink()
    await done(await data(settings, "backup", copy))
    assert "150 recordings" in await done(await data(settings, "verify", copy))


def halves(copy: Path) -> list[Path]:
    """Return the unfinished copies."""
    return list(copy.parent.glob(f"{copy.name}.*.partial"))


def rows(path: Path, table: str = "messages") -> dict[Any, dict[str, Any]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()  # noqa: S608
    return {row[0]: dict(row) for row in found}


async def test_a_backup_under_load_shows_one_moment_and_is_restored_unchanged(tmp_path: Path) -> None:
    people = [ALICE + number for number in range(10)]
    path = tmp_path / "june.db"
    await fill(path, 100, 50_000)
    async with TelegramServer() as server:
        settings = write_settings(
            tmp_path,
            telegram={"token": server.token, "api_base": server.base_url},
            access={"owners": [f"telegram:{person}" for person in people]},
            store={"path": "june.db"},
            delivery={"group_window_s": 0},
        )
        copies = [tmp_path / f"copy-{number}.db" for number in range(2)]
        async with running(settings) as june:
            await june.logged("june.started")
            pushing = asyncio.create_task(keep_asking(server, people))
            for copy in copies:
                answered = len(server.sent("sendMessage"))
                await done(await data(settings, "backup", copy))
                assert len(server.sent("sendMessage")) > answered + 5  # june went on answering meanwhile
            pushing.cancel()
            await asyncio.wait([pushing])
            assert await june.terminate() == 0
        live = rows(path)
        for copy in copies:
            assert_is_of_one_moment(rows(copy), live)
        assert len(rows(copies[0])) < len(rows(copies[1])) < len(live)
        assert rows(copies[1], "voices") == rows(path, "voices")

        await done(await data(settings, "restore", copies[1]))
        for table in ("messages", "voices", "cursors", "chats", "people", "sqlite_sequence"):
            assert rows(path, table) == rows(copies[1], table)
        async with running(settings) as june:
            await june.logged("june.started")
            asked_last = server.push("/help", user=ALICE)
            await server.wait_for(lambda call: call.ok and call.reply_to == asked_last, timeout_s=60)
            assert await june.terminate() == 0
        assert "verified" in await done(await data(settings, "verify"))


async def keep_asking(server: TelegramServer, people: list[int]) -> None:
    """Keep june busy with commands, which need no model; some of them always wait."""
    for number in range(100_000):
        server.push("/help", user=people[number % len(people)])
        await server.wait_for(
            lambda call: call.ok and call.method == "sendMessage", count=max(number - 20, 1)
        )


def assert_is_of_one_moment(copy: dict[int, dict[str, Any]], live: dict[int, dict[str, Any]]) -> None:
    """Assert that the copy has the first rows without a gap, and those unchanged since as they are now."""
    assert list(copy) == list(live)[: len(copy)]
    moment_s = max(row["updated_at_s"] for row in copy.values())
    for key, row in live.items():
        if row["updated_at_s"] < moment_s:
            assert copy[key] == row
    same = ("direction", "chat", "user", "kind", "text", "platform_message_id", "created_at_s", "answers")
    assert all(copy[key][column] == live[key][column] for key in copy for column in same)
