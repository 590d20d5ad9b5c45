"""Which stages fail in turn after turn, for a reason of june's own.

One failure may be an accident. A stage that failed in each of the newest turns that came to it is out of
order, and june is not well until a turn passes it.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from june.errors import JuneError, Stage, StageError
from june.telemetry import where

FAILURES = 3
"""So many turns, one after the other, make a stage one that fails."""
TURN = "turn"
"""The name of what fails outside of every stage."""


@dataclass(frozen=True, slots=True)
class FailingStage:
    """A stage that failed in each of the newest turns that came to it.

    Attributes:
        stage: its name, such as "decode".
        code: what failed last, a key of `june.errors.SENTENCES`.
        failures: how many turns failed there, one after the other.
        since_s: when the first of them did, in seconds since 1970.
    """

    stage: str
    code: str
    failures: int
    since_s: float


class TurnRecord:
    """What became of the newest turns.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._failed: dict[str, FailingStage] = {}

    def passed(self, stages: Iterable[str]) -> None:
        """Note that a turn passed these stages."""
        for stage in stages:
            self._failed.pop(stage, None)

    def failed(self, stage: str, code: str) -> None:
        """Note that a turn failed in this stage for a reason of june's own."""
        known = self._failed.get(stage) or FailingStage(stage, code, 0, self._clock())
        self._failed[stage] = replace(known, code=code, failures=known.failures + 1)

    def refused(self, error: StageError) -> None:
        """Note that a turn ended with this error, whatever its cause."""
        if error.is_own:
            self.failed(error.stage, error.code)

    def failing(self) -> list[FailingStage]:
        """Return the stages that fail; none if june is well."""
        return [each for each in self._failed.values() if each.failures >= FAILURES]


@contextmanager
def naming_stage(name: Stage) -> Iterator[None]:
    """Let an unexpected failure of the block end as that stage's, with the code "internal".

    Raises:
        StageError: the block raised something other than a `JuneError`.
    """
    try:
        yield
    except JuneError:
        raise
    except Exception as error:  # a stage's boundary: what it was stands in the detail
        raise StageError(name, "internal", f"{type(error).__name__} at {where(error)}") from error
