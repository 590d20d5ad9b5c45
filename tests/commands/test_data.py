"""`python -m june data`, run as its owner runs it, on real files: sound, damaged and in use."""

import asyncio
import json
import os
import sqlite3
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from june.commands.data import app
from june.errors import JuneError
from june.llm.llama_cpp.state_files import StateFiles
from june.messages import ChatPreferences, Outbound, Voice
from june.sections import PROJECT_ROOT
from june.store import Store, open_store
from june.store.schema import VERSION
from tests.stored import ANNA, BERT, Clock, claim, inbound, receive, reply, take

VOICE = Voice(b"OggS and the rest", 1.5, b"\x01\x02")
GROUP = "telegram:-100"


@dataclass
class Cabinet:
    """A folder with a file of messages, and the commands on it."""

    folder: Path
    clock: Clock

    @property
    def path(self) -> Path:
        """The file of messages."""
        return self.folder / "june.db"

    def write(self, work: Callable[[Store], Coroutine[Any, Any, None]]) -> None:
        """Do something with the file open, as june has it."""

        async def run() -> None:
            async with open_store(self.path, clock=self.clock) as store:
                await work(store)

        asyncio.run(run())

    def run(self, *arguments: str | Path) -> Result:
        """Run a command and return its result."""
        settings = self.folder / "settings.toml"
        settings.write_text(
            '[store]\npath = "june.db"\n[chat]\nhistory_messages = 2\n[llm.llama_cpp]\nstate_dir = "states"\n'
        )
        return CliRunner().invoke(app, [*map(str, arguments), "--settings", str(settings)])

    def done(self, *arguments: str | Path) -> str:
        """Run a command, check that it succeeds, and return its output."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.exception or result.stdout
        return result.stdout

    def refused(self, *arguments: str | Path) -> str:
        """Run a command, check that it refuses, and return its sentence."""
        error = self.run(*arguments).exception
        assert isinstance(error, JuneError)
        return str(error)


@pytest.fixture
def cabinet(tmp_path: Path) -> Cabinet:
    made = Cabinet(tmp_path, Clock())
    made.write(a_day)
    return made


async def a_day(store: Store) -> None:
    """Fill the file with two conversations, a recording, settings and a guest."""
    for number, chat in enumerate((ANNA, BERT, ANNA)):
        await answer(store, number, chat)
    await store.outbox.add([Outbound(ANNA, "voice", "spoken", VOICE)])
    await store.conversations.set_preferences(ANNA, ChatPreferences(language="de"))
    await store.people.set_access(BERT, "allowed", name="Bert", added_by=ANNA)


async def answer(store: Store, number: int, chat: str = ANNA) -> None:
    """Receive a question and send its answer."""
    await receive(store, inbound(number, chat, f"question {number}"))
    claimed = await claim(store)
    await store.inbox.finish(
        claimed.id, [reply(f"answer {number}", chat)], outcome="answered", answer="Blue."
    )
    for due in await take(store):
        await store.outbox.mark_sent([due.id])


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return everything in a file, by table."""
    with closing(sqlite3.connect(path)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}  # noqa: S608


def names(folder: Path) -> set[str]:
    """Return a folder's contents except for the settings, the lock and the empty log that readers leave."""
    ours = {"settings.toml", "june.db.lock", "june.db-wal", "june.db-shm"}
    return {file.name for file in folder.iterdir()} - ours


# --- backup ---


def test_a_backup_is_one_verified_file_for_its_owner_with_all_rows(cabinet: Cabinet) -> None:
    copy = cabinet.folder / "copy.db"
    told = cabinet.done("backup", copy)
    assert "7 messages, 1 recording, 1 chat with settings, 1 person; verified." in told
    assert rows(copy) == rows(cabinet.path)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert names(cabinet.folder) == {"june.db", "copy.db"}


def test_a_backup_holds_what_only_the_log_holds_and_nothing_that_was_deleted(cabinet: Cabinet) -> None:
    copy = cabinet.folder / "copy.db"

    async def work(store: Store) -> None:
        await store.outbox.add([reply("in the log")])
        await store.transact(lambda sql: sql.execute("UPDATE messages SET text = 'x' WHERE id = 1"))
        result = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "june", "data", "backup", copy),
            env=os.environ | {"JUNE_STORE__PATH": str(cabinet.path)},
            cwd=PROJECT_ROOT,
            stdout=subprocess.DEVNULL,
        )
        assert await result.wait() == 0

    cabinet.write(work)
    assert rows(copy) == rows(cabinet.path)
    content = copy.read_bytes()
    assert b"in the log" in content
    assert b"question 0" not in content


