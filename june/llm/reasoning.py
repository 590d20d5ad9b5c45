"""Tells a model's thought from its answer while both are being written."""

from dataclasses import dataclass

from june.llm.stopping import held_back

OPEN = "<think>"
CLOSE = "</think>"
CLOSING = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking "
    f"directly now.\n{CLOSE}\n\n"
)
"""Ends a thought whose budget is spent: the words that Qwen3 was trained with (technical report, 4.3)."""


@dataclass(slots=True)
class ReasoningSplitter:
    """Splits streamed text at `<think>` and `</think>`, wherever the pieces are cut.

    Attributes:
        thinking: whether the text begins inside a thought, as after a template that opens one itself.
    """

    thinking: bool = False
    _pending: str = ""
    _answered: bool = False

    def feed(self, text: str) -> tuple[str, str]:
        """Return the answer and the thought in what is certain so far: `(text, reasoning)`."""
        return self._split(self._pending + text, final=False)

    def finish(self) -> tuple[str, str]:
        """Return the answer and the thought in what was held back."""
        return self._split(self._pending, final=True)

    def _split(self, text: str, *, final: bool) -> tuple[str, str]:
        if self._answered and not self.thinking and OPEN[0] not in text:  # nearly always
            self._pending = ""
            return text, ""
        answer, thought = "", ""
        while True:
            mark = CLOSE if self.thinking else OPEN
            before, found, after = text.partition(mark)
            if not found:
                held = 0 if final else held_back(text, [mark])
                before, self._pending = text[: len(text) - held], text[len(text) - held :]
            if self.thinking:
                thought += before
            else:
                # The blank lines between a thought and its answer belong to neither.
                before = before if self._answered else before.lstrip()
                self._answered = self._answered or bool(before)
                answer += before
            if not found:
                return answer, thought
            self.thinking = not self.thinking
            text = after
