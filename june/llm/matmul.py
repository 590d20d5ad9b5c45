"""june's own kernel for what takes a language model most of its time: products of weights and tokens.

With llama.cpp's own code for Q8_0 and Q4_1, the few tokens that several answers need at once take two to
three times as long as with matmul.cpp, and a prompt twice as long. For a product llama.cpp calls a function
`llamafile_sgemm`. matmul.cpp has one of that name, which the dynamic linker finds first if it was loaded
first; what it does not compute, it passes on.
"""

import ctypes
from importlib.metadata import version
from pathlib import Path

from june import hardware, kernels

LIBRARY = Path(__file__).with_suffix(".kernel")
CPU_FLAGS = hardware.AVX512 | {"avx512_vnni"}
"""What the Makefile lets the compiler use beyond AVX2."""
LLAMA_CPP_PYTHON = "0.3.36"
"""The only version whose function is replaced: what it is called with is no public interface."""


def is_usable() -> bool:
    """Whether the library was compiled, and this machine and llama.cpp go with it."""
    return version("llama-cpp-python") == LLAMA_CPP_PYTHON and kernels.is_usable(LIBRARY, CPU_FLAGS)


def load() -> None:
    """Be found by llama.cpp, which is loaded after this call; until `use`, it computes everything itself."""
    if is_usable():
        ctypes.CDLL(str(LIBRARY), mode=ctypes.RTLD_GLOBAL)


def use(*, wanted: bool) -> bool:
    """From now on let the kernel compute, if it can, or llama.cpp itself; whether the kernel does."""
    if not is_usable():
        return False
    ctypes.CDLL(str(LIBRARY)).matmul_use(ctypes.c_bool(wanted))
    return wanted