def test_a_backup_replaces_a_file_only_by_force(cabinet: Cabinet) -> None:
    copy = cabinet.folder / "copy.db"
    copy.write_text("precious")
    assert cabinet.refused("backup", copy) == f"{copy} exists already; --force replaces it."
    assert copy.read_text() == "precious"
    cabinet.done("backup", copy, "--force")
    assert rows(copy) == rows(cabinet.path)


@pytest.mark.parametrize("name", ["june.db", "june.db-wal", "june.db-shm", "june.db.lock", "link.db"])
def test_no_backup_takes_the_place_of_junes_own_file(cabinet: Cabinet, name: str) -> None:
    (cabinet.folder / "link.db").symlink_to(cabinet.path)
    before = rows(cabinet.path)
    told = cabinet.refused("backup", cabinet.folder / name, "--force")
    assert told.endswith("is in use by june itself: a copy needs another name")
    assert rows(cabinet.path) == before


def test_a_backup_that_cannot_be_made_leaves_what_stood_there(cabinet: Cabinet) -> None:
    copy = cabinet.folder / "copy.db"
    copy.write_text("precious")
    damage_page(cabinet.path)
    told = cabinet.refused("backup", copy, "--force")
    assert told.startswith(f"{cabinet.path} was not copied to {copy}: ")
    assert copy.read_text() == "precious"
    assert names(cabinet.folder) == {"june.db", "copy.db"}
    told = cabinet.refused("backup", cabinet.folder / "none" / "copy.db")
    assert told.endswith("No such file or directory")


def test_what_a_killed_backup_left_is_cleared_away_after_a_day(cabinet: Cabinet) -> None:
    old, recent = (cabinet.folder / f"copy.db.{name}.partial" for name in ("old", "recent"))
    for file in (old, recent):
        file.write_text("half")
    os.utime(old, (0, 0))
    cabinet.done("backup", cabinet.folder / "copy.db")
    assert names(cabinet.folder) == {"june.db", "copy.db", recent.name}


# --- restore ---


def test_a_restored_file_has_the_rows_of_the_backup_and_what_it_replaced_is_kept(cabinet: Cabinet) -> None:
    copy = cabinet.folder / "copy.db"
    cabinet.done("backup", copy)
    cabinet.write(lambda store: answer(store, 9))
    replaced = rows(cabinet.path)
    told = cabinet.done("restore", copy)
    assert rows(cabinet.path) == rows(copy)
    kept = Path(told.rpartition(" as ")[2].strip().removesuffix("."))
    assert rows(kept) == replaced
    assert cabinet.done("verify").endswith("; verified.\n")
    assert stat.S_IMODE(cabinet.path.stat().st_mode) == 0o600
    assert names(cabinet.folder) == {"june.db", "copy.db", kept.name}
    cabinet.write(lambda store: answer(store, 10))


def test_a_file_is_restored_where_there_is_none(cabinet: Cabinet) -> None:
    copy = cabinet.folder / "copy.db"
    cabinet.done("backup", copy)
    cabinet.path.unlink()
    assert "kept" not in cabinet.done("restore", copy)
    assert rows(cabinet.path) == rows(copy)


def leave_a_log(cabinet: Cabinet) -> None:
    """Kill june with a committed message that is only in the log."""
    code = (
        "import asyncio, os, sys\nfrom pathlib import Path\nfrom june.store import open_store\n"
        "from tests.stored import reply\n"
        "async def main():\n"
        "    async with open_store(Path(sys.argv[1])) as store:\n"
        "        await store.outbox.add([reply('in the log')])\n"
        "        os._exit(9)\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", code, cabinet.path], check=False, cwd=PROJECT_ROOT)
    assert done.returncode == 9
    assert (cabinet.folder / "june.db-wal").stat().st_size > 0


def test_the_log_of_a_killed_june_stays_with_the_file_that_it_belongs_to(cabinet: Cabinet) -> None:
    copy = cabinet.folder / "copy.db"
    cabinet.done("backup", copy)
    leave_a_log(cabinet)
    kept = cabinet.done("restore", copy).rpartition(" as ")[2].strip().removesuffix(".")
    assert rows(cabinet.path) == rows(copy)
    assert "in the log" in str(rows(Path(kept)))
    assert "in the log" not in str(rows(copy))


