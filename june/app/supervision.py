"""Tasks that go on beside others: ended in order, watched, and run again when they fail."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from june.backoff import BackOff
from june.chat import Adapter, Intake
from june.chat.commands import COMMANDS
from june.errors import JuneError
from june.sections import TelemetrySettings
from june.telemetry import adapter_up, close_traces, count_error, log, open_traces, report_repeats
from june.workers import settled, try_for, watched_loop

STEADY_S = 60.0
"""An adapter that ran for this long begins its pauses anew."""
RESTART = BackOff(first_s=1, longest_s=60)
"""Pauses before an adapter that failed is run again."""
SHUTDOWN_TRACES_S = 2.0


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they have ended; what they raised stays in them."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        await settled(task)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` beside the block, and end it with the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end(task)


@asynccontextmanager
async def observed(settings: TelemetrySettings) -> AsyncIterator[None]:
    """Send traces and watch the event loop during the block; a receiver that hangs delays the end by 2 s."""
    open_traces(settings)
    try:
        async with watched_loop(settings.watchdog_s):
            yield
    finally:
        report_repeats(is_last=True)
        if not await try_for(SHUTDOWN_TRACES_S, close_traces):
            log.warning("traces.lost", detail="the receiver at telemetry.otlp_endpoint did not take the last")


async def keep_running(adapter: Adapter, intake: Intake) -> None:
    """Run an adapter, and run it again after a pause when it fails, until cancelled."""
    failures = 0
    while True:
        begin = time.monotonic()
        retry_after_s = 0.0
        try:
            await adapter.run(intake, COMMANDS)
        except Exception as error:  # a supervisor: whatever it was, the adapter is run again
            retry_after_s = getattr(error, "retry_after_s", None) or 0.0
            count_error("adapter", type(error).__name__)
            detail = str(error) if isinstance(error, JuneError) else type(error).__name__
            log.error("adapter.failed", platform=adapter.platform, detail=detail)
        adapter_up.labels(platform=adapter.platform).set(0)
        failures = 0 if time.monotonic() - begin > STEADY_S else failures + 1
        await asyncio.sleep(RESTART.pause_s(failures + 1, retry_after_s))
