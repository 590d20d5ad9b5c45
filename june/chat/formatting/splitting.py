"""Text with marks on it, and where it may be cut.

A chat app's markup is written only after the cut, from a piece's own marks: so every piece opens and closes
what it uses, and no cut can fall inside a tag, an entity or an escape.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

Kind = Literal["bold", "italic", "strike", "code", "pre", "link", "quote", "heading", "marker"]


class Mark(NamedTuple):
    """What a stretch of text is."""

    kind: Kind
    """"marker" is a list item's bullet or number with its space."""
    value: str = ""
    """Of "link": the URL; of "pre": the programming language or ""; of "heading": "#", "##" or "###"."""


Marks = tuple[Mark, ...]
"""Outermost first, no kind twice."""


@dataclass(frozen=True, slots=True)
class MarkedText:
    """Text, and the marks of each of its characters."""

    text: str
    marks: Sequence[Marks]
    """As long as `text`."""

    def __getitem__(self, part: slice) -> "MarkedText":
        return MarkedText(self.text[part], self.marks[part])

    def runs(self) -> Iterator[tuple[str, Marks]]:
        """Yield the stretches of equal marks."""
        start = 0
        for marks, group in groupby(self.marks):
            end = start + sum(1 for _ in group)
            yield self.text[start:end], marks
            start = end


def with_markup(
    text: MarkedText, markup: Callable[[Marks], list[tuple[str, str]]]
) -> Iterator[tuple[str, str, str, Marks]]:
    """Yield what closes, what opens, and the run of text that follows with its marks; the last run is empty.

    Args:
        text: what is written.
        markup: what opens and what closes each mark, outermost first.
    """
    open_markup: list[tuple[str, str]] = []
    for run, marks in [*text.runs(), ("", ())]:
        wanted = markup(marks)
        same = 0
        while same < min(len(wanted), len(open_markup)) and wanted[same] == open_markup[same]:
            same += 1
        closings = "".join(closing for _, closing in reversed(open_markup[same:]))
        yield closings, "".join(opening for opening, _ in wanted[same:]), run, marks
        open_markup = wanted


def kinds(marks: Marks) -> set[Kind]:
    """Return the kinds of these marks."""
    return {mark.kind for mark in marks}


def utf16_length(text: str) -> int:
    """Return the UTF-16 code units of a text, which is how Telegram counts."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


_BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def is_blank(text: str) -> bool:
    """Return whether a reader sees nothing: only spaces, controls, format characters, letters without ink."""
    return all(
        char in _BLANK_LETTERS or unicodedata.category(char) in {"Cc", "Cf", "Zs", "Zl", "Zp"}
        for char in text
    )


def split(whole: MarkedText, size: Callable[[MarkedText], float], *, window: int) -> Iterator[MarkedText]:
    """Return the pieces of a text; each fits and shows something, and nothing visible is left out.

    It is cut between paragraphs, else lines, else sentences, where that fills at least half of a piece; else
    between words, else between characters as a reader sees them.

    Args:
        whole: the text.
        size: how much of a message a piece takes; more than 1 does not fit.
        window: no piece has more characters.
    """
    text, marks = whole.text, list(whole.marks)
    whole = MarkedText(text, marks)
    start = 0
    while start < len(text):
        if text[start] == "\n" or (text[start].isspace() and "pre" not in kinds(marks[start])):
            start += 1
            continue
        end = start + _longest(whole[start : start + window], size)
        if end == start and marks[start]:
            # Not one character fits in its markup, such as a link with an endless URL: do without.
            run = marks[start]
            while end < len(text) and marks[end] == run:
                marks[end] = ()
                end += 1
            continue
        end = max(end, start + 1)
        cut = _place(whole, start, end)
        while size(piece := _trimmed(whole[start:cut])) > 1 and cut > start + 1:
            cut = _place(whole, start, start + (cut - start) * 3 // 4)  # what was cut off had made it shorter
        if not is_blank(piece.text):
            yield piece
        start = cut


_FULL = 0.95
"""A message this full is full enough."""
_AIM = 0.98
"""How full the next try should be, if the text goes on as it began."""


def _longest(piece: MarkedText, size: Callable[[MarkedText], float]) -> int:
    """Return how many characters of `piece` fit, or a few less, since rendering takes time."""
    fitting, too_many = 0, len(piece.text) + 1
    at = len(piece.text)
    while too_many - fitting > 1:
        taken = size(piece[:at])
        if taken > 1:
            too_many = at
        else:
            fitting = at
            if taken > _FULL:
                break
        guess = int(at / taken * _AIM)
        at = guess if fitting < guess < too_many else (fitting + too_many) // 2
    return fitting


_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]{0,3}(?=\s)|[。！？।؟][」』”’）]?")  # noqa: RUF001 - meant so
_LONGEST_CLUSTER = 64
"""Code points looked back for the start of a character as a reader sees it; a family emoji has 11."""


def _place(whole: MarkedText, start: int, end: int) -> int:
    """Return the best place for a cut after `start` and not after `end`."""
    text, marks = whole.text, whole.marks
    if end == len(text):
        return end
    at = _end_of_thought(whole, (start + end + 1) // 2, end)
    if at > start:
        return at
    for at in range(end, start, -1):
        if text[at].isspace() and "marker" not in kinds(marks[at]):
            return at
    for at in range(end, max(start, end - _LONGEST_CLUSTER), -1):
        if _is_boundary(text, at):
            return at
    return end


def _end_of_thought(whole: MarkedText, start: int, end: int) -> int:
    """Return where the last paragraph, else line, else sentence ends from `start` to `end`; -1: none does."""
    text, marks = whole.text, whole.marks
    at = text.rfind("\n\n", start, end + 2)
    while at >= 0 and "pre" in kinds(marks[at]):
        at = text.rfind("\n\n", start, at + 1)
    if at < 0:
        at = text.rfind("\n", start, end + 1)
    if at < 0:
        at = max((found.end() for found in _SENTENCE_END.finditer(text, start, end + 1)), default=-1)
    return at if at <= end else -1


def _is_boundary(text: str, at: int) -> bool:
    """Return whether one visible character ends and the next begins at `at`, by the main rules of UAX #29."""
    before, after = text[at - 1], text[at]
    if before == "\u200d" or after in "\u200c\u200d" or unicodedata.category(after).startswith("M"):
        return False
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":  # skin tones, tags
        return False
    flag = at
    while flag and "\U0001f1e6" <= text[flag - 1] <= "\U0001f1ff" and at - flag < _LONGEST_CLUSTER:
        flag -= 1
    return not ("\U0001f1e6" <= after <= "\U0001f1ff" and (at - flag) % 2)


def _trimmed(piece: MarkedText) -> MarkedText:
    end = len(piece.text.rstrip())
    return piece[:end]
