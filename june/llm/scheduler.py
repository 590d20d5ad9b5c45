"""Which conversations are decoded together, and which of their tokens the KV cache still holds.

The bookkeeping of continuous batching, without a model: answers wait in order until a sequence and enough
of the cache are theirs, every batch takes one token of each that writes and a chunk of those that still
read, and what is no longer needed stays in its sequence for whoever begins with the same tokens.

An answer is admitted only if the cache has room for all it may ever hold. So none is thrown out once it
runs, and llama.cpp finds a free cell for every token.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar

from june.errors import GenerationError


class Memory(Protocol):
    """The KV cache of one context with several sequences, which may hold cells in common."""

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let the empty sequence `target` hold the first `tokens` cells of `source` as well."""

    def truncate(self, sequence: int, tokens: int) -> bool:
        """Keep only the first `tokens` of a sequence; False if it can only be emptied."""


@dataclass(slots=True, eq=False)
class KvSequence:
    """One sequence of the cache.

    Attributes:
        index: its number in llama.cpp.
        tokens: what it holds, evaluated.
        cells: one name for each of the tokens; sequences that share a cell have the same name there.
        conversation: whose it is; empty if nobody will ask for it by name.
        is_running: whether an answer is being written in it.
        last_used: grows with each use.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    conversation: str = ""
    is_running: bool = False
    last_used: int = 0


@dataclass(slots=True, eq=False)
class Generation:
    """One answer, from its request to its end.

    Attributes:
        tokens: the prompt, and what was written so far.
        kv_tokens: the most of them that the cache will ever hold.
        conversation: names the chat; empty for none.
        cached_tokens: how much of the prompt was in the cache when it was admitted.
        sequence: where it is evaluated, once it is admitted.
    """

    tokens: list[int]
    kv_tokens: int
    conversation: str = ""
    cached_tokens: int = field(default=0, init=False)
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
        memory: the cache that the sequences are in.
        sequences: how many answers may run at once.
        kv_tokens: cells of the cache, for all of them together.
        chunk_tokens: prompt tokens in one batch, at most.
        max_waiting: answers that may wait to be admitted.
        shares_prefixes: whether a sequence can begin as a copy of a part of another. Recurrent models
            cannot: their state is that after the last token.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        sequences: int,
        kv_tokens: int,
        chunk_tokens: int,
        max_waiting: int,
        shares_prefixes: bool = True,
    ) -> None:
        self._memory = memory
        self._sequences = [KvSequence(index) for index in range(sequences)]
        self._kv_tokens = kv_tokens
        self._chunk_tokens = chunk_tokens
        self._max_waiting = max_waiting
        self._shares_prefixes = shares_prefixes
        self._running: list[G] = []
        self._waiting: deque[G] = deque()
        self._cells = count()
        self._clock = count(1)

    def generations(self) -> list[G]:
        """All answers that have not ended: those that run, then those that wait, in the order they came."""
        return [*self._running, *self._waiting]

    def submit(self, generation: G) -> None:
        """Admit the answer, now or when those before it leave room.

        Raises:
            GenerationError: too many wait already (code "busy").
        """
        self._waiting.append(generation)
        self._admit()
        if len(self._waiting) > self._max_waiting:
            self._waiting.pop()
            raise GenerationError("busy", f"{self._max_waiting} answers wait for the language model already.")

    def end(self, generation: G, *, keep: bool = True) -> None:
        """Let go of an answer, running or waiting; what it evaluated stays for others if `keep`."""
        if generation in self._running:
            self._running.remove(generation)
            generation.sequence.is_running = False
            generation.sequence.last_used = next(self._clock)
            if not keep:
                self._truncate(generation.sequence, 0)
        else:
            self._waiting.remove(generation)
        self._admit()

    def compose(self) -> list[Part[G]]:
        """The next batch: one token of each answer that writes, and a chunk of those that still read."""
        return list(self._parts())

    def _parts(self) -> Iterator[Part[G]]:
        room = self._chunk_tokens
        for generation in self._running:
            position = len(generation.sequence.tokens)
            size = len(generation.tokens) - position
            if size > 1:
                size = min(size, room)
                room -= size
            if size:
                yield Part(generation, position, generation.tokens[position : position + size])

    def evaluated(self, part: Part[G]) -> None:
        """The cache now holds the part."""
        part.generation.sequence.tokens += part.tokens
        part.generation.sequence.cells += [next(self._cells) for _ in part.tokens]

    def restore(self, part: Part[G]) -> None:
        """The part was not evaluated, or nobody knows how far: forget what the cache holds of it."""
        if not self._memory.truncate(part.generation.sequence.index, part.position):
            self._truncate(part.generation.sequence, 0)

    def _admit(self) -> None:
        while self._waiting and self._place(self._waiting[0]):
            self._running.append(self._waiting.popleft())

    def _place(self, generation: G) -> bool:
        """Find a sequence for the answer, with as much of its prompt as any holds; False if it must wait."""
        idle = sorted((each for each in self._sequences if not each.is_running), key=_worth)
        if not idle:
            return False
        prompt = generation.tokens[:-1]  # the last token's logits are needed, so it is always evaluated
        target = self._target(generation.conversation, prompt, idle)
        candidates = self._sequences if self._shares_prefixes else [target]
        source = max(candidates, key=lambda each: (_common(each.tokens, prompt), each is target))
        same = _common(source.tokens, prompt)

        # What others may still write is theirs; an idle sequence stays only if there is room besides.
        room = self._kv_tokens - (generation.kv_tokens - same)
        room -= sum(each.kv_tokens - len(each.sequence.tokens) for each in self._running)
        held = set(source.cells[:same]).union(*(each.sequence.cells for each in self._running))
        if len(held) > room:
            return False
        if source is not target:
            self._truncate(target, 0)
            self._memory.copy(source.index, target.index, same)
            target.tokens, target.cells = source.tokens[:same], source.cells[:same]
        generation.cached_tokens = self._truncate(target, same)
        for each in reversed(idle):
            if each is not target:
                held.update(each.cells)
                if len(held) > room:
                    self._truncate(each, 0)

        for each in self._sequences:
            if each.conversation == generation.conversation:
                each.conversation = ""
        target.conversation = generation.conversation
        target.is_running = True
        generation.sequence = target
        return True

    def _target(self, conversation: str, prompt: Sequence[int], idle: list[KvSequence]) -> KvSequence:
        """The conversation's own sequence, or the idle one least missed.

        The nameless go on in one another's, the most alike: what would pile up otherwise slows every
        attention down, and nobody asks for it again.
        """
        own = [each for each in idle if each.tokens and each.conversation == conversation]
        return max(own, key=lambda each: _common(each.tokens, prompt), default=idle[0])

    def _truncate(self, sequence: KvSequence, length: int) -> int:
        """Cut the sequence to `length` tokens, or to none if the model refuses; how many are left."""
        if len(sequence.tokens) > length and not self._memory.truncate(sequence.index, length):
            self._memory.truncate(sequence.index, 0)
            length = 0
        del sequence.tokens[length:], sequence.cells[length:]
        return length


def _worth(sequence: KvSequence) -> tuple[bool, bool, int]:
    """Sorts idle sequences, the one least missed first: empty, nameless, least recently used."""
    return bool(sequence.tokens), bool(sequence.conversation), sequence.last_used


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
