"""What tests read of the documents: their sections, and the code that is shown in them."""

import re

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
    """Return what stands in the fenced blocks of a language, such as "python", in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
