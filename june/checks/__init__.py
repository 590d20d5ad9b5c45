"""Checks of all that june needs to start; each gives a finding with a remedy."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: what was checked, its state, and a remedy if something is wrong.

    "failed" means that june cannot start, or cannot answer.
    """

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""
