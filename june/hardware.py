"""This machine's cores, memory, GPUs and the CUDA libraries that speech to text needs.

Linux only: the figures come from /proc, cgroup v2 and, for NVIDIA GPUs, the driver's own library NVML.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path

import pynvml

from june.errors import JuneError, ModelLoadError

# The threads of an engine wait for one another hundreds of times per token, and libgomp lets them spin. If
# another program uses one of the cores, spinning is wasted: 40 tokens on 2 cores took 2 to 83 s. With this
# count the threads soon sleep, and 40 tokens take 0.9 s. libgomp reads the variable when it is loaded, and no
# backend loads it before its package has imported this module. The other policies make libgomp spin only 100
# times once it has more threads than cores, even idle ones: then 40 tokens take 0.4 s instead of 0.3.
os.environ.setdefault("GOMP_SPINCOUNT", "300")
os.environ.setdefault("OMP_WAIT_POLICY", "active")

M_ARENA_MAX = -8
"""The constant of glibc's malloc.h."""

CUDA_LIBRARIES = ("libcuda.so.1", "libcublas.so.12")
"""The CUDA libraries that the x86_64 wheel of ctranslate2 4.8 opens at run time; it names no others."""


AVX2 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
"""What x86-64-v3 adds to x86-64-v2, in the names of `cpu_flags`."""

AVX512 = AVX2 | frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})
"""What x86-64-v4 adds to x86-64-v2."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU. With `unified_memory` it shares the machine's memory, which the bytes then describe."""

    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]
    unified_memory: bool


def find_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves visible, in NVML's order; empty without a driver.

    Raises:
        ModelLoadError: there is a driver, but it does not answer.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        pynvml.nvmlInit()
        try:
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
            ]
            return tuple(
                _gpu(handle)
                for index, handle in enumerate(handles)
                if is_visible(index, pynvml.nvmlDeviceGetUUID(handle), visible)
            )
        finally:
            pynvml.nvmlShutdown()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except pynvml.NVMLError as error:
        raise ModelLoadError(f"The NVIDIA driver does not answer: {error}.") from error


def is_visible(index: int, uuid: str, setting: str | None) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES=`setting`, a list of indices or UUID prefixes, shows a GPU."""
    if setting is None:
        return True
    entries = [entry.strip() for entry in setting.split(",")]
    return any(entry == str(index) or (entry and uuid.startswith(entry)) for entry in entries)


def _gpu(handle: object) -> Gpu:
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        unified, total, free = False, int(memory.total), int(memory.free)
    except pynvml.NVMLError_NotSupported:  # a GPU without its own memory, such as the GB10
        unified, total, free = True, _kilobytes("/proc/meminfo", "MemTotal"), available_memory_bytes()
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(pynvml.nvmlDeviceGetName(handle), total, free, (major, minor), unified)


@contextmanager
def openmp_bound_to_cores() -> Iterator[None]:
    """Make OpenMP keep each thread on its own core, for a library that the block loads.

    Linux moves threads that wake one another to one core: on 2 cores, half of the processes had both threads
    of llama.cpp on the same core for their whole life and took 1.3 s instead of 0.5 s.
    """
    own = os.sched_getaffinity(0)
    before = os.environ.get("OMP_PROC_BIND")
    os.environ.setdefault("OMP_PROC_BIND", "true")
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)  # libgomp has also bound the thread that loaded it
        if before is None:
            del os.environ["OMP_PROC_BIND"]


def keep_on_first_core(threads: int) -> None:
    """Keep the calling thread on its first core if its engine's `threads` use all cores anyway."""
    cores = sorted(os.sched_getaffinity(os.getpid()))
    if threads >= len(cores):
        os.sched_setaffinity(0, cores[:1])


def cpu_cores(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may use: its affinity, or its cgroup's CPU quota, rounded up."""
    cores = len(os.sched_getaffinity(os.getpid()))
    for limit in _limits(cgroup_root, "cpu.max"):  # "QUOTA PERIOD" in microseconds, or "max PERIOD"
        quota, period = limit.read_text().split()
        if quota != "max":
            cores = min(cores, ceil(int(quota) / int(period)))
    return cores


def cpu_flags() -> frozenset[str]:
    """Return the first core's instruction sets in the names of /proc/cpuinfo on x86-64; else none."""
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return frozenset(flags[1].split() if flags else ())


def _limits(cgroup_root: Path, name: str) -> Iterator[Path]:
    """Yield the files of this name in the cgroup of this process and in its parents."""
    own = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    group = cgroup_root / (own[1] if own else "")
    for folder in (group, *group.parents):
        if folder.is_relative_to(cgroup_root) and (folder / name).is_file():
            yield folder / name


def available_memory_bytes(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory available without swapping (MemAvailable), or what the cgroup's limit leaves if less.

    The cgroup's usage includes the file cache, which is not counted here since the kernel frees it first.
    """
    available_bytes = _kilobytes("/proc/meminfo", "MemAvailable")
    for limit in _limits(cgroup_root, "memory.max"):
        if (most := limit.read_text().strip()) != "max":
            used_bytes = int((limit.parent / "memory.current").read_text())
            cache = re.search(
                r"^inactive_file (\d+)$", (limit.parent / "memory.stat").read_text(), re.MULTILINE
            )
            free_bytes = int(most) - used_bytes + (int(cache[1]) if cache else 0)
            available_bytes = min(available_bytes, max(free_bytes, 0))
    return available_bytes


def share_malloc_arenas() -> None:
    """Let all threads share two arenas of glibc: one arena for each thread keeps 20 MB more."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)


def return_freed_memory() -> None:
    """Return freed memory to the system, which glibc would keep: about 40 MB after loading models."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process (VmHWM)."""
    return _kilobytes("/proc/self/status", "VmHWM")


def _kilobytes(file: str, key: str) -> int:
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise JuneError(f"{file} has no line {key}.")


def missing_cuda_libraries() -> tuple[str, ...]:
    """Return those of `CUDA_LIBRARIES` that cannot be loaded.

    Searches the loader's path and the pip packages nvidia-*-cu12. A library that is found stays loaded, so
    that ctranslate2 finds it even in such a package.
    """
    return tuple(name for name in CUDA_LIBRARIES if not _load(name))


def _load(library: str) -> bool:
    packages = find_spec("nvidia")
    folders = packages.submodule_search_locations if packages else None
    copies = [str(copy) for folder in folders or () for copy in Path(folder).glob(f"*/lib/{library}")]
    for candidate in (library, *copies):
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False
