"""Promises of the documents: their links lead somewhere, and the names in them exist."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from june.__main__ import app
from june.sections import PROJECT_ROOT
from june.settings import complete_settings
from tests.documents import code_blocks, section

PAGES = sorted(
    file
    for pattern in ("*.md", "docs/*.md", "models/*.md", "june/**/*.md")
    for file in PROJECT_ROOT.glob(pattern)
    if not file.is_relative_to(PROJECT_ROOT / ".venv")
)
NAMES = [str(page.relative_to(PROJECT_ROOT)) for page in PAGES]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"(june|tests|deploy|docs|requirements)/[\w./-]*")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages on what is; a changelog names what has gone, too."""
NOW_NAMES = [str(page.relative_to(PROJECT_ROOT)) for page in NOW]

MOST_LINES_OF_README = 150
SOURCES = "\n".join(
    file.read_text("utf-8") for file in (PROJECT_ROOT / "june").rglob("*") if file.suffix in {".py", ".cpp"}
)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def in_backticks(page: Path) -> Iterator[str]:
    yield from re.findall(r"`([^`\n]+)`", prose(page))


def keys(section: type[BaseModel], path: str = "") -> Iterator[str]:
    """Return the names of all sections and keys, such as "llm.model"."""
    for name, field in section.model_fields.items():
        yield path + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{path}{name}.")


KEYS = set(keys(complete_settings()))


def test_the_readme_is_short() -> None:
    assert len((PROJECT_ROOT / "README.md").read_text("utf-8").splitlines()) <= MOST_LINES_OF_README


def test_every_page_is_reached_from_the_readme() -> None:
    links = set(LINK.findall((PROJECT_ROOT / "README.md").read_text("utf-8")))
    rooms_own = {name for name in NAMES if name.startswith("june/")}
    assert {*NAMES} - rooms_own - {"README.md"} <= {link.partition("#")[0] for link in links}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", NOW, ids=NOW_NAMES)
def test_files_that_are_named_exist(page: Path) -> None:
    paths = {name for name in in_backticks(page) if FILE.fullmatch(name)}
    examples = set(re.findall(r"Create the file `([^`]+)`", prose(page)))
    assert [path for path in sorted(paths - examples) if not (PROJECT_ROOT / path).exists()] == []


@pytest.mark.parametrize("page", NOW, ids=NOW_NAMES)
def test_what_is_said_to_stand_in_a_file_does(page: Path) -> None:
    """Such as "`June.run` in `june/app/__init__.py`"."""
    absent = []
    for name, path in re.findall(r"`([\w.]+)` in `(june/[\w/]+\.py)`", prose(page)):
        source = (PROJECT_ROOT / path).read_text("utf-8")
        if not all(re.search(rf"\b{part}\b", source) for part in name.split(".")):
            absent.append((name, path))
    assert absent == []


def is_known(name: str) -> bool:
    """Return whether a name in backticks exists, if it looks like a variable, metric, setting or event."""
    if variable := re.fullmatch(r"JUNE_([A-Z0-9_]+__[A-Z0-9_]+)(=.*)?", name):
        return variable[1].lower().replace("__", ".") in KEYS
    if re.fullmatch(r"june_[a-z]+_[a-z_]+", name):
        return name.removesuffix("_total") in SOURCES
    if dotted := re.match(r"([a-z_]+)\.([a-z_.]+)(?= =|$)", name):
        is_setting_or_event = dotted[1] in KEYS or dotted[2].endswith(("ed", "ing"))
        return not is_setting_or_event or dotted[0] in KEYS or f'"{dotted[0]}"' in SOURCES
    return True


@pytest.mark.parametrize("page", NOW, ids=NOW_NAMES)
def test_settings_variables_metrics_and_events_that_are_named_exist(page: Path) -> None:
    assert [name for name in in_backticks(page) if not is_known(name)] == []


def test_every_command_is_described() -> None:
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    parts = [(name, part) for name, one in commands.items() for part in getattr(one, "commands", [""])]
    described = re.findall(r"`june ([^`]*)`", (PROJECT_ROOT / "docs/operations.md").read_text("utf-8"))
    assert [
        (name, part)
        for name, part in parts
        if not any(re.match(rf"\[?{name}\b.*\b{part}\b", text) for text in described)
    ] == []


def test_the_layers_and_rooms_are_those_of_the_import_contract() -> None:
    (shown,) = code_blocks(section("docs/architecture.md", "Who may import whom"), "text")
    pyproject = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text("utf-8"))
    layers = pyproject["tool"]["importlinter"]["contracts"][0]["layers"]
    assert shown.splitlines() == layers
    table = section("docs/architecture.md", "The rooms")
    rooms = {room for layer in layers for room in layer.split(" | ")} - {"__main__"}
    assert [room for room in sorted(rooms) if f"`{room}`" not in table] == []


def test_pre_commit_runs_what_make_lint_runs() -> None:
    """The files that clang-format looks at are chosen by pre-commit itself."""
    makefile = (PROJECT_ROOT / "Makefile").read_text("utf-8")
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    linted = re.findall(r"^\t@\$\(BIN\)/(.*?)(?: june/.*)?$", recipe[1], re.MULTILINE)
    hooks = yaml.safe_load((PROJECT_ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == linted
