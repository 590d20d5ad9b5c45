"""`python -m june run` in its own process, with servers that the tests own."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from june.sections import PROJECT_ROOT


def write_settings(folder: Path, /, **sections: dict[str, Any]) -> Path:
    """Write a settings file with the starter models, greedy sampling and these keys; return its path."""
    chosen: dict[str, dict[str, Any]] = {
        "models": {"directory": str(PROJECT_ROOT / "models"), "preset": "starter"},
        "llm": {"temperature": 0, "presence_penalty": 0, "max_tokens": 40},
        "telemetry": {"log_format": "json"},
        "api": {"port": 0},
    }
    for name, section in sections.items():
        chosen[name] = chosen.get(name, {}) | section
    lines = [
        line
        for name, section in chosen.items()
        for line in (f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items()))
    ]
    file = folder / "settings.toml"
    file.write_text("\n".join(lines))
    return file


def free_port() -> int:
    """Return a port that is free now, for a program that must know it beforehand."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Program:
    """A running june, and its log so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self.events: list[dict[str, Any]] = []
        self.output = ""
        """Everything that june wrote to standard error."""

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode()
            self.output += text
            if text.startswith("{"):
                self.events.append(json.loads(text))
            self._pulse()
        self._pulse()

    def _pulse(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def logged(self, event: str, *, count: int = 1, timeout_s: float = 60) -> dict[str, Any]:
        """Return the `count`th event of this name, as soon as it is logged."""
        async with asyncio.timeout(timeout_s):
            while len(found := [each for each in self.events if each["event"] == event]) < count:
                assert not self._reading.done(), self.output
                await self._changed.wait()
        return found[count - 1]

    async def kill(self) -> None:
        """Kill june, as a power cut would."""
        self._process.kill()
        await self._process.wait()
        await self._reading

    async def terminate(self) -> int:
        """Ask june to end, wait for it, and return the exit status."""
        self.send(signal.SIGTERM)
        return await self.ended()

    def send(self, signal_number: signal.Signals) -> None:
        """Send june a signal."""
        self._process.send_signal(signal_number)

    async def ended(self) -> int:
        """Wait until june has ended, and return the exit status; below 0: the signal that ended it."""
        status = await self._process.wait()
        await self._reading
        return status

    @property
    def is_running(self) -> bool:
        """Whether june has not ended."""
        return self._process.returncode is None


@asynccontextmanager
async def running(settings_file: Path) -> AsyncIterator[Program]:
    """Run june until the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "june", "run", "--settings", str(settings_file)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=PROJECT_ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("JUNE_")},
        limit=2**20,
    )
    program = Program(process)
    try:
        yield program
    finally:
        if program.is_running:
            await program.kill()
