"""`python -m june messages …`: the owner's queue for shell scripts, through june's API.

Exit status 0: done. 1: there is nothing (no message waits, no answer in time, no such message), or the
message is in another state than expected, for example claimed again. 2: wrong use, or june cannot be asked.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from june.api.client import ApiClient, open_client
from june.api.requests import timestamp
from june.chat.apps import APPS
from june.commands.terminal import (
    Json,
    SettingsFile,
    Since,
    console,
    duration_s,
    local_time,
    printable,
    seconds_since,
)
from june.errors import ApiError, JuneError
from june.settings import load_settings

T = TypeVar("T")

PAGE = 200
NOTHING = (404, 409)
SAME = object()

app = typer.Typer()

Id = Annotated[int, typer.Argument(metavar="ID", min=1, max=10**18 - 1, help="Id of a message.")]
Text = Annotated[str, typer.Argument(help="Text in Markdown; - reads standard input.")]
Url = Annotated[str, typer.Option(help="june's address; default: the address in the settings.")]
Field = Annotated[str, typer.Option(help="Print only this field of the message, such as id or text.")]
Platform = Annotated[str, typer.Option(help=f"Only this chat app: {' or '.join(APPS)}.")]
Chat = Annotated[str, typer.Option(help="Only this chat, such as telegram:123456789.")]
User = Annotated[str, typer.Option(help="Only this person, such as telegram:123456789.")]
Kind = Annotated[str, typer.Option(help="Only this kind, such as voice or text.")]
SendKind = Annotated[
    str, typer.Option(help="message, clarification, help_request, progress or feedback_request.")
]
Voice = Annotated[bool, typer.Option("--voice", help="Also speak the text.")]
Lease = Annotated[str, typer.Option(help="How long the claim lasts, such as 30m; default: queue.lease_s.")]
Attempts = Annotated[
    int, typer.Option(min=0, help="`attempts` of the claim: refused if the claim has ended.")
]
Key = Annotated[str, typer.Option(help="Idempotency key: repeating the command has no further effect.")]
To = Annotated[str, typer.Option(help="owner, or someone with access, such as telegram:123456789.")]


@app.command("list")
def list_messages(
    *,
    platform: Platform = "",
    chat: Chat = "",
    user: User = "",
    direction: Annotated[str, typer.Option(help="in (received) or out (sent).")] = "",
    kind: Kind = "",
    status: Annotated[str, typer.Option(help="Only this status: NEW, PROCESSING, RESPONDED, ERROR, …")] = "",
    since: Since = "",
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="Begin with the oldest.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    as_json: Json = False,
    url: Url = "",
    settings_file: SettingsFile = None,
) -> None:
    """Show messages, newest first; exit status 1 if there are none."""
    filters = {
        "platform": platform,
        "chat": chat,
        "user": user,
        "direction": direction,
        "kind": kind,
        "status": status,
        "since": timestamp(seconds_since(since)) if since else "",
        "order": "asc" if oldest_first else "desc",
    }
    query = {name: value for name, value in filters.items() if value}
    found = _call(settings_file, url, lambda june: _pages(june, query, limit))
    if as_json:
        print(json.dumps(found))
    elif found:
        table = Table("id", "time", "chat", "from", "kind", "status", "text")
        for message in found:
            table.add_row(*map(printable, _cells(message)))
        console().print(table)
    if not found:
        raise typer.Exit(1)


@app.command()
def show(
    message_id: Id,
    *,
    field: Field = "",
    as_json: Json = False,
    url: Url = "",
    settings_file: SettingsFile = None,
) -> None:
    """Show one message."""
    message = _call(settings_file, url, lambda june: june.get(f"/{message_id}"))
    _print(message, field=field, as_json=as_json)


@app.command()
def send(
    text: Text,
    *,
    to: To = "owner",
    kind: SendKind = "message",
    voice: Voice = False,
    reply_to: Annotated[int, typer.Option(min=0, help="Id of the message it replies to.")] = 0,
    key: Key = "",
    field: Field = "",
    as_json: Json = False,
    url: Url = "",
    settings_file: SettingsFile = None,
) -> None:
    """Send a message; it is committed when the command ends, and delivered soon after."""
    body = {"to": to, "text": _text(text), "kind": kind, "voice": voice, "reply_to": reply_to or None}
    sent = _call(settings_file, url, lambda june: june.post("", body, key=key))
    _print(sent, field=field, as_json=as_json)


@app.command()
def claim(
    *,
    message_id: Annotated[int, typer.Option("--id", min=0, help="Only this message.")] = 0,
    platform: Platform = "",
    chat: Chat = "",
    user: User = "",
    kind: Kind = "",
    lease: Lease = "",
    wait: Annotated[str, typer.Option(help="Wait up to this long, such as 60s; default: do not wait.")] = "",
    field: Field = "",
    as_json: Json = False,
    url: Url = "",
    settings_file: SettingsFile = None,
) -> None:
    """Claim the oldest message that waits in the queue; exit status 1 if there is none."""
    named = {"id": message_id, "platform": platform, "chat": chat, "user": user, "kind": kind}
    wanted = {name: value for name, value in named.items() if value} | _lease(lease)
    wait_s = duration_s(wait, "--wait")
    claimed = _call(settings_file, url, lambda june: june.claim(wanted, wait_s=wait_s))
    if claimed is None:
        raise typer.Exit(1)
    _print(claimed, field=field, as_json=as_json)


@app.command()
def respond(
    message_id: Id,
    text: Text,
    *,
    voice: Voice = False,
    attempts: Attempts = 0,
    field: Field = "",
    as_json: Json = False,
    url: Url = "",
    settings_file: SettingsFile = None,
) -> None:
    """Answer a claimed message in its chat."""
    body = {"text": _text(text), "voice": voice, "attempts": attempts or None}
    responded = _call(settings_file, url, lambda june: june.post(f"/{message_id}/respond", body))
    _print(responded, field=field, as_json=as_json)


@app.command()
def extend(
    message_id: Id,
    *,
    lease: Lease = "",
    attempts: Attempts = 0,
    field: Field = "",
    as_json: Json = False,
    url: Url = "",
    settings_file: SettingsFile = None,
) -> None:
    """Extend the lease of a claimed message."""
    body = {"attempts": attempts or None} | _lease(lease)
    extended = _call(settings_file, url, lambda june: june.post(f"/{message_id}/extend", body))
    _print(extended, field=field, as_json=as_json)


@app.command()
def fail(
    message_id: Id,
    *,
    error: Annotated[str, typer.Option(help="The reason, for people who read the queue.")] = "",
    retry: Annotated[bool, typer.Option("--retry", help="Allow the message to be claimed again.")] = False,
    attempts: Attempts = 0,
    field: Field = "",
    as_json: Json = False,
    url: Url = "",
    settings_file: SettingsFile = None,
) -> None:
    """Give up a claimed message."""
    body = {"error": error, "retry": retry, "attempts": attempts or None}
    failed = _call(settings_file, url, lambda june: june.post(f"/{message_id}/fail", body))
    _print(failed, field=field, as_json=as_json)


@app.command()
def ask(
    text: Text,
    *,
    wait: Annotated[str, typer.Option(help="Wait up to this long for the answer.")] = "1h",
    to: To = "owner",
    kind: SendKind = "clarification",
    voice: Voice = False,
    key: Key = "",
    field: Field = "",
    as_json: Json = False,
    url: Url = "",
    settings_file: SettingsFile = None,
) -> None:
    """Ask a question, wait for the answer and print it; exit status 1 if there is none in time.

    With the same --key, a restarted script waits for the answer to the question that it asked before.
    """
    wait_s = duration_s(wait, "--wait")
    question = {
        "to": to,
        "text": _text(text),
        "kind": kind,
        "voice": voice,
        "wait_for_reply": True,
        "expires_in_s": wait_s,
    }

    async def work(june: ApiClient) -> dict[str, Any]:
        asked = await june.post("", question, key=key) or {}
        return await june.reply(asked["id"], wait_s=wait_s)

    found = _call(settings_file, url, work)
    if found["reply"] is None:
        why = "The question could not be delivered." if found["status"] == "ERROR" else "No answer came."
        print(f"june: {why}", file=sys.stderr)
        raise typer.Exit(1)
    _print(found["reply"], field=field or ("" if as_json else "text"), as_json=as_json)


@app.command()
def watch(
    *,
    after: Annotated[int, typer.Option(min=-1, help="Begin after this event; default: now.")] = -1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per event: {event_id, message}.")
    ] = False,
    url: Url = "",
    settings_file: SettingsFile = None,
) -> None:
    """Print every change to messages until Ctrl-C, also across restarts of june."""

    async def work(june: ApiClient) -> None:
        async for event in june.events(after=None if after < 0 else after):
            if event.name == "open":
                continue
            if as_json:
                print(json.dumps({"event_id": event.id, "message": event.message}), flush=True)
            elif event.message is None:
                print("Some changes were missed.", flush=True)
            else:
                cells = (" ".join(printable(cell).split()) for cell in _cells(event.message))
                print("  ".join(cells), flush=True)

    _call(settings_file, url, work)


def _call(settings_file: Any, url: str, work: Callable[[ApiClient], Awaitable[T]]) -> T:
    """Return the running june's answer; exit status 1 if a message is missing or in another state."""
    settings = load_settings(settings_file).api

    async def run() -> T:
        async with open_client(settings, url=url) as june:
            return await work(june)

    try:
        return asyncio.run(run())
    except ApiError as error:
        if error.status not in NOTHING:
            raise
        print(f"june: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


async def _pages(june: ApiClient, query: dict[str, str], limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None and len(found) < limit:
        behind = {"cursor": cursor} if cursor else {}
        page = await june.get("", query | behind | {"limit": str(min(PAGE, limit - len(found)))})
        found += page["messages"]
        cursor = page["next"]
    return found


def _text(text: str) -> str:
    if text != "-":
        return text
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise JuneError("Standard input: expected UTF-8 text.") from None


def _lease(lease: str) -> dict[str, float]:
    return {"lease_s": duration_s(lease, "--lease")} if lease else {}


def _cells(message: dict[str, Any]) -> tuple[str, ...]:
    sender = (message["user_name"] or message["user"]) if message["direction"] == "in" else message["role"]
    created_s = datetime.fromisoformat(message["created_at"]).timestamp()
    head = (str(message["id"]), local_time(created_s), message["chat"], sender)
    return (*head, message["kind"], message["status"], message["text"])


def _print(message: dict[str, Any] | None, *, field: str, as_json: bool) -> None:
    """Print a message: as JSON, one field only, or in a form for people."""
    message = message or {}
    if field:
        value = message.get(field, SAME)
        if value is SAME:
            raise JuneError(f"A message has no field {field!r}; it has {', '.join(sorted(message))}.")
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
        print(printable(text) if sys.stdout.isatty() else text)
    elif as_json:
        print(json.dumps(message))
    else:
        *head, text = _cells(message)
        print(printable("  ".join(head)))
        print(printable(text))
