"""june's figures of this machine, compared with the system's own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from june import hardware
from june.sections import PROJECT_ROOT

CORES = len(os.sched_getaffinity(0))


def run(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", f"import os\nfrom june import hardware\n{code}"]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | environment, cwd=PROJECT_ROOT
    )
    return done.stdout.strip()


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has an NVIDIA driver")
def test_a_machine_without_a_driver_has_no_gpu() -> None:
    assert hardware.find_gpus() == ()


@pytest.mark.parametrize(
    ("setting", "visible"),
    [(None, True), ("", False), ("-1", False), ("0", False), ("1", True), ("0, 1", True), ("GPU-8f", True)],
)
def test_cuda_visible_devices_hides_gpus(setting: str | None, *, visible: bool) -> None:
    assert hardware.is_visible(1, "GPU-8f1e", setting) is visible


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("50000 100000", 1),
        ("100001 100000", min(2, CORES)),
        ("max 100000", CORES),
        (f"{CORES + 5}00000 100000", CORES),
    ],
)
def test_a_cpu_quota_counts_as_cores_rounded_up_and_adds_none(limit: str, cores: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert hardware.cpu_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("limit", "available"), [("500000000\n", 320_000_000), ("1000\n", 0), ("max\n", None)]
)
def test_a_memory_limit_counts_less_what_is_used_and_cannot_be_given_up(
    limit: str, available: int | None, tmp_path: Path
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("200000000\n")
    (tmp_path / "memory.stat").write_text("active_file 50000000\ninactive_file 20000000\n")
    found = hardware.available_memory_bytes(tmp_path)
    assert found == available if available is not None else found > 500_000_000


def test_a_process_bound_to_one_core_has_one_core() -> None:
    assert run("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nprint(hardware.cpu_cores())") == "1"


def test_available_memory_is_less_than_all_of_it() -> None:
    total = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert total is not None
    assert 10_000_000 < hardware.available_memory_bytes() < int(total[1]) * 1024


def test_peak_memory_remembers_what_was_freed() -> None:
    code = "before = hardware.peak_memory_bytes()\nblock = b'x' * 64_000_000\ndel block\n"
    assert int(run(f"{code}print(hardware.peak_memory_bytes() - before)")) > 60_000_000


def test_a_cuda_library_in_a_pip_package_is_found(tmp_path: Path) -> None:
    shared_object = re.search(r"/\S+/libm\.so\S*", Path("/proc/self/maps").read_text())
    assert shared_object is not None
    missing = run("print(*hardware.missing_cuda_libraries())")
    folder = tmp_path / "nvidia" / "cublas" / "lib"
    folder.mkdir(parents=True)
    shutil.copy(shared_object[0], folder / "libcublas.so.12")
    found = run("print(*hardware.missing_cuda_libraries())", PYTHONPATH=str(tmp_path))
    assert found.split() == [name for name in missing.split() if name != "libcublas.so.12"]
