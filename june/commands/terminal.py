"""What the commands on messages share: options, times, and text that is safe on a terminal."""

import re
import time
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from june.errors import JuneError

SettingsFile = Annotated[Path | None, typer.Option("--settings", help="Settings file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Since = Annotated[
    str, typer.Option(help="Only newer messages: a date such as 2026-11-01, or an age such as 24h.")
]

DURATION = re.compile(r"(\d{1,6})([smhdw])")
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def seconds_since(since: str) -> float:
    """Return a date, a time or an age as seconds since 1970; 0 if it is empty."""
    if not since:
        return 0.0
    if age := DURATION.fullmatch(since):
        return max(0.0, time.time() - int(age[1]) * UNITS_S[age[2]])
    try:
        return datetime.fromisoformat(since).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise JuneError("--since: expected a date such as 2026-11-01, or an age such as 24h.") from None


def duration_s(text: str, option: str) -> float:
    """Return a duration such as 90s or 1h in seconds; 0 if it is empty.

    Raises:
        JuneError: the text is not a duration; the error names the option.
    """
    if not text:
        return 0.0
    if duration := DURATION.fullmatch(text):
        return float(int(duration[1]) * UNITS_S[duration[2]])
    raise JuneError(f"{option}: expected a duration such as 90s or 1h.")


def local_time(since_1970_s: float) -> str:
    """Return a time in the local time zone, to the second."""
    local = datetime.fromtimestamp(since_1970_s, UTC).astimezone()
    return local.replace(tzinfo=None).isoformat(" ", "seconds")


def printable(text: str) -> str:
    """Return the text without characters that control the terminal."""
    return "".join(
        "\ufffd" if unicodedata.category(character) == "Cc" and character not in "\n\t" else character
        for character in text
    )


def console() -> Console:
    """Return a console that prints text without interpreting markup."""
    return Console(highlight=False, markup=False, emoji=False)
