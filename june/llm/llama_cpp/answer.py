"""One answer while it is written: its tokens become text for its reader."""

import codecs
from dataclasses import dataclass, field
from typing import Protocol

from june.errors import GenerationError
from june.llm.llama_cpp.sampling import Sampler
from june.llm.llama_cpp.vocabulary import Vocabulary
from june.llm.reasoning import ReasoningSplitter
from june.llm.scheduler import Generation
from june.messages import Delta, FinishReason, Usage
from june.workers import StopFlag


class Reader(Protocol):
    """Who an answer is written for: a `Channel`, or the caller itself."""

    @property
    def stop(self) -> StopFlag:
        """Set when nobody reads any more."""

    def post(self, item: Delta) -> None:
        """Take the next piece."""

    def end(self, error: GenerationError | None = None) -> None:
        """Know that it was the last, and why there are no more."""


@dataclass(slots=True, eq=False, kw_only=True)
class Answer(Generation):
    """One answer and all that is its own: reader, sampler, and how tokens become text."""

    reader: Reader
    sampler: Sampler
    vocabulary: Vocabulary
    splitter: ReasoningSplitter
    max_tokens: int
    prompt_tokens: int
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def write(self, token: int) -> bool:
        """Give the text of the next token to the reader; whether that was the last."""
        if token in self.vocabulary.end_tokens:
            self._finish("stop")
            return True
        self.tokens.append(token)
        text, reasoning = self.splitter.feed(self.decoder.decode(self.vocabulary.piece(token)))
        if text or reasoning:
            self.reader.post(Delta(text, reasoning))
        if len(self.tokens) - self.prompt_tokens == self.max_tokens:
            self._finish("length")
            return True
        return False

    def _finish(self, finish_reason: FinishReason) -> None:
        text, reasoning = self.splitter.feed(self.decoder.decode(b"", final=True))
        rest, more_reasoning = self.splitter.finish()
        written = len(self.tokens) - self.prompt_tokens
        usage = Usage(self.prompt_tokens, written, self.cached_tokens)
        self.reader.post(Delta(text + rest, reasoning + more_reasoning, usage, finish_reason))
