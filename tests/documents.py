"""Reading documents in tests: their sections, and the code in them."""

import re
import shutil
from pathlib import Path

from june.sections import PROJECT_ROOT


def section(page: str, heading: str) -> str:
    """Return the text under a heading, up to the next heading of the same or a higher level.

    Args:
        page: the file's path in the project, such as "docs/backends.md".
        heading: its line without the number signs, such as "A voice".
    """
    text = (PROJECT_ROOT / page).read_text("utf-8")
    start = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert start is not None, f"{page} has no heading {heading!r}"
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end is not None else rest


def code_blocks(text: str, language: str) -> list[str]:
    """Return the contents of the fenced blocks of a language, such as "python", in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def follow(heading: str, folder: Path, *, table: str) -> None:
    """Follow a section of docs/backends.md in a copy of june: create a file, add a line to a table.

    Args:
        heading: of the section. Its first block of Python is the file, whose path stands above it after
            "Create the file"; the second is the line.
        folder: gets the copy; `python -m june` runs it there.
        table: the path of the file with the table, such as "june/tts/__init__.py".
    """
    text = section("docs/backends.md", heading)
    code, line, *_ = code_blocks(text, "python")
    file = re.search(r"Create the file `([^`]+)`", text)
    assert file is not None, heading
    shutil.copytree(PROJECT_ROOT / "june", folder / "june", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "models").mkdir()
    shutil.copy(PROJECT_ROOT / "models" / "catalogue.toml", folder / "models")
    (folder / file[1]).write_text(code, "utf-8")
    before = (folder / table).read_text("utf-8")
    after, count = re.subn(r"^(BACKENDS\b[^{\n]*\{)", rf"\1{line.strip()}", before, flags=re.MULTILINE)
    assert count == 1, f"{table} has no table BACKENDS"
    (folder / table).write_text(after, "utf-8")
