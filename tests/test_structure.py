"""Rules of the code that no linter checks."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from june.sections import PROJECT_ROOT

JUNE = PROJECT_ROOT / "june"
TREES = {
    file.relative_to(JUNE).as_posix(): ast.parse(file.read_text("utf-8"))
    for file in sorted(JUNE.rglob("*.py"))
}

OWNERS = {
    "aiogram": "chat/telegram/",
    "av": "audio.py",
    "ctranslate2": "stt/faster_whisper.py",
    "discord": "chat/discord/",
    "faster_whisper": "stt/faster_whisper.py",
    "httpx2": "models/hub.py",
    "huggingface_hub": "models/hub.py",
    "jinja2": "llm/llama_cpp/template.py",
    "llama_cpp": "llm/llama_cpp/library.py",
    "markdown_it": "chat/formatting/markdown.py",
    "matplotlib": "bench/plot.py",
    "onnxruntime": "tts/piper.py",
    "piper": "tts/piper.py",
    "pydantic_settings": "settings.py",
    "opentelemetry": "telemetry/traces.py",
    "prometheus_client": "telemetry/metrics.py",
    "pynvml": "hardware.py",
    "sqlite3": "store/",
    "structlog": "telemetry/logs.py",
    "xllamacpp": "bench/peers.py",
}
"""The one module or package that imports a library and translates its exceptions."""

COMPARED_IN = {"llama_cpp": "bench/peers.py"}
"""A library that june is also measured against, there as everyone has it, without june's changes."""

LOADED_BY_NAME = {
    *("aiogram", "ctranslate2", "discord", "faster_whisper", "llama_cpp", "onnxruntime", "piper"),
    *("matplotlib", "opentelemetry", "xllamacpp"),
}
"""Libraries that are imported only when a part that uses them is chosen."""


def imported_packages(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize(("library", "owner"), OWNERS.items())
def test_a_library_is_imported_in_one_room(library: str, owner: str) -> None:
    importing = {path for path, tree in TREES.items() if library in imported_packages(tree)}
    importing -= {COMPARED_IN.get(library)}
    assert importing
    assert all(path == owner or (owner.endswith("/") and path.startswith(owner)) for path in importing)


@pytest.mark.parametrize("module", ["june.app", "june.__main__"])
def test_importing_june_imports_no_engine(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PROJECT_ROOT
    )
    assert module in done.stdout.split()
    assert not LOADED_BY_NAME & set(done.stdout.split())


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    names = {part.removesuffix(".py") for path in TREES for part in path.split("/")}
    assert not names & {"utils", "helpers", "common", "manager", "base"}


def starts_threads(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return bool(names & {"asyncio.to_thread", "threading.Thread"})
    if isinstance(node, ast.Attribute):
        return node.attr in {"to_thread", "run_in_executor"} or ast.unparse(node) == "threading.Thread"
    return False


def test_only_workers_starts_threads() -> None:
    found = [path for path, tree in TREES.items() if any(map(starts_threads, ast.walk(tree)))]
    assert found == ["workers/threads.py", "workers/watchdog.py"]


def mapped(page: str) -> Iterator[str]:
    """Yield the paths in the map of files: `  name.py   text`, `  package/   text`, `    name.py   text`."""
    block = re.search(r"^```\w*\njune/\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None, "the page has no fenced block that begins with a line june/"
    package = ""
    for line in block[1].splitlines():
        entry = re.fullmatch(r"(?P<indent>  |    )(?P<name>(\w+/)*\w+(\.py|/)) +\S.*", line)
        assert entry is not None, line
        if entry["indent"] == "    ":
            assert package, line
            yield package + entry["name"]
        else:
            package = entry["name"] if entry["name"].endswith("/") else ""
            yield entry["name"]


def line_of(path: str) -> str:
    """Return the line that the map needs for a file or package, with the first line of its docstring."""
    tree = TREES[f"{path}__init__.py" if path.endswith("/") else path]
    about = (ast.get_docstring(tree) or "").partition("\n")[0]
    return f"{path:<40} {about}"


def test_architecture_md_names_every_file_once() -> None:
    modules = {path for path in TREES if not path.endswith("__init__.py")}
    packages = {f"{Path(path).parent.as_posix()}/" for path in TREES if "/" in path}
    paths = list(mapped((PROJECT_ROOT / "docs/architecture.md").read_text("utf-8")))
    faults = [
        *(f"missing:  {line_of(path)}" for path in sorted((modules | packages) - {*paths})),
        *(f"surplus:  {path}" for path in sorted({*paths} - modules - packages)),
        *(f"repeated: {path}" for path, count in Counter(paths).items() if count > 1),
    ]
    assert not faults, "\n".join(["the map in docs/architecture.md:", *faults])
