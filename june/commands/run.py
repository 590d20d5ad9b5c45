"""`python -m june run`: runs june on the chat apps until SIGTERM or Ctrl-C."""

import asyncio
import signal

from june import app
from june.chat.apps import token_shapes
from june.commands.terminal import SettingsFile
from june.settings import Settings, load_settings
from june.telemetry import configure_logging

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(settings_file: SettingsFile = None) -> None:
    """Answer on the chat apps until SIGTERM or Ctrl-C."""
    settings = load_settings(settings_file)
    configure_logging(settings.telemetry, settings.secret_values(), token_shapes())
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        stop.set()
        for signal_number in SIGNALS:
            loop.remove_signal_handler(signal_number)
            # A second signal ends june at once; Python's own handler of Ctrl-C would wait for june's tasks.
            signal.signal(signal_number, signal.SIG_DFL)

    for signal_number in SIGNALS:
        loop.add_signal_handler(signal_number, end)
    await app.serve(settings, stop)
