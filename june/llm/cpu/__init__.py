"""june's own kernels for what takes a language model most of its time on a CPU.

These are products of weights in Q8_0 or Q4_1 with a few tokens or a prompt, and attention over the cache.
llama.cpp calls functions of its own for them. cpu.cpp has functions of the same names, which the dynamic
linker finds first if they were loaded first; what they do not compute, they pass on.
"""

import ctypes
import sys
from importlib.metadata import version
from pathlib import Path

from june import hardware, kernels

LIBRARY = Path(__file__).with_name("cpu.kernel")
CPU_FLAGS = hardware.AVX512 | {"avx512_vnni"}
"""What the Makefile lets the compiler use beyond AVX2."""
LLAMA_CPP_PYTHON = "0.3.36"
"""The only version whose functions are replaced: what they are called with is no public interface."""


def is_usable() -> bool:
    """Whether the library was compiled, and this machine and llama.cpp go with it."""
    return version("llama-cpp-python") == LLAMA_CPP_PYTHON and kernels.is_usable(LIBRARY, CPU_FLAGS)


def load() -> None:
    """Be found by llama.cpp, which must not be loaded yet; until `use`, it computes everything itself."""
    assert "llama_cpp" not in sys.modules  # noqa: S101 - it would have found its own functions
    if is_usable():
        ctypes.CDLL(str(LIBRARY), mode=ctypes.RTLD_GLOBAL)


def use(*, wanted: bool) -> bool:
    """From now on let the kernels compute, if they can, or llama.cpp itself; whether the kernels do."""
    if not is_usable():
        return False
    ctypes.CDLL(str(LIBRARY)).cpu_use(ctypes.c_bool(wanted))
    return wanted
