"""june's own kernels for what takes a language model most of its time on a CPU.

These are products of weights in Q8_0 or Q4_1 with a few tokens or a prompt, and attention over the cache.
llama.cpp calls functions of its own for them. cpu.cpp has functions of the same names, which the dynamic
linker finds first if they were loaded first; what they do not compute, they pass on. A third kernel draws
the next token of each answer.
"""

import ctypes
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from june import kernels

LLAMA_CPP_PYTHON = "0.3.36"
"""The only version whose functions are replaced: what they are called with is no public interface."""


def usable_library() -> Path | None:
    """The first that was compiled, and that this machine and llama.cpp go with."""
    if version("llama-cpp-python") != LLAMA_CPP_PYTHON:
        return None
    return next((kernel.library for kernel in kernels.LLM if kernel.is_usable()), None)


class Draw(ctypes.Structure):
    """How one answer's next token is drawn, and then that token; draw.hpp says what the fields are."""

    _fields_ = (
        ("never", ctypes.c_void_p),
        ("written", ctypes.c_void_p),
        ("never_count", ctypes.c_int64),
        ("written_count", ctypes.c_int64),
        ("sampler", ctypes.c_void_p),
        ("repeat", ctypes.c_float),
        ("presence", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("token", ctypes.c_int32),
    )


def load() -> None:
    """Be found by llama.cpp, which must not be loaded yet; until `use`, it computes everything itself."""
    global _library  # noqa: PLW0603 - what is loaded stays
    assert "llama_cpp" not in sys.modules  # noqa: S101 - it would have found its own functions
    library = usable_library()
    if library is not None:
        _library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        _library.cpu_draw.argtypes = [pointer, number, pointer, number, pointer]
        _library.cpu_draw.restype = None


def use(*, wanted: bool) -> bool:
    """From now on let the kernels compute, if they can, or llama.cpp itself; whether the kernels do."""
    if _library is None or usable_library() is None:
        return False
    _library.cpu_use(ctypes.c_bool(wanted))
    return wanted


def drawer() -> Callable[..., None] | None:
    """A function that draws a token from each row of logits; None: there is none.

    It takes the address of the logits and the length of a row, an array of pointers to `Draw`, of which any
    may be null, and its length, and the address of `llama_sampler_apply`. Penalties are written into the
    logits.
    """
    return _library.cpu_draw if _library is not None else None


_library: ctypes.CDLL | None = None
