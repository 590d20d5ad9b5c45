"""`python -m june run`: runs june on the chat apps until SIGTERM or Ctrl-C."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from june import app
from june.settings import Settings, load_settings
from june.telemetry import configure_logging


def run(
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file.")] = None,
) -> None:
    """Answer on the chat apps until SIGTERM or Ctrl-C."""
    settings = load_settings(settings_file)
    configure_logging(settings.telemetry, settings.secret_values())
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(signal_number: int) -> None:
        stop.set()
        loop.remove_signal_handler(signal_number)  # a second signal ends june at once

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, end, signal_number)
    await app.serve(settings, stop)
