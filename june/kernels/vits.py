"""What speaks, as Python loads and calls it: the flow and the vocoder of a Piper voice, by vits.cpp.

They are computed in bfloat16, which CPUs with AVX512-BF16 (Zen 4, Sapphire Rapids and later) do at twice the
rate of ONNX Runtime's float32.
"""

import ctypes
import threading
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.ctypeslib import ndpointer
from numpy.typing import NDArray

from june import kernels

TILE_CHANNELS = 32
"""vits.cpp computes so many channels together; each array has a multiple of them."""
REACH_MAX = 4
"""Rows on either side that vits.cpp keeps free around what a convolution of the flow, or the first, reads."""


class StoppedError(Exception):
    """The kernel was told to stop."""


class FlowAndVocoder:
    """The flow and the vocoder of one voice.

    Args:
        plan: their shape, as vits.cpp reads it.
        weights: the weights of each layer in turn, in ONNX's order.
        samples_per_latent: how many samples the vocoder makes of one latent.
        threads: CPU threads of one call.

    Raises:
        OSError: the library cannot be loaded.
    """

    def __init__(
        self,
        plan: Sequence[int],
        weights: Sequence[NDArray[np.float32]],
        samples_per_latent: int,
        threads: int,
    ) -> None:
        self._library = _load(kernels.VOICE.library)
        self._samples_per_latent = samples_per_latent
        self._threads = threads
        self._lock = threading.Lock()
        self._running = 0
        flat = np.concatenate([array.ravel() for array in weights], dtype=np.float32)
        self._voice = ctypes.c_void_p(self._library.vits_new(np.array(plan, np.int32), flat))
        weakref.finalize(self, self._library.vits_free, self._voice)

    def run(self, latents: NDArray[np.float32], stop: ctypes.c_int32) -> NDArray[np.float32]:
        """Return samples from -1 to 1, float32 (n_samples,).

        The call blocks, without the GIL; several may run at once.

        Args:
            latents: what ONNX Runtime computed of one sentence, float32 (n_channels, n_latents).
            stop: another thread sets it to 1 to end the call.

        Raises:
            StoppedError: `stop` ended it.
        """
        n_latents = latents.shape[1]
        samples = np.empty(n_latents * self._samples_per_latent, np.float32)
        arguments = np.ascontiguousarray(latents), n_latents, self._share(), samples, ctypes.byref(stop)
        try:
            if not self._library.vits_run(self._voice, *arguments):
                raise StoppedError
        finally:
            with self._lock:
                self._running -= 1
        return samples

    def _share(self) -> int:
        """Return the threads of a call that begins now: other calls need cores, too."""
        with self._lock:
            self._running += 1
            return max(1, self._threads // self._running)


@cache
def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    integers, floats = ndpointer(np.int32, flags="C"), ndpointer(np.float32, flags="C")
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.vits_new.argtypes = [integers, floats]
    library.vits_new.restype = pointer
    library.vits_run.argtypes = [pointer, floats, number, number, floats, ctypes.POINTER(number)]
    library.vits_run.restype = ctypes.c_bool
    library.vits_free.argtypes = [pointer]
    library.vits_free.restype = None
    return library
