"""What june needs to start, looked at one by one; each check is a finding with what helps."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what helps if it is not well.

    "failed" is kept for what june cannot start with, or cannot answer with.
    """

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""
