"""What replaces llama.cpp's functions on a CPU, as Python loads and calls it; see README.md beside it."""

import ctypes
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from june import kernels

LLAMA_CPP_PYTHON = "0.3.36"
"""The only version whose functions are replaced: their arguments are not a public interface."""


def usable_library() -> Path | None:
    """Return the first library that was compiled and fits this CPU and this llama.cpp; None: none does."""
    if version("llama-cpp-python") != LLAMA_CPP_PYTHON:
        return None
    return next((kernel.library for kernel in kernels.LLM if kernel.is_usable()), None)


class Draw(ctypes.Structure):
    """How the next token of one answer is drawn, and then that token; draw.hpp describes the fields."""

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
    """Load the library, if one is usable, so that llama.cpp finds its functions first.

    llama.cpp must not be loaded yet. Until `use` is called, llama.cpp still computes everything itself.
    """
    global _library  # noqa: PLW0603 - what is loaded stays
    assert "llama_cpp" not in sys.modules  # noqa: S101 - it would have found its own functions
    library = usable_library()
    if library is not None:
        _library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        _library.june_draw_tokens.argtypes = [pointer, number, pointer, number, pointer]
        _library.june_draw_tokens.restype = None


def use(*, wanted: bool) -> bool:
    """Let the kernels compute from now on, or llama.cpp itself.

    Returns:
        Whether the kernels do: they are wanted, loaded and still usable.
    """
    if _library is None or usable_library() is None:
        return False
    _library.june_use_kernels(ctypes.c_bool(wanted))
    return wanted


def drawer() -> Callable[..., None] | None:
    """Return a function that draws a token from each row of logits; None where no library is loaded.

    It takes the address of the logits and the length of a row, an array of pointers to `Draw`, of which any
    may be null, and its length, and the address of `llama_sampler_apply`. Penalties are written into the
    logits.
    """
    return _library.june_draw_tokens if _library is not None else None


_library: ctypes.CDLL | None = None
