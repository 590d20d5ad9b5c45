"""Watching the event loop: how late it is, and what happens when it stalls."""

import asyncio
import faulthandler
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from june.telemetry import event_loop_lag_seconds, log
from june.workers.threads import settled

LAG_SAMPLE_S = 0.1
STDERR = 2
LOOKS = 4
"""How many times the watchdog checks the loop within the time limit."""
STANDSTILL_STATUS = 70
"""Exit status after the event loop stalled: EX_SOFTWARE of sysexits.h."""


@contextmanager
def short_collections() -> Iterator[None]:
    """Exclude the objects that exist now from garbage collection.

    They are libraries and models: 260,000 objects that never become garbage. A full collection over them
    stopped all threads for 0.19 s, in the middle of a turn.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@asynccontextmanager
async def watched_loop(limit_s: float) -> AsyncIterator[None]:
    """Measure how late the event loop is, and act if it stalls, while the block runs.

    When the loop has stalled for the limit, the stacks of all threads go to standard error; the main thread's
    stack names the line that blocks. After twice the limit, the process ends with `STANDSTILL_STATUS`, so
    that its supervisor starts june again, unless the whole process was suspended in the meantime. Code that
    holds Python's global lock, such as a search with a bad regular expression, stops the watchdog too: after
    four times the limit, the stacks are shown nevertheless, and the process ends with status 1.

    Args:
        limit_s: how long the loop may stall, in seconds; 0: for ever.
    """
    watchdog = _Watchdog(limit_s) if limit_s else None
    sampling = asyncio.create_task(_sample(watchdog, limit_s))
    try:
        yield
    finally:
        sampling.cancel()
        await settled(sampling)
        if watchdog is not None:
            watchdog.close()


async def _sample(watchdog: "_Watchdog | None", limit_s: float) -> None:
    while True:
        begin = time.perf_counter()
        await asyncio.sleep(LAG_SAMPLE_S)
        lag_s = max(0.0, time.perf_counter() - begin - LAG_SAMPLE_S)
        event_loop_lag_seconds.observe(lag_s)
        if watchdog is not None:
            watchdog.pat()
            if lag_s > limit_s:
                log.error("loop.stalled", seconds=round(lag_s, 2))


class _Watchdog:
    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._pats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="june-watchdog", daemon=True)
        self._thread.start()

    def pat(self) -> None:
        """Note that the loop runs."""
        self._pats += 1

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        seen = looks = 0
        while not self._ended.wait(self._limit_s / LOOKS):
            looks = looks + 1 if self._pats == seen else 0
            seen = self._pats
            if looks == 0:  # a C thread, which does not need Python's lock
                faulthandler.dump_traceback_later(4 * self._limit_s, exit=True, file=STDERR)
            elif looks == LOOKS:  # not an event, since the code that blocks the loop may hold the log's lock
                faulthandler.dump_traceback(STDERR)
            elif looks == 2 * LOOKS:
                os._exit(STANDSTILL_STATUS)
