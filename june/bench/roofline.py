"""What a machine's memory can do at most: each step of a language model reads all of its weights once."""

import asyncio
import time

import numpy as np

from june.workers import ModelThread, StopFlag

ARRAY_BYTES = 256 * 2**20
"""Of each thread: far more than any cache holds."""
PASSES = 5


async def memory_bandwidth_bytes_per_s(threads: int) -> float:
    """Bytes that so many threads read from memory in a second together: the best of some passes over arrays.

    Reading is what a language model does. The sum of 64-bit integers takes less of a core than anything
    else that numpy reads an array for.
    """
    pool = ModelThread("llm", threads=threads)
    try:
        arrays = [np.ones(ARRAY_BYTES // 8, dtype=np.int64) for _ in range(threads)]
        best_s = float("inf")
        for _ in range(PASSES):
            begin = time.perf_counter()
            await asyncio.gather(*(pool.run(_read, array) for array in arrays))
            best_s = min(best_s, time.perf_counter() - begin)
        return threads * ARRAY_BYTES / best_s
    finally:
        await pool.close()


def _read(stop: StopFlag, array: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> int:
    del stop
    return int(array.sum())
