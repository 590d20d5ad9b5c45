"""Pauses before a failed operation is tried again."""

import random
from dataclasses import dataclass

MAX_DOUBLINGS = 64
"""More would overflow a float; every pause has reached its longest by then."""


@dataclass(frozen=True, slots=True)
class BackOff:
    """Pauses that grow with each failure in a row, up to a longest one.

    It only computes: the caller counts the failures, sleeps, and decides when to give up.

    Attributes:
        first_s: the pause after the first failure, in seconds.
        longest_s: no pause is longer, unless the other side asks for it.
        factor: how much longer each pause is than the one before.
        spread: up to this share of the pause is added at random, so that operations that failed together are
            not repeated together; 0: none.
    """

    first_s: float
    longest_s: float
    factor: float = 2.0
    spread: float = 0.0

    def pause_s(self, failures: int, retry_after_s: float | None = None) -> float:
        """Return the seconds to wait after this many failures in a row, which is at least 1.

        Args:
            failures: the number of failures in a row, including the last one.
            retry_after_s: how long the server asks to wait, if it does; the pause is never shorter.
        """
        grown_s = self.first_s * self.factor ** min(failures - 1, MAX_DOUBLINGS)
        pause_s = min(grown_s, self.longest_s)
        added = random.random() * self.spread  # noqa: S311 - guards nothing
        return max(pause_s, retry_after_s or 0.0) + pause_s * added
