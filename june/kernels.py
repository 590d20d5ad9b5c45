"""june's own kernels: C++ libraries, compiled by `make install`, for CPUs with the instructions they need."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

from june import hardware
from june.telemetry import log

PACKAGE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Kernel:
    """One of them.

    Attributes:
        library: its file; the name ends in .kernel, since one in .so would be a module of Python's.
        cpu_flags: what the Makefile lets the compiler use, as `hardware.cpu_flags` names it.
    """

    library: Path
    cpu_flags: frozenset[str]

    @property
    def runs_here(self) -> bool:
        """Whether this CPU has the instructions."""
        return hardware.cpu_flags() >= self.cpu_flags

    def is_usable(self) -> bool:
        """Whether it was compiled, and this machine runs it."""
        if not self.runs_here or not self.library.is_file():
            return False
        try:
            ctypes.CDLL(str(self.library))
        except OSError as error:
            log.warning("kernel.unusable", detail=str(error))
            return False
        return True


LLM = (
    Kernel(PACKAGE / "llm/cpu/cpu.avx512.kernel", hardware.AVX512 | {"avx512_vnni"}),
    Kernel(PACKAGE / "llm/cpu/cpu.avx2.kernel", hardware.AVX2),
)
"""For language models, the faster first."""
VOICE = Kernel(PACKAGE / "tts/vits.kernel", hardware.AVX512 | {"avx512_bf16"})
