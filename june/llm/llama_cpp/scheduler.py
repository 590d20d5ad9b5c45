"""Which answers are decoded together.

The bookkeeping of continuous batching, without a model: answers wait in order until a sequence and enough of
the cache are theirs, and every batch takes one token of each that writes and a chunk of those that still
read.

An answer is admitted only if the cache has room for all it may ever hold. So none is thrown out once it runs,
and llama.cpp finds a free cell for every token. What the sequences hold is the business of `sequences`.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from june.errors import GenerationError
from june.llm.llama_cpp.sequences import KvSequence, Sequences, Wanted


@dataclass(slots=True, eq=False)
class Generation:
    """One answer, from its request to its end.

    Attributes:
        tokens: the prompt, and what was written so far.
        kv_tokens: the most of them that the cache will ever hold.
        conversation: names the chat; empty for none.
        is_forgotten: whether nothing of it is to stay in the cache when it ends.
        cached_tokens: how much of the prompt was in the cache when it was admitted.
        restored_tokens: how much of that had been saved, and was put there then.
        submitted_s: when it was asked for, by `time.perf_counter`.
        admitted_s: when it got its sequence.
        first_token_s: when its first token was drawn; 0 before.
        sequence: where it is evaluated, once it is admitted.
    """

    tokens: list[int]
    kv_tokens: int
    conversation: str = ""
    is_forgotten: bool = field(default=False, init=False)
    cached_tokens: int = field(default=0, init=False)
    restored_tokens: int = field(default=0, init=False)
    submitted_s: float = field(default=0.0, init=False)
    admitted_s: float = field(default=0.0, init=False)
    first_token_s: float = field(default=0.0, init=False)
    sequence: KvSequence = field(init=False)


G = TypeVar("G", bound=Generation)


@dataclass(frozen=True, slots=True)
class Part(Generic[G]):
    """What one batch evaluates of one answer: `tokens`, the first at `position`."""

    generation: G
    position: int
    tokens: list[int]

    @property
    def is_last(self) -> bool:
        """Whether all tokens are evaluated then, so that the next can be sampled."""
        return self.position + len(self.tokens) == len(self.generation.tokens)


class Scheduler(Generic[G]):
    """Admits answers and composes batches; belongs to the thread that decodes.

    Args:
        sequences: where answers are evaluated.
        kv_tokens: cells of the cache, for all sequences together.
        chunk_tokens: prompt tokens in one batch, at most.
        max_waiting: answers that may wait to be admitted.
        on_admitted: told of each answer that gets a sequence.
    """

    def __init__(
        self,
        sequences: Sequences,
        *,
        kv_tokens: int,
        chunk_tokens: int,
        max_waiting: int,
        on_admitted: Callable[[G], None] = lambda _: None,
    ) -> None:
        self._sequences = sequences
        self._kv_tokens = kv_tokens
        self._chunk_tokens = chunk_tokens
        self._max_waiting = max_waiting
        self._on_admitted = on_admitted
        self._running: list[G] = []
        self._waiting: deque[G] = deque()

    @property
    def running(self) -> int:
        """Answers that have a sequence."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers that have none yet."""
        return len(self._waiting)

    @property
    def is_writing(self) -> bool:
        """Whether any answer is past its prompt, so that a long batch would make it pause."""
        return any(len(each.tokens) - len(each.sequence.tokens) == 1 for each in self._running)

    def generations(self) -> list[G]:
        """Return all answers that have not ended: those that run, then those that wait, in their order."""
        return [*self._running, *self._waiting]

    def submit(self, generation: G) -> None:
        """Admit the answer, now or when those before it leave room.

        Raises:
            GenerationError: too many wait already (code "busy").
        """
        generation.submitted_s = time.perf_counter()
        self._waiting.append(generation)
        self._admit()
        if len(self._waiting) > self._max_waiting:
            self._waiting.pop()
            raise GenerationError("busy", f"{self._max_waiting} answers wait for the language model already.")

    def end(self, generation: G, *, keep: bool = True) -> None:
        """Let go of an answer, running or waiting; what it evaluated may stay for others if `keep`."""
        if generation in self._running:
            self._running.remove(generation)
            self._sequences.release(generation.sequence, keep=keep and not generation.is_forgotten)
        else:
            self._waiting.remove(generation)
        self._admit()

    def forget(self, conversation: str) -> None:
        """Drop a conversation from the cache; what is being written for it goes on, and leaves at its end."""
        for generation in self.generations():
            if generation.conversation == conversation:
                generation.conversation, generation.is_forgotten = "", True
        self._sequences.forget(conversation)

    def lose_cache(self) -> None:
        """Put all who run back at the head of the queue, since the cache was lost; they are evaluated anew.

        More may wait then than may otherwise: nobody who was admitted is refused.
        """
        self._sequences.lose()
        for generation in self._running:
            del generation.sequence
        self._waiting.extendleft(reversed(self._running))
        self._running.clear()
        self._admit()

    def compose(self, chunk_tokens: int | None = None) -> list[Part[G]]:
        """Return the next batch: one token of each answer that writes, and a chunk of those that still read.

        Args:
            chunk_tokens: the chunk, if it is to be smaller than the largest.
        """
        return list(self._parts(chunk_tokens or self._chunk_tokens))

    def _parts(self, room: int) -> Iterator[Part[G]]:
        for generation in self._running:
            position = len(generation.sequence.tokens)
            size = len(generation.tokens) - position
            if size > 1:
                size = min(size, room)
                room -= size
            if size:
                yield Part(generation, position, generation.tokens[position : position + size])

    def evaluated(self, part: Part[G]) -> None:
        """Note that the cache now holds the part."""
        self._sequences.evaluated(part.generation.sequence, part.tokens)

    def restore(self, part: Part[G]) -> None:
        """Forget what the cache holds of a part that was not evaluated, or nobody knows how far."""
        self._sequences.restore(part.generation.sequence, part.position)

    def _admit(self) -> None:
        while self._waiting and self._place(self._waiting[0]):
            admitted = self._waiting.popleft()
            admitted.admitted_s = time.perf_counter()
            self._running.append(admitted)
            self._on_admitted(admitted)

    def _place(self, generation: G) -> bool:
        """Give the answer a sequence; return False if it must wait."""
        reserved = sum(each.kv_tokens - len(each.sequence.tokens) for each in self._running)
        place = self._sequences.place(
            Wanted(
                generation.tokens[:-1],
                generation.kv_tokens,
                generation.conversation,
                self._kv_tokens - reserved,
            )
        )
        if place is None:
            return False
        generation.sequence = place.sequence
        generation.cached_tokens, generation.restored_tokens = place.cached_tokens, place.restored_tokens
        return True
