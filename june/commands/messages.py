"""`python -m june messages`: shows received and sent messages, and whether they arrived as intended.

These commands show what people wrote: they are for the owner's own terminal. The commands in this file only
read the file of messages, so june may run; those of `june.commands.queue` send requests to a running june.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Table

from june.chat.apps import chat_app
from june.chat.formatting import visible
from june.chat.wording import as_markdown
from june.commands import queue
from june.commands.terminal import Json, SettingsFile, Since, console, local_time, printable, seconds_since
from june.errors import JuneError
from june.messages import Delivered
from june.settings import load_settings
from june.store import HistoryEntry, Store, open_store
from june.telemetry import trace_id

T = TypeVar("T")

app = typer.Typer(help="Show received and sent messages, and use the owner's queue.", no_args_is_help=True)
app.add_typer(queue.app)
EXCERPT = 20


@app.command()
def history(
    *,
    chat: Annotated[str, typer.Option(help="A chat such as telegram:123456789; default: all chats.")] = "",
    since: Since = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest.")] = 100,
    as_json: Json = False,
    settings_file: SettingsFile = None,
) -> None:
    """Show received and sent messages, oldest first."""
    since_s = seconds_since(since)
    entries = _read(
        settings_file, lambda store: store.history.entries(chat=chat, since_s=since_s, limit=limit)
    )
    if as_json:
        print(json.dumps([asdict(entry) | {"trace_id": trace_id(entry.trace_context)} for entry in entries]))
        return
    table = Table("id", "time", "chat", "from", "kind", "status", "text", "notes")
    for entry in entries:
        cells = (
            str(entry.id),
            local_time(entry.created_at_s),
            entry.chat,
            "june" if entry.direction == "out" else entry.user_name or entry.user,
            entry.kind,
            entry.status,
            entry.transcript or entry.text,
            ", ".join(_notes(entry)),
        )
        table.add_row(*map(printable, cells))
    console().print(table)


@app.command()
def check(
    message_id: Annotated[int, typer.Argument(metavar="ID", help="Id of a message that june sent.")],
    *,
    as_json: Json = False,
    settings_file: SettingsFile = None,
) -> None:
    """Compare the intended text of a message with what the chat app got; exit status 1 if they differ."""
    entry = _read(settings_file, lambda store: store.history.entry(message_id))
    if entry is None or entry.direction != "out":
        raise JuneError(f"june sent no message {message_id}; see: python -m june messages history")
    meant, shown = _meant(entry), [_shown(entry, one) for one in entry.delivered]
    faults = list(_faults(entry))
    if as_json:
        print(
            json.dumps(
                {"id": entry.id, "right": not faults, "faults": faults, "meant": meant, "shown": shown}
            )
        )
    else:
        table = Table("", "text", show_lines=True)
        table.add_row("meant", printable(meant))
        for one, text in zip(entry.delivered, shown, strict=True):
            table.add_row(f"{one.kind} {printable(one.message_id)}", printable(text))
        screen = console()
        screen.print(table)
        for line in faults or ["It arrived as intended."]:
            screen.print(printable(line))
    if faults:
        raise typer.Exit(1)


@app.command()
def stats(*, since: Since = "", as_json: Json = False, settings_file: SettingsFile = None) -> None:
    """Show how many messages were received and sent, and how long answers took."""
    since_s = seconds_since(since)
    found = _read(settings_file, lambda store: store.history.stats(since_s=since_s))
    if as_json:
        print(json.dumps(asdict(found)))
        return
    table = Table("", "app", "kind", "status", "messages")
    for count in found.counts:
        direction = "received" if count.direction == "in" else "sent"
        table.add_row(direction, count.platform, count.kind, count.status, str(count.messages))
    screen = console()
    screen.print(table)
    if found.response_p50_s is not None and found.response_p95_s is not None:
        screen.print(
            f"Half of the answers were ready within {found.response_p50_s:.2f} s,"
            f" 95 % within {found.response_p95_s:.2f} s."
        )


def _read(settings_file: Path | None, query: Callable[[Store], Awaitable[T]]) -> T:
    path = load_settings(settings_file).store.path

    async def run() -> T:
        async with open_store(path, read_only=True) as store:
            return await query(store)

    return asyncio.run(run())


def _notes(entry: HistoryEntry) -> Iterator[str]:
    if entry.duration_s:
        yield f"{entry.duration_s:.1f} s"
    if entry.outcome and entry.outcome != "answered":
        yield entry.outcome
    if entry.answers:
        yield f"answers {entry.answers}"
    if entry.edits:
        yield f"edits {entry.edits}"
    if len(entry.delivered) > 1:
        yield f"{len(entry.delivered)} parts"
    if any(one.edited for one in entry.delivered):
        yield "edited"
    if any(one.kind == "text" and not one.parse_mode for one in entry.delivered):
        yield "without markup"
    if entry.error:
        yield entry.error


def _meant(entry: HistoryEntry) -> str:
    return visible(as_markdown(entry.text, entry.echo, entry.purpose))


def _shown(entry: HistoryEntry, one: Delivered) -> str:
    app = chat_app(entry.platform)
    if app is None or not (one.parse_mode or app.reads_plain_text_as_markup):
        return one.text
    return app.visible(one.text)


def _faults(entry: HistoryEntry) -> Iterator[str]:
    """Yield one sentence for each difference from the intended message."""
    if entry.status == "ERROR":
        yield f"june gave it up: {entry.error.rstrip('.')}."
    elif entry.status not in ("SENT", "RESPONDED", "TIMEOUT"):
        yield "It is not completely sent yet."
    if entry.kind == "voice":
        if not any(one.kind == "voice" for one in entry.delivered):
            yield "The chat got no voice message."
        return
    yield from _differences(entry)
    app = chat_app(entry.platform)
    for number, one in enumerate(entry.delivered, 1):
        if app is not None and (one.parse_mode or app.reads_plain_text_as_markup):
            yield from (f"Part {number}: {problem}" for problem in app.faults(one.text))


def _differences(entry: HistoryEntry) -> Iterator[str]:
    """Yield where the text differs. White space is ignored, since it changes where the text was split."""
    meant = "".join(_meant(entry).split())
    shown = "".join("".join(_shown(entry, one) for one in entry.delivered).split())
    if shown == meant or (
        entry.may_group and meant in shown
    ):  # it may have been sent together with others in one message
        return
    pairs = enumerate(zip(meant, shown, strict=False))
    same = next((index for index, (one, other) in pairs if one != other), min(len(meant), len(shown)))
    if same == len(shown):
        yield f"The last {len(meant) - same} of {len(meant)} characters are missing."
    else:
        yield (
            f"After {same} characters the chat shows “{shown[same : same + EXCERPT]}”"
            f" where “{meant[same : same + EXCERPT]}” was meant."
        )
