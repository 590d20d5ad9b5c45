"""Loads llama-cpp-python; every module of this package takes `llama_cpp` from here.

june's own functions must be loaded before llama.cpp, to be found in the place of its own, and OpenMP reads
how it is set up when the library loads it.
"""

from june import hardware
from june.kernels import llama_overrides

with hardware.openmp_bound_to_cores():
    llama_overrides.load()
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

__all__ = ["Jinja2ChatFormatter", "gpu_offload_supported", "llama_cpp"]


def gpu_offload_supported() -> bool:
    """Return whether llama.cpp was built for a GPU, and finds one."""
    return bool(llama_cpp.llama_supports_gpu_offload())
