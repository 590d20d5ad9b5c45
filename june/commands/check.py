"""`python -m june check`: whether june can start here, and what to do if not."""

import json
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from june import app, hardware, llm
from june.errors import JuneError
from june.models import require
from june.settings import Settings, load_settings

OLDEST_PYTHON = (3, 11)
LOW_DISK_BYTES = 2_000_000_000
LOW_MEMORY_BYTES = 1_000_000_000
MARKS = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "failed": "[red]failed[/] "}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what helps if it is not well."""

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


def check(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file.")] = None,
) -> None:
    """Look at everything june needs to start; exit status 1 if it could not."""
    findings = list(_findings(settings_file))
    can_start = all(finding.status != "failed" for finding in findings)
    if as_json:
        print(json.dumps({"can_start": can_start, "findings": [asdict(each) for each in findings]}))
    else:
        _print(findings)
    if not can_start:
        raise typer.Exit(1)


def _findings(settings_file: Path | None) -> Iterator[Finding]:
    yield _python()
    yield _libraries()
    yield _compiler()
    try:
        settings = load_settings(settings_file)
    except JuneError as error:
        yield Finding("settings", "failed", str(error), "Correct it; settings.example.toml shows every key.")
        return
    yield Finding("settings", "ok", "every key and value is right")
    yield from _gpu(settings)
    yield from _models(settings)
    yield _disk(settings)
    yield _memory()


def _python() -> Finding:
    found = f"Python {platform.python_version()} on {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "failed", found, "Install Python 3.11 or newer.")
    return Finding("python", "ok", found)


def _libraries() -> Finding:
    missing = [name for name in ("faster_whisper", "llama_cpp", "piper", "av") if find_spec(name) is None]
    if missing:
        return Finding("libraries", "failed", f"not installed: {', '.join(missing)}", "Run make install.")
    return Finding("libraries", "ok", "faster-whisper, llama.cpp, Piper and PyAV are installed")


def _compiler() -> Finding:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        remedy = "Only needed to install anew: apt-get install g++."
        return Finding("compiler", "warning", "no C++ compiler", remedy)
    return Finding("compiler", "ok", compiler)


def _gpu(settings: Settings) -> Iterator[Finding]:
    gpus = hardware.find_gpus()
    if not gpus:
        yield Finding("gpu", "ok", "no NVIDIA GPU: the models compute on the CPU")
        return
    for gpu in gpus:
        memory = f"{gpu.free_bytes / 1e9:.1f} of {gpu.total_bytes / 1e9:.1f} GB free"
        yield Finding("gpu", "ok", f"{gpu.name}, {memory}")
    missing = hardware.missing_cuda_libraries()
    if missing and settings.stt.device != "cpu":
        remedy = "Install CUDA 12 (nvidia-cublas-cu12); until then speech to text uses the CPU."
        yield Finding("cuda, stt", "warning", f"not found: {', '.join(missing)}", remedy)
    if settings.llm.gpu_layers != 0 and not llm.gpu_offload_supported(settings.llm):
        remedy = 'Build it anew: CMAKE_ARGS="-DGGML_CUDA=on" make clean install.'
        yield Finding("cuda, llm", "warning", "llama.cpp was built for the CPU only", remedy)


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        chosen = app.choose_models(settings)
    except JuneError as error:
        yield Finding("models", "failed", str(error), "python -m june models list shows what there is.")
        return
    yield Finding("choice", "ok", chosen.reason)
    for role, model in (("stt", chosen.stt), ("llm", chosen.llm), ("tts", chosen.tts)):
        try:
            require(model, settings.models.directory)
        except JuneError as error:
            fault, _, remedy = str(error).partition("; run: ")
            yield Finding(role, "failed", fault, remedy)
        else:
            yield Finding(role, "ok", f"{model.name}, present and verified")


def _disk(settings: Settings) -> Finding:
    folder = settings.models.directory
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    found = f"{free_bytes / 1e9:.1f} GB free at {folder}"
    if free_bytes < LOW_DISK_BYTES:
        return Finding("disk", "warning", found, "Make room, or set models.directory to a larger disk.")
    return Finding("disk", "ok", found)


def _memory() -> Finding:
    available_bytes = hardware.available_memory_bytes()
    found = f"{available_bytes / 1e9:.1f} GB of memory available, {hardware.cpu_cores()} cores"
    if available_bytes < LOW_MEMORY_BYTES:
        return Finding("memory", "warning", found, "End other programs; the starter models take 0.9 GB.")
    return Finding("memory", "ok", found)


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        console.print(f"{MARKS[finding.status]} {finding.name:<10} {escape(finding.found + remedy)}")
