"""Each stage of a turn is measured, and ends with an error at its time limit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from june.conversation.failing import naming_stage
from june.errors import Stage, StageError
from june.messages import ModelDescription
from june.telemetry import Facts, stage

CODEC_TIMEOUT_S = 30.0
"""Time limit of decoding a recording, and of encoding a sentence."""


class Described(Protocol):
    """A model that says what it is."""

    def describe(self) -> ModelDescription:
        """Return the model's name and backend, and more."""


@asynccontextmanager
async def limited(
    name: Stage, limit_s: float, timings_s: dict[str, float], **facts: str | float
) -> AsyncIterator[Facts]:
    """Measure the block as a stage; the block may add to the facts that it is given.

    Args:
        name: of the stage.
        limit_s: its time limit.
        timings_s: seconds by stage, which the stage's are added to.
        facts: what is known of it already.

    Raises:
        StageError: the block took longer than its limit, or failed unexpectedly.
    """
    with naming_stage(name), stage(name, timings_s, **facts) as known:
        try:
            async with asyncio.timeout(limit_s):
                yield known
        except TimeoutError:
            detail = f"Stage {name} took longer than its limit of {limit_s:g} s."
            raise StageError(name, "timeout", detail) from None


def codec_limited(
    name: Stage, timings_s: dict[str, float], **facts: str | float
) -> AbstractAsyncContextManager[Facts]:
    """Measure and limit the block like `limited`, with the limit of a codec."""
    return limited(name, CODEC_TIMEOUT_S, timings_s, **facts)


def named(model: Described) -> dict[str, str]:
    """Return the facts of a stage in which a model computes."""
    description = model.describe()
    return {"model": description.name, "backend": description.backend}
