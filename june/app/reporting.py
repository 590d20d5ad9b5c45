"""Gathers what `/status` tells: june's state for everyone, and its history for owners."""

import time
from collections.abc import Mapping
from datetime import datetime, timedelta

from june import __version__, hardware
from june.app.ready import ReadyJune
from june.chat import Adapter
from june.chat.status import HOUR_S, Details, Status, errors_since_start, status_text
from june.errors import ModelLoadError
from june.hardware import Gpu
from june.messages import Platform
from june.store import Store
from june.workers import run_aside

DAYS = 30


class Reporter:
    """Answers `/status`.

    Args:
        store: what waits, and what was used.
        adapters: the apps that june is on.
    """

    def __init__(self, store: Store, adapters: Mapping[Platform, Adapter]) -> None:
        self._store = store
        self._adapters = adapters
        self._started_s = time.monotonic()

    async def status(self, ready: ReadyJune | None, *, for_owner: bool) -> str:
        """Return Markdown on how june is; with details for an owner.

        Args:
            ready: None until the models are loaded.
            for_owner: whether an owner asks.
        """
        status = Status(
            __version__,
            tuple(ready.descriptions()) if ready is not None else (),
            await self._store.history.waiting(),
            ready.dispatcher.last_timings_s if ready is not None else {},
        )
        return status_text(status, await self._details() if for_owner else None)

    async def _details(self) -> Details:
        gpus, gpu_problem = await _find_gpus()
        now = datetime.now().astimezone()
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        use = await self._store.history.use(
            day_since_s=today.timestamp(), month_since_s=(now - timedelta(days=DAYS)).timestamp()
        )
        return Details(
            apps={platform: adapter.health() for platform, adapter in self._adapters.items()},
            last_hour=await self._store.history.stats(since_s=now.timestamp() - HOUR_S),
            up_s=time.monotonic() - self._started_s,
            errors=errors_since_start(),
            gpus=gpus,
            gpu_problem=gpu_problem,
            use=tuple(use),
        )


async def _find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs, and the problem that kept them from being found ("" for none)."""
    try:
        return await run_aside(lambda _: hardware.find_gpus()), ""
    except ModelLoadError as error:
        return (), str(error)
