"""One answer while it is written: its tokens become text for its reader."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from june.errors import GenerationError
from june.llm.llama_cpp.sampling import LogitRows, Sampler
from june.llm.llama_cpp.scheduler import Generation
from june.llm.llama_cpp.vocabulary import Vocabulary
from june.llm.output import Output
from june.messages import Delta, FinishReason, Usage
from june.workers import StopFlag

TELL_EVERY_S = 0.03
"""Each piece wakes the event loop, which takes a core from the threads that compute; nobody reads faster."""


class Reader(Protocol):
    """Who an answer is written for: a `Channel`, or the caller itself."""

    @property
    def stop(self) -> StopFlag:
        """Set when nobody reads any more."""

    def post(self, item: Delta) -> None:
        """Take the next piece."""

    def end(self, error: GenerationError | None = None) -> None:
        """Take note that there are no more pieces, and of the error that ended them."""


@dataclass(slots=True, eq=False, kw_only=True)
class Answer(Generation):
    """One answer and all that is its own: reader, sampler, and how tokens become text.

    Attributes:
        thinking_budget_tokens: how long a thought may be; 0: as long as the answer.
        closing: what then brings it to its end.
        untold: what was written since its reader was told something.
        told_in: in which interval of `TELL_EVERY_S` that was.
    """

    reader: Reader
    sampler: Sampler
    vocabulary: Vocabulary
    output: Output
    max_tokens: int
    prompt_tokens: int
    thinking_budget_tokens: int = 0
    closing: list[int] = field(default_factory=list)
    thought_tokens: int = field(default=0, init=False)
    untold: list[Delta] = field(default_factory=list, init=False)
    told_in: int = field(default=-1, init=False)

    def draw(self, logits: LogitRows, row: int, likely: int | None) -> int:
        """Return the next token, as `Sampler.draw`; a grammar holds for the answer, not for a thought.

        Raises:
            GenerationError: the grammar allows none, or the logits are not numbers.
        """
        return self.sampler.draw(logits, row, likely, constrained=not self.output.thinking)

    def write(self, token: int) -> bool:
        """Give the text of the next token to the reader, and return whether that was the last.

        When the thinking budget is spent, the closing words come after it. They are evaluated with the next
        batch, like a prompt.
        """
        if token in self.vocabulary.end_tokens:
            self._finish("stop")
            return True
        if self._append(token):
            return True
        self.thought_tokens += self.output.thinking
        if self.output.thinking and self.thought_tokens == self.thinking_budget_tokens:
            return any(self._append(each) for each in self.closing)
        return False

    def _append(self, token: int) -> bool:
        self.tokens.append(token)
        self._tell(self.output.feed(self.vocabulary.piece(token)))
        if self.output.has_stopped:
            self._finish("stop")
            return True
        if len(self.tokens) - self.prompt_tokens == self.max_tokens:
            self._finish("length")
            return True
        return False

    def _finish(self, finish_reason: FinishReason) -> None:
        delta = self.output.finish()
        if finish_reason == "stop" and self.output.has_calls:
            finish_reason = "tool_calls"
        written = len(self.tokens) - self.prompt_tokens
        usage = Usage(self.prompt_tokens, written, self.cached_tokens)
        self._tell(replace(delta, usage=usage, finish_reason=finish_reason))

    def _tell(self, delta: Delta) -> None:
        """Hand a piece to the reader, or keep it for the next if there was one just now."""
        if delta.text or delta.reasoning or delta.tool_calls or delta.finish_reason:
            self.untold.append(delta)
        interval = int(time.perf_counter() / TELL_EVERY_S)  # the same for all answers: they tell together
        if self.untold and (delta.finish_reason or interval != self.told_in):
            self.reader.post(_joined(self.untold))
            self.untold.clear()
            self.told_in = interval


def _joined(deltas: Sequence[Delta]) -> Delta:
    last = deltas[-1]
    return Delta(
        "".join(delta.text for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        last.usage,
        last.finish_reason,
        tuple(call for delta in deltas for call in delta.tool_calls),
    )
