"""Where an answer ends before its model ends it: at a stop string, wherever the pieces are cut."""

from collections.abc import Iterable


def held_back(text: str, marks: Iterable[str]) -> int:
    """Return how many of the last characters may be the beginning of one of the marks."""
    longest = 0
    for mark in marks:
        if mark[0] not in text[-len(mark) :]:
            continue
        for size in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:size]):
                longest = size
                break
    return longest


class StopStrings:
    """Passes streamed text on up to the first stop string that is complete.

    Args:
        strings: where to stop; empty ones stop nothing.
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = tuple(filter(None, strings))
        self._pending = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Return the text that certainly stands before any stop string; nothing once one was found."""
        if self.found:
            return ""
        if not self._strings:
            return text
        text = self._pending + text
        # The first to end, since generation stops there; of those that end together the longest.
        ends = [(start + len(each), start) for each in self._strings if (start := text.find(each)) >= 0]
        if ends:
            self.found = True
            self._pending = ""
            return text[: min(ends)[1]]
        certain = len(text) - held_back(text, self._strings)
        self._pending = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """Return what was held back and turned out not to be a stop string."""
        rest, self._pending = self._pending, ""
        return rest
