"""The bandwidth of memory, which limits a language model: each step reads all of its weights once."""

import asyncio
import time

import numpy as np

from june.workers import ModelThread, StopFlag

ARRAY_BYTES = 256 * 2**20
"""Size of each thread's array: far larger than any cache."""
PASSES = 5


async def memory_bandwidth_bytes_per_s(threads: int) -> float:
    """Return the bytes per second that the threads read from memory together: the best of several passes.

    A language model mostly reads. Each pass sums 64-bit integers, the cheapest computation with which numpy
    reads a whole array.
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
