"""`python -m june data`: backs up, restores, prunes, verifies and exports the file of messages.

`backup`, `verify` and `export` only read, so june may run; `restore` and `prune` refuse while june runs.
"""

import asyncio
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from june import llm
from june.commands.terminal import SettingsFile, duration_s
from june.errors import JuneError, QueueError, StoreError
from june.settings import Settings, load_settings
from june.store import Contents, Kept, Pruned, Store, open_store

T = TypeVar("T")

app = typer.Typer(help="Back up, restore, prune, verify and export.", no_args_is_help=True)

NO_FILE_NAME = re.compile(r"[^\w.-]+", re.ASCII)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="File for the copy.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    settings_file: SettingsFile = None,
) -> None:
    """Write a verified copy of the file of messages; june may run."""
    path = load_settings(settings_file).store.path
    if file.exists() and not force:
        raise JuneError(f"{file} exists already; --force replaces it.")
    _read(path, lambda store: store.back_up(file, overwrite=force))
    print(f"{file}: {_described(file, _read(file, lambda store: store.upkeep.contents()))}; verified.")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A copy that backup wrote.")],
    *,
    settings_file: SettingsFile = None,
) -> None:
    """Replace the file of messages with a copy; the old file is kept under another name."""
    path = load_settings(settings_file).store.path

    async def put_back(store: Store) -> Path | None:
        if faults := await store.upkeep.faults():
            raise StoreError(f"{file} was not restored: {faults[0]}")
        return await store.put_in_place_of(path)

    kept = _read(file, put_back)
    print(f"{path}: {_described(path, _read(path, lambda store: store.upkeep.contents()))}; verified.")
    if kept is not None:
        print(f"The old file is kept as {kept}.")


@app.command()
def prune(
    older_than: Annotated[str, typer.Option("--older-than", help="An age such as 90d.")],
    *,
    settings_file: SettingsFile = None,
) -> None:
    """Delete old messages that are finished, except those that the model is shown, and free the space."""
    settings = load_settings(settings_file)
    age_s = duration_s(older_than, "--older-than")
    if not age_s:  # an age of 0 would delete everything
        raise JuneError("--older-than: expected an age such as 90d or 24h.")
    path = settings.store.path
    if not path.exists():
        raise StoreError(f"{path} does not exist: june has not run with it yet")
    before_bytes = path.stat().st_size
    pruned = asyncio.run(_prune(settings, age_s))
    print(
        f"{_count(pruned.messages, 'message')} and {_count(pruned.voices, 'recording')} deleted;"
        f" {path} has {path.stat().st_size / 1e6:.1f} MB, and had {before_bytes / 1e6:.1f} MB."
    )


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A copy; default: june's own file.")
    ] = None,
    *,
    settings_file: SettingsFile = None,
) -> None:
    """Read the whole file and say whether it is sound; exit status 1 if it is not. june may run."""
    path = load_settings(settings_file).store.path if file is None else file
    try:
        faults = _read(path, lambda store: store.upkeep.faults())
        contents = _read(path, lambda store: store.upkeep.contents())
    except StoreError as error:
        faults, contents = [f"{error}."], None
    for fault in faults:
        print(fault)
    if faults or contents is None:
        raise typer.Exit(1)
    print(f"{path}: {_described(path, contents)}; verified.")


@app.command()
def export(
    chat: Annotated[str, typer.Argument(help="A chat or a person, such as telegram:123456789.")],
    *,
    out: Annotated[Path | None, typer.Option(help="A new folder, or a new file that ends with .zip.")] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Write all that is stored about a chat or person, as JSON and recordings; june may run."""
    path = load_settings(settings_file).store.path
    target = out or Path(f"june-{NO_FILE_NAME.sub('-', chat)}")
    if target.exists():
        raise JuneError(f"{target} exists already.")
    try:
        messages, recordings = _export(path, chat, target)
    except OSError as error:
        raise JuneError(f"{target} cannot be written: {error.strerror}.") from None
    print(f"{target}: {_count(messages, 'message')} and {_count(recordings, 'recording')}.")


def _read(path: Path, query: Callable[[Store], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_store(path, read_only=True, any_schema=True) as store:
            return await query(store)

    return asyncio.run(run())


async def _prune(settings: Settings, age_s: float) -> Pruned:
    async with open_store(settings.store.path) as store:
        keep_turns = settings.chat.history_messages // 2
        pruned = await store.upkeep.prune(messages_age_s=age_s, audio_age_s=age_s, keep_turns=keep_turns)
        await store.compact()
    await llm.unloaded(settings.llm).forget(conversations=pruned.chats, older_than_s=age_s)
    return pruned


def _export(path: Path, name: str, target: Path) -> tuple[int, int]:
    """Write an export, which gets its name once it is complete; return how many messages and recordings."""
    folder = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))  # readable by its owner only
    try:
        counts = _read(path, lambda store: _fill(folder, store, name))
        if target.suffix == ".zip":
            _zip(folder, target)
        else:
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return counts


async def _fill(folder: Path, store: Store, name: str) -> tuple[int, int]:
    kept = await store.upkeep.kept_of(name)
    if not any((kept.messages, kept.chats, kept.people)):
        raise JuneError(f"Nothing is stored about {name}.")
    (folder / "audio").mkdir()
    recordings = 0
    for message in kept.messages:
        voice = None
        if message.pop("has_voice"):
            with suppress(QueueError):  # the recording was deleted meanwhile
                voice = await store.feed.recording(message["id"])
        message["audio"] = None if voice is None else f"audio/{message['id']}.ogg"
        if voice is not None:
            (folder / message["audio"]).write_bytes(voice)
            recordings += 1
    (folder / "data.json").write_text(_as_json(name, kept), "utf-8")
    return len(kept.messages), recordings


def _as_json(name: str, kept: Kept) -> str:
    exported_at = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"of": name, "exported_at": exported_at} | asdict(kept), ensure_ascii=False, indent=2)


def _zip(folder: Path, target: Path) -> None:
    whole = folder / "whole.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "data.json", "data.json")
        for recording in sorted((folder / "audio").iterdir()):
            archive.write(recording, f"audio/{recording.name}", zipfile.ZIP_STORED)
    whole.chmod(0o600)
    whole.rename(target)


def _described(file: Path, contents: Contents) -> str:
    counts = (
        _count(contents.messages, "message"),
        _count(contents.voices, "recording"),
        _count(contents.chats, "chat") + " with settings",
        _count(contents.people, "person", "people"),
    )
    return f"{file.stat().st_size / 1e6:.1f} MB, schema {contents.schema}, {', '.join(counts)}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"
