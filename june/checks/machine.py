"""The machine that june would run on: Python, libraries, container, user, rights, clock."""

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from june import kernels, llm, stt, tts
from june.checks import Finding
from june.models.backends import Backend

OLDEST_PYTHON = (3, 11)
RELEASED_S = 1_764_000_000
"""November 2025, before june's first release: a clock that shows less is wrong."""
CONTAINER_MARKS = {"/.dockerenv": "Docker", "/run/.containerenv": "Podman"}


def python() -> Finding:
    """The interpreter."""
    found = f"Python {platform.python_version()} on {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "failed", found, "Install Python 3.11 or newer.")
    return Finding("python", "ok", found)


def libraries() -> Finding:
    """Return whether the engines' libraries are installed, and what reads audio."""
    tables: tuple[Mapping[str, Backend], ...] = (stt.BACKENDS, llm.BACKENDS, tts.BACKENDS)
    names = [backend.library for table in tables for backend in table.values() if backend.library]
    missing = [name for name in (*names, "av") if find_spec(name) is None]
    if missing:
        return Finding("libraries", "failed", f"not installed: {', '.join(missing)}", "Run make install.")
    return Finding("libraries", "ok", "faster-whisper, llama.cpp, Piper and PyAV are installed")


def compiler(*, in_container: bool) -> Finding:
    """What llama.cpp is compiled with; an image has it compiled already."""
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None and not in_container:
        remedy = "Only needed to install anew: apt-get install g++."
        return Finding("compiler", "warning", "no C++ compiler", remedy)
    return Finding("compiler", "ok", found or "none, and none is needed in an image")


def own_kernels() -> Finding:
    """Those of june's own kernels that this CPU runs, and whether they were compiled."""
    for_llm = next((kernel for kernel in kernels.LLM if kernel.runs_here), None)
    wanted = [kernel for kernel in (for_llm, kernels.VOICE) if kernel is not None and kernel.runs_here]
    missing = ", ".join(kernel.library.name for kernel in wanted if not kernel.is_usable())
    if missing:
        remedy = "Run make kernels; without them, answers and speech take up to four times as long."
        return Finding("kernels", "warning", f"not compiled, or not for this machine: {missing}", remedy)
    found = ", ".join(kernel.library.name for kernel in wanted) or "none"
    return Finding("kernels", "ok", f"june's own that this CPU runs: {found}")


def container(root: Path = Path("/")) -> tuple[bool, Finding]:
    """Whether june is in a container, by the marks that engines leave and by what runs as process 1."""
    marked = [name for mark, name in CONTAINER_MARKS.items() if (root / mark.lstrip("/")).exists()]
    kind = next(iter(marked), os.environ.get("container", "") or _container_of(root / "proc/1/cgroup"))  # noqa: SIM112 - systemd's and Podman's name
    if not kind:
        return False, Finding("container", "ok", "none: june runs on the machine itself")
    return True, Finding("container", "ok", f"inside one, of {kind}")


def _container_of(cgroup: Path) -> str:
    """The engine that named a control group of process 1; empty on a plain machine."""
    text = cgroup.read_text() if cgroup.is_file() else ""
    found = re.search(r"docker|kubepods|containerd|libpod|lxc", text)
    return found[0] if found else ""


def user() -> Finding:
    """Who june runs as: nothing it does needs root."""
    if os.geteuid() == 0:
        remedy = "Run june as an ordinary user: --user in a container, User= in a systemd unit."
        return Finding("user", "warning", "root: a fault in june would own the machine", remedy)
    return Finding("user", "ok", f"user {os.geteuid()}, not root")


def capabilities(status: Path = Path("/proc/self/status")) -> Finding:
    """The rights of root that this process holds one by one; june needs none."""
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    held = int(fields["CapEff"], 16).bit_count()
    barred = "may gain none" if fields.get("NoNewPrivs", "0").strip() == "1" else "may gain them"
    if held:
        remedy = "Drop them: cap_drop: [ALL] in compose.yaml, or run june as an ordinary user."
        return Finding("capabilities", "warning", f"holds {held} and needs none; {barred}", remedy)
    return Finding("capabilities", "ok", f"holds none; {barred}")


def clock() -> Finding:
    """Whether this machine's time can be right at all; `--online` compares it with the chat apps'."""
    now_s = time.time()
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < RELEASED_S:
        remedy = "Set it, and let NTP keep it: TLS certificates and the times of messages depend on it."
        return Finding("clock", "warning", f"shows {found}, which is in the past", remedy)
    return Finding("clock", "ok", found)
