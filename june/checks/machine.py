"""Checks of the machine: Python, libraries, kernels, container, user, capabilities, clock."""

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
"""November 2025, before june's first release: a clock that shows an earlier time is wrong."""
CONTAINER_MARKS = {"/.dockerenv": "Docker", "/run/.containerenv": "Podman"}


def python() -> Finding:
    """Return whether the Python version is supported."""
    found = f"Python {platform.python_version()} on {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "failed", found, "Install Python 3.11 or newer.")
    return Finding("python", "ok", found)


def libraries() -> Finding:
    """Return whether the engines and the audio library are installed."""
    tables: tuple[Mapping[str, Backend], ...] = (stt.BACKENDS, llm.BACKENDS, tts.BACKENDS)
    names = [backend.library for table in tables for backend in table.values() if backend.library]
    names.append("av")
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        return Finding("libraries", "failed", f"not installed: {', '.join(missing)}", "Run make install.")
    return Finding("libraries", "ok", f"{', '.join(names)} are installed")


def compiler(*, in_container: bool) -> Finding:
    """Return whether there is a compiler for llama.cpp; an image has llama.cpp compiled already."""
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None and not in_container:
        remedy = "Needed only to install june again: apt-get install g++."
        return Finding("compiler", "warning", "no C++ compiler", remedy)
    return Finding("compiler", "ok", found or "none; an image needs none")


def own_kernels() -> Finding:
    """Return june's own kernels for this CPU, and whether they are compiled."""
    for_llm = next((kernel for kernel in kernels.LLM if kernel.runs_here), None)
    wanted = [kernel for kernel in (for_llm, kernels.VOICE) if kernel is not None and kernel.runs_here]
    missing = ", ".join(kernel.library.name for kernel in wanted if not kernel.is_usable())
    if missing:
        remedy = "Run make kernels; without them, answers and speech take up to four times as long."
        return Finding("kernels", "warning", f"not compiled, or not for this machine: {missing}", remedy)
    found = ", ".join(kernel.library.name for kernel in wanted) or "none"
    return Finding("kernels", "ok", f"june's own kernels for this CPU: {found}")


def container(root: Path = Path("/")) -> tuple[bool, Finding]:
    """Return whether june runs in a container, judged by the engines' marker files and by process 1."""
    marked = [name for mark, name in CONTAINER_MARKS.items() if (root / mark.lstrip("/")).exists()]
    kind = next(iter(marked), os.environ.get("container", "") or _container_of(root / "proc/1/cgroup"))  # noqa: SIM112 - systemd's and Podman's name
    if not kind:
        return False, Finding("container", "ok", "none: june runs directly on the machine")
    return True, Finding("container", "ok", f"june runs in a container of {kind}")


def _container_of(cgroup: Path) -> str:
    """Return the container engine that process 1's control group names; empty if none."""
    text = cgroup.read_text() if cgroup.is_file() else ""
    found = re.search(r"docker|kubepods|containerd|libpod|lxc", text)
    return found[0] if found else ""


def user() -> Finding:
    """Return which user june runs as; june never needs root."""
    if os.geteuid() == 0:
        remedy = "Run june as an ordinary user: --user in a container, User= in a systemd unit."
        return Finding(
            "user", "warning", "root: an attacker who takes over june would control the machine", remedy
        )
    return Finding("user", "ok", f"user {os.geteuid()}, not root")


def capabilities(status: Path = Path("/proc/self/status")) -> Finding:
    """Return how many Linux capabilities this process holds; june needs none."""
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    held = int(fields["CapEff"], 16).bit_count()
    barred = "may gain none" if fields.get("NoNewPrivs", "0").strip() == "1" else "may gain them"
    if held:
        remedy = "Drop them with cap_drop: [ALL] in compose.yaml, or run june as an ordinary user."
        return Finding("capabilities", "warning", f"holds {held} and needs none; {barred}", remedy)
    return Finding("capabilities", "ok", f"holds none; {barred}")


def clock() -> Finding:
    """Return whether the clock can be right; `--online` compares it with the chat apps' clocks."""
    now_s = time.time()
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < RELEASED_S:
        remedy = "Set it and use NTP: TLS certificates and the times of messages depend on it."
        return Finding("clock", "warning", f"shows {found}, which is in the past", remedy)
    return Finding("clock", "ok", found)
