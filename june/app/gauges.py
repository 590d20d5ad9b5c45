"""Gauges that somebody has to read from time to time: what waits, and how much disk is free."""

import asyncio
import shutil
from pathlib import Path

from june.errors import JuneError
from june.store import Store
from june.telemetry import (
    count_error,
    disk_free_bytes,
    queue_messages,
    queue_oldest_new_age_seconds,
    report_repeats,
)

SAMPLE_S = 5.0


async def keep_gauges(store: Store, folder: Path) -> None:
    """Update the gauges every 5 s, until cancelled.

    Args:
        store: what waits in it.
        folder: on the disk whose free space is told.
    """
    while True:
        report_repeats()
        try:
            disk_free_bytes.set(shutil.disk_usage(folder).free)
            waiting = await store.history.waiting()
        except (JuneError, OSError) as error:  # whoever needs the file says so
            count_error("sample", type(error).__name__)
        else:
            for status in ("new", "processing", "unsent", "sending"):
                queue_messages.labels(status).set(getattr(waiting, status))
            queue_oldest_new_age_seconds.set(waiting.oldest_new_s)
        await asyncio.sleep(SAMPLE_S)
