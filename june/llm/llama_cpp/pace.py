"""Decides how many tokens go into a batch, by how fast this machine computes them."""

from collections import deque

SMALLEST_CHUNK_TOKENS = 32
"""Fewer prompt tokens in a batch cost more each: SmolLM2 as Q8_0 on 2 cores."""
PAIR = 2
PAIRS = 8
"""Batches of two that are timed before one is split."""


class PrefillPace:
    """Decides how many prompt tokens go into a batch.

    A whole chunk, while nobody writes; as many as are read within the longest pause, while somebody does.

    Args:
        chunk_tokens: the largest chunk.
        pause_s: how long a chunk may hold up those who write.
    """

    def __init__(self, chunk_tokens: int, pause_s: float) -> None:
        self._chunk_tokens = chunk_tokens
        self._pause_s = pause_s
        self._token_s = 0.0

    def chunk_tokens(self, *, is_writing: bool) -> int:
        """Return the chunk for the next batch; a small one as long as nothing was read."""
        if not is_writing:
            return self._chunk_tokens
        if not self._token_s:
            return min(SMALLEST_CHUNK_TOKENS, self._chunk_tokens)
        fitting = int(self._pause_s / self._token_s) // SMALLEST_CHUNK_TOKENS * SMALLEST_CHUNK_TOKENS
        return min(max(fitting, SMALLEST_CHUNK_TOKENS), self._chunk_tokens)

    def decoded(self, batch_tokens: int, seconds: float) -> None:
        """Note how long a batch took; small ones say nothing about reading, which takes less a token."""
        if batch_tokens >= SMALLEST_CHUNK_TOKENS:
            token_s = seconds / batch_tokens
            self._token_s = 0.7 * self._token_s + 0.3 * token_s if self._token_s else token_s


class PairPace:
    """Decides whether two answers get their next tokens in one batch, or one after the other.

    Together is faster, as a rule. But llama.cpp computes one token of a batch by other kernels than two, and
    for some number formats and CPUs the latter take more than twice as long: SmolLM2 as Q8_0 7.4 and 21 ms.
    The shortest times count, since whatever else runs on the machine makes a batch longer.
    """

    def __init__(self) -> None:
        self._one_s: deque[float] = deque(maxlen=PAIRS)
        self._two_s: deque[float] = deque(maxlen=PAIRS)

    def splits(self, parts: int, batch_tokens: int) -> bool:
        """Return whether a batch of so many parts is better decoded part by part."""
        is_pair = parts == batch_tokens == PAIR
        is_timed = len(self._one_s) == len(self._two_s) == PAIRS
        return is_pair and is_timed and PAIR * min(self._one_s) < min(self._two_s)

    def decoded(self, batch_tokens: int, seconds: float) -> None:
        """Note how long a batch took."""
        if batch_tokens == 1:
            self._one_s.append(seconds)
        elif batch_tokens == PAIR:
            self._two_s.append(seconds)
