"""Which conversations are decoded together, and which of their tokens the KV cache still holds.

The bookkeeping of continuous batching, without a model: answers wait in order until a sequence and enough
of the cache are theirs, every batch takes one token of each that writes and a chunk of those that still
read, and what is no longer needed stays in its sequence for whoever begins with the same tokens.

An answer is admitted only if the cache has room for all it may ever hold. So none is thrown out once it
runs, and llama.cpp finds a free cell for every token.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar

from june.errors import GenerationError

SHORTEST_SAVED_TOKENS = 256
"""Fewer are evaluated in one batch (`llm.prefill_chunk_tokens`): not worth a file."""


class Memory(Protocol):
    """The KV cache of one context with several sequences, which may hold cells in common."""

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let the empty sequence `target` hold the first `tokens` cells of `source` as well."""

    def truncate(self, sequence: int, tokens: int) -> bool:
        """Keep only the first `tokens` of a sequence; False if it can only be emptied."""


class SavedStates(Protocol):
    """Sequences of conversations that have left the cache, one for each at most."""

    def save(self, sequence: "KvSequence") -> None:
        """Keep what a conversation's sequence holds."""

    def tokens(self, conversation: str) -> Sequence[int]:
        """What is kept of a conversation; empty if nothing is."""

    def restore(self, conversation: str, sequence: int) -> bool:
        """Let the empty `sequence` hold what is kept, which is not kept any longer.

        Returns False if it cannot be had; the sequence is empty then, and nothing is kept.
        """

    def forget(self, conversation: str) -> None:
        """What is kept of a conversation, if anything, is of no use any more."""


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
        memory: the cache that the sequences are in.
        sequences: how many answers may run at once.
        kv_tokens: cells of the cache, for all of them together.
        chunk_tokens: prompt tokens in one batch, at most.
        max_waiting: answers that may wait to be admitted.
        shares_prefixes: whether a sequence can begin as a copy of a part of another. Recurrent models
            cannot: their state is that after the last token.
        states: where conversations are kept that lose their sequence; None: nowhere.
        shortest_saved_tokens: what has fewer is not saved, and what saves fewer is not restored.
        on_admitted: told of each answer that gets a sequence.
        on_evicted: told when a conversation is about to lose its sequence to another.
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
        states: SavedStates | None = None,
        shortest_saved_tokens: int = SHORTEST_SAVED_TOKENS,
        on_admitted: Callable[[G], None] = lambda _: None,
        on_evicted: Callable[[KvSequence], None] = lambda _: None,
    ) -> None:
        self._memory = memory
        self._sequences = [KvSequence(index) for index in range(sequences)]
        self._kv_tokens = kv_tokens
        self._chunk_tokens = chunk_tokens
        self._max_waiting = max_waiting
        self._shares_prefixes = shares_prefixes
        self._states = states
        self._shortest_saved_tokens = shortest_saved_tokens
        self._on_admitted = on_admitted
        self._on_evicted = on_evicted
        self._running: list[G] = []
        self._waiting: deque[G] = deque()
        self._cells = count()
        self._clock = count(1)
        self._kv_used: int | None = 0

    @property
    def running(self) -> int:
        """Answers that have a sequence."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers that have none yet."""
        return len(self._waiting)

    @property
    def kv_used_tokens(self) -> int:
        """Cells that any sequence holds; counted anew only after one was cut or copied."""
        if self._kv_used is None:
            self._kv_used = len(set[int]().union(*(each.cells for each in self._sequences)))
        return self._kv_used

    @property
    def is_writing(self) -> bool:
        """Whether any answer is past its prompt, so that a long batch would make it pause."""
        return any(len(each.tokens) - len(each.sequence.tokens) == 1 for each in self._running)

    def generations(self) -> list[G]:
        """All answers that have not ended: those that run, then those that wait, in the order they came."""
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
        """Let go of an answer, running or waiting; what it evaluated stays for others if `keep`.

        A nameless one, which nobody asks for again, stays only if no other sequence has its beginning, such
        as the system prompt. llama.cpp's attention goes through all cells up to the last one in use, whoever
        has it: five tokens left behind in a far cell made others' answers a fifth slower.
        """
        if generation in self._running:
            self._running.remove(generation)
            generation.sequence.is_running = False
            generation.sequence.last_used = next(self._clock)
            is_kept = keep and not generation.is_forgotten
            if not is_kept or not (generation.conversation or self._is_only_one_alike(generation.sequence)):
                self._truncate(generation.sequence, 0)
        else:
            self._waiting.remove(generation)
        self._admit()

    def conversations(self) -> list[KvSequence]:
        """Idle sequences of conversations that are long enough to be saved, the one used last at the end."""
        named = (each for each in self._sequences if each.conversation and not each.is_running)
        return sorted(filter(self._is_worth_saving, named), key=lambda each: each.last_used)

    def forget(self, conversation: str) -> None:
        """Drop a conversation from the cache; what is being written for it goes on, and leaves at its end."""
        for generation in self.generations():
            if generation.conversation == conversation:
                generation.conversation, generation.is_forgotten = "", True
        for each in self._sequences:
            if each.conversation == conversation:
                each.conversation = ""
                if not each.is_running:
                    self._truncate(each, 0)

    def lose_cache(self) -> None:
        """The cache was lost: all who run go back to the head of the queue, and are evaluated anew.

        More may wait then than may otherwise: nobody who was admitted is refused.
        """
        for each in self._sequences:
            each.tokens, each.cells = [], []
            each.conversation = ""
            each.is_running = False
        self._kv_used = 0
        for generation in self._running:
            del generation.sequence
        self._waiting.extendleft(reversed(self._running))
        self._running.clear()
        self._admit()

    def compose(self, chunk_tokens: int | None = None) -> list[Part[G]]:
        """The next batch: one token of each answer that writes, and a chunk of those that still read.

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
        """The cache now holds the part."""
        part.generation.sequence.tokens += part.tokens
        part.generation.sequence.cells += [next(self._cells) for _ in part.tokens]
        if self._kv_used is not None:
            self._kv_used += len(part.tokens)

    def restore(self, part: Part[G]) -> None:
        """The part was not evaluated, or nobody knows how far: forget what the cache holds of it."""
        if not self._memory.truncate(part.generation.sequence.index, part.position):
            self._truncate(part.generation.sequence, 0)

    def _admit(self) -> None:
        while self._waiting and self._place(self._waiting[0]):
            admitted = self._waiting.popleft()
            admitted.admitted_s = time.perf_counter()
            self._running.append(admitted)
            self._on_admitted(admitted)

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
        saved = self._saved(generation, prompt, same)
        shared = [] if saved else source.cells[:same]

        # What others may still write is theirs; an idle sequence stays only if there is room besides.
        room = self._kv_tokens - (generation.kv_tokens - len(shared))
        room -= sum(each.kv_tokens - len(each.sequence.tokens) for each in self._running)
        held = set(shared).union(*(each.sequence.cells for each in self._running))
        if len(held) > room:
            return False
        if target.conversation != generation.conversation:
            self._evict(target)
        if source is not target:
            self._truncate(target, 0)
            self._share(source, target, len(shared))
        generation.cached_tokens, generation.restored_tokens = self._truncate(target, len(shared)), 0
        self._make_room([each for each in idle if each is not target], held, room)
        if saved and not self._restore(generation, target, saved):
            return self._place(generation)  # as if it had never been saved
        self._give(target, generation)
        return True

    def _share(self, source: KvSequence, target: KvSequence, tokens: int) -> None:
        """Let the empty target begin as the source does."""
        if tokens:
            self._memory.copy(source.index, target.index, tokens)
            target.tokens, target.cells = source.tokens[:tokens], source.cells[:tokens]
            self._kv_used = None

    def _make_room(self, idle: list[KvSequence], held: set[int], room: int) -> None:
        """Empty idle sequences, the one least missed first, until no more than `room` is held with them."""
        for each in reversed(idle):
            held.update(each.cells)
            if len(held) > room:
                self._evict(each)
                self._truncate(each, 0)

    def _give(self, sequence: KvSequence, generation: G) -> None:
        """Let the answer run in the sequence, which is now the conversation's only one."""
        for each in self._sequences:
            if each.conversation == generation.conversation:
                each.conversation = ""
        sequence.conversation = generation.conversation
        sequence.is_running = True
        generation.sequence = sequence
        if self._states is not None and generation.conversation:
            self._states.forget(generation.conversation)  # what was not restored will never be

    def _saved(self, generation: G, prompt: Sequence[int], cached: int) -> list[int]:
        """What was saved of the conversation, if it is worth restoring; else none.

        It has to fit into what the cache will have for the answer, since it is restored whole.
        """
        if self._states is None or not generation.conversation:
            return []
        saved = list(self._states.tokens(generation.conversation))
        same = _common(saved, prompt)
        is_usable = self._shares_prefixes or same == len(saved)
        if is_usable and len(saved) <= generation.kv_tokens and same - cached >= self._shortest_saved_tokens:
            return saved
        return []

    def _restore(self, generation: G, target: KvSequence, saved: list[int]) -> bool:
        """Put what was saved into the empty target; False if it cannot be had."""
        assert self._states is not None  # noqa: S101 - nothing is saved otherwise
        if not self._states.restore(generation.conversation, target.index):
            return False
        target.tokens, target.cells = saved, [next(self._cells) for _ in saved]
        self._kv_used = None
        same = self._truncate(target, _common(saved, generation.tokens[:-1]))
        generation.cached_tokens = generation.restored_tokens = same
        return True

    def _target(self, conversation: str, prompt: Sequence[int], idle: list[KvSequence]) -> KvSequence:
        """The conversation's own sequence, or else the most alike of the nameless, or the one least missed.

        So whoever begins goes on in what a nameless one left, and the rest of that is of no use.
        """
        held = [each for each in idle if each.tokens]
        own = [each for each in held if each.conversation == conversation]
        nameless = [each for each in held if not each.conversation]
        return max(own or nameless, key=lambda each: _common(each.tokens, prompt), default=idle[0])

    def _is_only_one_alike(self, sequence: KvSequence) -> bool:
        """Whether no other sequence begins with the same token."""
        others = (each for each in self._sequences if each is not sequence)
        return not any(_common(each.tokens, sequence.tokens) for each in others)

    def _evict(self, sequence: KvSequence) -> None:
        """Somebody else needs what the sequence holds."""
        if sequence.conversation and sequence.tokens:
            if self._states is not None and self._is_worth_saving(sequence):
                self._states.save(sequence)
            self._on_evicted(sequence)
        sequence.conversation = ""

    def _is_worth_saving(self, sequence: KvSequence) -> bool:
        return len(sequence.tokens) >= self._shortest_saved_tokens

    def _truncate(self, sequence: KvSequence, length: int) -> int:
        """Cut the sequence to `length` tokens, or to none if the model refuses; how many are left."""
        if len(sequence.tokens) > length and not self._memory.truncate(sequence.index, length):
            self._memory.truncate(sequence.index, 0)
            length = 0
        self._kv_used = None
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
