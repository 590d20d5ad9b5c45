"""june's own kernels: C++ libraries, compiled by `make install`, for CPUs with the instructions they need."""

import ctypes
from collections.abc import Set as AbstractSet
from pathlib import Path

from june import hardware
from june.telemetry import log


def is_usable(library: Path, cpu_flags: AbstractSet[str]) -> bool:
    """Whether a library was compiled, and this machine runs it.

    Args:
        library: its file; the name ends in .kernel, since one in .so would be a module of Python's.
        cpu_flags: the instruction sets it is compiled for.
    """
    if not library.is_file() or not hardware.cpu_flags() >= cpu_flags:
        return False
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        log.warning("kernel.unusable", detail=str(error))
        return False
    return True