def test_the_log_of_a_file_that_is_gone_is_not_taken_for_the_restored_ones(cabinet: Cabinet) -> None:
    copy = cabinet.folder / "copy.db"
    cabinet.done("backup", copy)
    leave_a_log(cabinet)
    cabinet.path.unlink()
    cabinet.done("restore", copy)
    assert rows(cabinet.path) == rows(copy)
    (kept,) = cabinet.folder.glob("june.db.replaced-*-wal")
    assert kept.stat().st_size > 0


def damage_page(path: Path) -> None:
    """Overwrite the first page of the messages, as a failing disk does."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scribble(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)


def sql(*statements: str) -> Callable[[Path], None]:
    """Something done to a file behind june's back."""

    def work(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return work


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (damage_page, ""),
        (cut, ""),
        (scribble, "file is not a database"),
        (empty, f"its schema is 0, and june knows 1 to {VERSION}"),
        (sql(f"PRAGMA user_version = {VERSION + 1}"), "was written by a newer june"),
        (sql("DROP TABLE voices"), "it is not a file of june's: it has no voices"),
        (sql("ALTER TABLE chats DROP COLUMN mode"), "it has no chats.mode"),
        (sql("DELETE FROM messages WHERE id = 1"), "its table messages refers to what is not in messages"),
        (sql("UPDATE messages SET status = 'DONE' WHERE id = 1"), "1 of its messages have an unknown status"),
    ],
)
def test_a_damaged_backup_is_refused_and_nothing_is_replaced(
    cabinet: Cabinet, harm: Callable[[Path], None], sentence: str
) -> None:
    copy = cabinet.folder / "copy.db"
    cabinet.done("backup", copy)
    cabinet.write(lambda store: answer(store, 9))
    before = rows(cabinet.path)
    harm(copy)
    assert sentence in cabinet.refused("restore", copy)
    assert rows(cabinet.path) == before
    assert names(cabinet.folder) == {"june.db", "copy.db"}


def test_nothing_is_restored_or_pruned_while_june_runs(cabinet: Cabinet) -> None:
    copy = cabinet.folder / "copy.db"
    cabinet.done("backup", copy)
    before = rows(cabinet.path)

    async def work(_: Store) -> None:
        for arguments in (("restore", copy), ("prune", "--older-than", "1s")):
            told = await asyncio.to_thread(cabinet.refused, *arguments)
            assert told == f"{cabinet.path} is in use by another june"

    cabinet.write(work)
    assert rows(cabinet.path) == before


def test_a_file_does_not_replace_itself(cabinet: Cabinet) -> None:
    assert cabinet.refused("restore", cabinet.path) == f"{cabinet.path} cannot replace itself"


# --- verify ---


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "UPDATE messages SET status = 'SENT' WHERE id = 1",
            "1 of its messages have an unknown status.",
        ),
        (
            "UPDATE messages SET status = 'PROCESSING'",
            "7 of its messages are PROCESSING, and nobody works on them.",
        ),
        ("UPDATE messages SET answers = 7 WHERE id = 1", "1 of its messages refer to a later message."),
        (
            "UPDATE messages SET edits = 1 WHERE id = 2",
            "1 of its messages replace a message that june did not send.",
        ),
        (
            "UPDATE messages SET delivered = '[' WHERE id = 2",
            "1 of its messages have a column that is not JSON.",
        ),
    ],
)
def test_verify_says_what_cannot_be(cabinet: Cabinet, statement: str, sentence: str) -> None:
    sql(statement)(cabinet.path)
    result = cabinet.run("verify")
    assert (result.exit_code, result.stdout) == (1, f"{cabinet.path}: {sentence}\n")


def test_verify_reads_a_backup_too_and_says_what_is_damaged(cabinet: Cabinet) -> None:
    copy = cabinet.folder / "copy.db"
    cabinet.done("backup", copy)
    assert cabinet.done("verify", copy).startswith(f"{copy}: 0.1 MB, schema {VERSION}, 7 messages")
    damage_page(copy)
    result = cabinet.run("verify", copy)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    assert cabinet.run("verify", cabinet.folder / "none.db").exit_code == 1


# --- prune ---


def test_prune_deletes_what_is_old_and_done_and_makes_the_file_smaller(cabinet: Cabinet) -> None:
    async def fill(store: Store) -> None:
        for number in range(10, 40):
            await receive(store, inbound(number, text="old secret " * 500))
            await store.inbox.finish((await claim(store)).id, [], outcome="answered", answer="Blue.")
        cabinet.clock.now_s = 10**10  # so that it is new whatever the real time
        await answer(store, 50, BERT)

    cabinet.write(fill)
    size = cabinet.path.stat().st_size
    told = cabinet.done("prune", "--older-than", "90d")
    # Of Anna's conversation the last turn stays, and the recording, which was not sent; of Bert's the new.
    assert told.startswith("35 messages and 0 recordings deleted; ")
    texts = [row[8] for row in rows(cabinet.path)["messages"]]
    assert texts == ["spoken", "old secret " * 500, "question 50", "answer 50"]
    assert cabinet.path.stat().st_size < size / 2
    assert cabinet.path.read_bytes().count(b"old secret " * 500) <= 1
    assert cabinet.done("verify")


