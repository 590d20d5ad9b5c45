"""How late an event loop is, and how much of that is due to the machine."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

Span = tuple[float, float]
"""When a call should have run and when it did, in seconds of `time.perf_counter`."""

TICK_S = 0.005
STANDSTILL_S = 0.02
"""Other programs that compute delay a program that wakes up by less; a suspended CPU delays it by more."""
ON_A_CPU = f"""
import os, sys, time
os.sched_setaffinity(0, {{int(sys.argv[1])}})
while True:
    due_s = time.perf_counter() + {TICK_S}
    time.sleep({TICK_S})
    ran_s = time.perf_counter()
    if ran_s - due_s > {STANDSTILL_S}:
        print(due_s, ran_s, flush=True)
"""
"""Sleeps on one CPU in its own process, and reports when it was woken late."""


class Lateness:
    """Delays while an event loop was watched."""

    def __init__(self) -> None:
        self.loop: list[Span] = []
        self.machine: list[Span] = []

    def worst_s(self) -> float:
        """Return the loop's longest delay in seconds, without the time in which a CPU was suspended."""
        return max(ran_s - due_s - self._excused_s(due_s, ran_s) for due_s, ran_s in self.loop)

    def _excused_s(self, due_s: float, ran_s: float) -> float:
        inside = sorted((max(due_s, begin), min(ran_s, end)) for begin, end in self.machine)
        excused_s, until_s = 0.0, due_s
        for begin, end in inside:
            excused_s += max(0.0, end - max(begin, until_s))
            until_s = max(until_s, end)
        return excused_s


@asynccontextmanager
async def watched() -> AsyncIterator[Lateness]:
    """Watch the running event loop and, from outside, every CPU that it may run on."""
    lateness = Lateness()
    async with AsyncExitStack() as stack:
        for cpu in os.sched_getaffinity(0):
            await stack.enter_async_context(_watched_cpu(cpu, lateness.machine))
        ticking = asyncio.create_task(_tick(lateness.loop))
        try:
            yield lateness
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])


async def _tick(late: list[Span]) -> None:
    while True:
        due_s = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append((due_s, time.perf_counter()))


@asynccontextmanager
async def _watched_cpu(cpu: int, late: list[Span]) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ON_A_CPU, str(cpu), stdout=asyncio.subprocess.PIPE
    )
    try:
        yield
    finally:
        process.terminate()
        output, _ = await process.communicate()
        for line in output.decode().splitlines():
            due_s, ran_s = map(float, line.split())
            late.append((due_s, ran_s))
