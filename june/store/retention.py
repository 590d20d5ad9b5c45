"""Retention: delete once a day what is older than the settings say."""

import asyncio
import math
from collections.abc import Awaitable, Callable

from june.errors import JuneError
from june.sections import StoreSettings
from june.store.upkeep import Upkeep
from june.telemetry import log

DAY_S = 86_400.0
RETRY_S = 600.0
"""Pause after a failure to delete."""


async def keep_tidy(
    upkeep: Upkeep,
    settings: StoreSettings,
    *,
    keep_turns: int,
    forget: Callable[[float, frozenset[str]], Awaitable[None]],
) -> None:
    """Delete what is older than the settings say, now and once a day, until cancelled.

    Args:
        upkeep: deletes it.
        settings: how old messages and recordings may become.
        keep_turns: see `Upkeep.prune`.
        forget: called after each deletion with the age of messages in seconds and the chats that lost a
            message; it deletes what is stored of them elsewhere.
    """
    age_s = settings.keep_messages_days * DAY_S or math.inf
    chats: frozenset[str] = frozenset()
    while True:
        try:
            pruned = await upkeep.prune(
                messages_age_s=age_s,
                audio_age_s=settings.keep_audio_days * DAY_S,
                keep_turns=keep_turns,
            )
            chats |= pruned.chats
            await forget(age_s, chats)
            chats = frozenset()
        except JuneError as error:  # june goes on; if the file is lost, its other users end june
            log.error("pruning.failed", detail=str(error))
            await asyncio.sleep(RETRY_S)
        else:
            log.info("store.pruned", messages=pruned.messages, voices=pruned.voices)
            await asyncio.sleep(DAY_S)