def test_prune_deletes_what_the_model_kept_of_the_old_and_of_who_lost_a_message(cabinet: Cabinet) -> None:
    folder = cabinet.folder / "states"
    files = StateFiles(folder, 10**6)
    files.open("small-f16")
    for chat in ("telegram:3", ANNA, "telegram:4"):
        files.put(chat, range(300), bytearray(10))
    files.close()
    first, *_ = sorted(folder.glob("*/*.kv"), key=lambda path: path.stat().st_mtime_ns)
    os.utime(first, (1e9, 1e9))
    cabinet.done("prune", "--older-than", "90d")
    assert [len(files.tokens(chat)) for chat in ("telegram:3", ANNA, "telegram:4")] == [0, 0, 300]


@pytest.mark.parametrize("age", ["90", "d", "soon", "-3d", "", "0d"])
def test_an_age_that_is_none_is_said_to_be_so(cabinet: Cabinet, age: str) -> None:
    assert cabinet.refused("prune", f"--older-than={age}").startswith("--older-than: expected a")


def test_where_june_never_ran_nothing_is_made(tmp_path: Path) -> None:
    cabinet = Cabinet(tmp_path, Clock())
    for arguments in (("prune", "--older-than", "1d"), ("backup", tmp_path / "a"), ("export", ANNA)):
        assert "does not exist: june has not run with it yet" in cabinet.refused(*arguments)
    assert names(tmp_path) == set()


# --- export ---


def test_an_export_has_all_that_is_kept_of_a_person(cabinet: Cabinet) -> None:
    async def more(store: Store) -> None:
        (voice,) = [entry.id for entry in await store.history.entries() if entry.has_audio]
        assert await store.feed.recording(voice) == VOICE.ogg_opus
        await store.people.set_access(ANNA, "allowed", name="Anna", added_by="telegram:9")
        await receive(store, replace(inbound(70, GROUP, "to all"), user=ANNA, is_group=True))
        await store.inbox.finish((await claim(store)).id, [reply("to the group", GROUP)], outcome="answered")
        await receive(store, inbound(71, f"{ANNA}/7", "in a topic"), inbound(72, ANNA + "0", "another's"))

    cabinet.write(more)
    out = cabinet.folder / "anna"
    told = cabinet.done("export", ANNA, "--out", out)
    assert told == f"{out}: 8 messages and 1 recording.\n"
    data = json.loads((out / "data.json").read_text("utf-8"))
    texts = [message["text"] for message in data["messages"]]
    assert texts == [
        *("question 0", "answer 0", "question 2", "answer 2", "spoken"),
        *("to all", "to the group", "in a topic"),
    ]
    assert (data["of"], data["chats"][0]["language"], data["people"][0]["name"]) == (ANNA, "de", "Anna")
    (spoken,) = [message for message in data["messages"] if message["audio"]]
    assert (out / spoken["audio"]).read_bytes() == VOICE.ogg_opus
    assert spoken["delivered"] == []
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert names(cabinet.folder) == {"june.db", "anna"}


def test_an_export_can_be_one_file(cabinet: Cabinet) -> None:
    out = cabinet.folder / "anna.zip"
    cabinet.done("export", ANNA, "--out", out)
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        data = json.loads(archive.read("data.json"))
        audio = [message["audio"] for message in data["messages"] if message["audio"]]
        assert [archive.read(name) for name in audio] == [VOICE.ogg_opus]
        assert len(archive.namelist()) == 2
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert names(cabinet.folder) == {"june.db", "anna.zip"}


def test_an_export_is_refused_where_something_is_or_nothing_is_kept(cabinet: Cabinet) -> None:
    out = cabinet.folder / "anna"
    assert cabinet.refused("export", "telegram:404", "--out", out) == "Nothing is stored about telegram:404."
    out.mkdir()
    assert cabinet.refused("export", ANNA, "--out", out) == f"{out} exists already."
    missing = cabinet.folder / "none" / "anna"
    assert cabinet.refused("export", ANNA, "--out", missing).endswith("No such file or directory.")
    assert names(cabinet.folder) == {"june.db", "anna"}
