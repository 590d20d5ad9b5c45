"""june's own kernels: C++ libraries for CPUs with the instructions that they need.

`llama_overrides` replaces functions of llama.cpp, and `vits` speaks. `make kernels` compiles them. README.md
in this folder says how the replacement works, what it is pinned to, and how to take it out.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

from june import hardware
from june.telemetry import log

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Kernel:
    """One compiled library.

    Attributes:
        library: its file. The name ends in .kernel, since Python would take a name in .so for a module.
        cpu_flags: the instruction sets that the Makefile lets the compiler use, as `hardware.cpu_flags` names
            them.
    """

    library: Path
    cpu_flags: frozenset[str]

    @property
    def runs_here(self) -> bool:
        """Whether this CPU has the instructions."""
        return hardware.cpu_flags() >= self.cpu_flags

    def is_usable(self) -> bool:
        """Return whether the library was compiled and can be loaded on this machine."""
        if not self.runs_here or not self.library.is_file():
            return False
        try:
            ctypes.CDLL(str(self.library))
        except OSError as error:
            log.warning("kernel.refused", detail=str(error))
            return False
        return True


LLM = (
    Kernel(FOLDER / "llama_overrides.avx512.kernel", hardware.AVX512 | {"avx512_vnni"}),
    Kernel(FOLDER / "llama_overrides.avx2.kernel", hardware.AVX2),
)
"""For language models, the faster first."""
VOICE = Kernel(FOLDER / "vits.kernel", hardware.AVX512 | {"avx512_bf16"})
