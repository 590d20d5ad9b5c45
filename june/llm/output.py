"""Turns the bytes that a model writes into the pieces of an answer that a reader gets."""

import codecs
from collections.abc import Iterable

from june.llm.reasoning import ReasoningSplitter
from june.llm.stopping import StopStrings
from june.llm.tools import CallReader
from june.messages import Delta, ToolCall


class Output:
    """Tells thought, text and tool calls apart, and ends the text at a stop string.

    Args:
        thinking: whether the first token belongs to a thought already.
        calls: reads what is not thought; None if no tool can be called.
        stop: where the text ends.

    Attributes:
        has_stopped: a stop string was found; what follows is nothing.
        has_calls: there was a tool call.
    """

    def __init__(
        self, *, thinking: bool = False, calls: CallReader | None = None, stop: tuple[str, ...] = ()
    ) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._splitter = ReasoningSplitter(thinking=thinking)
        self._calls = calls
        self._stop = StopStrings(stop)
        self.has_calls = False

    @property
    def thinking(self) -> bool:
        """Whether the next token belongs to a thought."""
        return self._splitter.thinking

    @property
    def has_stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stop.found

    def feed(self, piece: bytes) -> Delta:
        """Return what is certain after the next token, whose bytes may end within a character."""
        text, reasoning = self._splitter.feed(self._decoder.decode(piece))
        if self._calls is None:
            return Delta(self._stop.feed(text), reasoning)
        return self._delta(self._calls.feed(text), reasoning)

    def finish(self) -> Delta:
        """Return what was held back."""
        text, reasoning = self._splitter.feed(self._decoder.decode(b"", final=True))
        rest, more_reasoning = self._splitter.finish()
        text += rest
        written = [text] if self._calls is None else [*self._calls.feed(text), *self._calls.finish()]
        delta = self._delta(written, reasoning + more_reasoning)
        return Delta(delta.text + self._stop.finish(), delta.reasoning, tool_calls=delta.tool_calls)

    def _delta(self, written: Iterable[str | ToolCall], reasoning: str) -> Delta:
        text = ""
        calls: list[ToolCall] = []
        for part in written:
            if self._stop.found:
                break
            if isinstance(part, ToolCall):
                text += self._stop.finish()  # a call ends what may have been a stop string
                calls.append(part)
            else:
                text += self._stop.feed(part)
        self.has_calls = self.has_calls or bool(calls)
        return Delta(text, reasoning, tool_calls=tuple(calls))
