"""Which tokens the sequences of the KV cache hold, and which sequence an answer gets.

This is bookkeeping without a model. What is no longer needed stays in its sequence for whoever begins with
the same tokens. Sequences can hold cells in common, so a system prompt is in the cache once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

SHORTEST_SAVED_TOKENS = 256
"""Fewer are evaluated in one batch (`llm.llama_cpp.prefill_chunk_tokens`): not worth a file."""


class Memory(Protocol):
    """The KV cache of one context with several sequences, which may hold cells in common."""

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let the empty sequence `target` hold the first `tokens` cells of `source` as well."""

    def truncate(self, sequence: int, tokens: int) -> bool:
        """Keep only the first `tokens` of a sequence; return False if it can only be emptied."""


class SavedStates(Protocol):
    """Sequences of conversations that have left the cache, one for each conversation at most."""

    def save(self, sequence: "KvSequence") -> None:
        """Keep what a conversation's sequence holds."""

    def tokens(self, conversation: str) -> Sequence[int]:
        """Return what is kept of a conversation; empty if nothing is."""

    def restore(self, conversation: str, sequence: int) -> bool:
        """Let the empty `sequence` hold what is kept, which is then no longer kept.

        Returns:
            False if it cannot be had. The sequence is empty then, and nothing is kept.
        """

    def forget(self, conversation: str) -> None:
        """Drop what is kept of a conversation, if anything is."""


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an answer needs a sequence for.

    Attributes:
        prompt: the tokens that the sequence should begin with, without the last one: its logits are needed,
            so it is always evaluated.
        kv_tokens: the most tokens that the sequence will ever hold.
        conversation: names the chat; empty for none.
        free_tokens: cells that no running answer holds in reserve for what it may still write.
    """

    prompt: Sequence[int]
    kv_tokens: int
    conversation: str
    free_tokens: int


@dataclass(frozen=True, slots=True)
class Place:
    """The sequence that an answer got.

    Attributes:
        sequence: where it is evaluated.
        cached_tokens: how much of the prompt the sequence holds already.
        restored_tokens: how much of that had been saved, and was restored now.
    """

    sequence: KvSequence
    cached_tokens: int
    restored_tokens: int = 0


class Sequences:
    """All sequences of one cache; belongs to the thread that decodes.

    Args:
        memory: the cache that the sequences are in.
        number: how many there are.
        shares_prefixes: whether a sequence can begin as a copy of a part of another. Recurrent models
            cannot: their state is that after the last token.
        states: where conversations are kept that lose their sequence; None: nowhere.
        shortest_saved_tokens: what has fewer is not saved, and what saves fewer is not restored.
        on_evicted: told when a conversation is about to lose its sequence to another.
    """

    def __init__(
        self,
        memory: Memory,
        number: int,
        *,
        shares_prefixes: bool = True,
        states: SavedStates | None = None,
        shortest_saved_tokens: int = SHORTEST_SAVED_TOKENS,
        on_evicted: Callable[[KvSequence], None] = lambda _: None,
    ) -> None:
        self._memory = memory
        self._all = [KvSequence(index) for index in range(number)]
        self._shares_prefixes = shares_prefixes
        self._states = states
        self._shortest_saved_tokens = shortest_saved_tokens
        self._on_evicted = on_evicted
        self._cells = count()
        self._clock = count(1)
        self._used: int | None = 0

    @property
    def used_tokens(self) -> int:
        """Cells that any sequence holds; counted anew only after one was cut or copied."""
        if self._used is None:
            self._used = len(set[int]().union(*(each.cells for each in self._all)))
        return self._used

    def conversations(self) -> list[KvSequence]:
        """Return idle sequences of conversations that are worth saving, the one used last at the end."""
        named = (each for each in self._all if each.conversation and not each.is_running)
        return sorted(filter(self._is_worth_saving, named), key=lambda each: each.last_used)

    def evaluated(self, sequence: KvSequence, tokens: Sequence[int]) -> None:
        """Note that the sequence now holds these tokens, too."""
        sequence.tokens += tokens
        sequence.cells += [next(self._cells) for _ in tokens]
        if self._used is not None:
            self._used += len(tokens)

    def restore(self, sequence: KvSequence, length: int) -> None:
        """Cut off what was not evaluated, or was to an unknown extent, beyond the first `length` tokens."""
        if not self._memory.truncate(sequence.index, length):
            self._truncate(sequence, 0)

    def release(self, sequence: KvSequence, *, keep: bool) -> None:
        """End the use of a sequence; what it holds stays for others if `keep`.

        A nameless one, which nobody asks for again, stays only if no other sequence has its beginning, such
        as the system prompt. llama.cpp's attention goes through all cells up to the last one in use, whoever
        has it: five tokens left behind in a far cell made others' answers a fifth slower.
        """
        sequence.is_running = False
        sequence.last_used = next(self._clock)
        if not keep or not (sequence.conversation or self._is_only_one_alike(sequence)):
            self._truncate(sequence, 0)

    def forget(self, conversation: str) -> None:
        """Drop a conversation; a sequence in which its answer is being written only loses its name."""
        for each in self._all:
            if each.conversation == conversation:
                each.conversation = ""
                if not each.is_running:
                    self._truncate(each, 0)

    def lose(self) -> None:
        """Note that the cache was lost: all sequences are empty and idle."""
        for each in self._all:
            each.tokens, each.cells = [], []
            each.conversation = ""
            each.is_running = False
        self._used = 0

    def place(self, wanted: Wanted) -> Place | None:
        """Return a sequence for an answer, with as much of its prompt as any holds; None if it must wait."""
        idle = sorted((each for each in self._all if not each.is_running), key=_worth)
        if not idle:
            return None
        target = self._target(wanted, idle)
        candidates = self._all if self._shares_prefixes else [target]
        source = max(candidates, key=lambda each: (_common(each.tokens, wanted.prompt), each is target))
        same = _common(source.tokens, wanted.prompt)
        saved = self._saved(wanted, same)
        shared = [] if saved else source.cells[:same]

        # What others may still write is theirs; an idle sequence stays only if there is room besides.
        room = wanted.free_tokens - (wanted.kv_tokens - len(shared))
        held = set(shared).union(*(each.cells for each in self._all if each.is_running))
        if len(held) > room:
            return None
        if target.conversation != wanted.conversation:
            self._evict(target)
        if source is not target:
            self._truncate(target, 0)
            self._share(source, target, len(shared))
        place = Place(target, self._truncate(target, len(shared)))
        self._make_room([each for each in idle if each is not target], held, room)
        if saved:
            restored = self._restore(wanted, target, saved)
            if restored is None:
                return self.place(wanted)  # as if it had never been saved
            place = Place(target, restored, restored)
        self._give(target, wanted.conversation)
        return place

    def _share(self, source: KvSequence, target: KvSequence, tokens: int) -> None:
        """Let the empty target begin as the source does."""
        if tokens:
            self._memory.copy(source.index, target.index, tokens)
            target.tokens, target.cells = source.tokens[:tokens], source.cells[:tokens]
            self._used = None

    def _make_room(self, idle: list[KvSequence], held: set[int], room: int) -> None:
        """Empty idle sequences, the one least missed first, until no more than `room` is held with them."""
        for each in reversed(idle):
            held.update(each.cells)
            if len(held) > room:
                self._evict(each)
                self._truncate(each, 0)

    def _give(self, sequence: KvSequence, conversation: str) -> None:
        """Let an answer run in the sequence, which is now the conversation's only one."""
        for each in self._all:
            if each.conversation == conversation:
                each.conversation = ""
        sequence.conversation = conversation
        sequence.is_running = True
        if self._states is not None and conversation:
            self._states.forget(conversation)  # what was not restored will never be

    def _saved(self, wanted: Wanted, cached: int) -> list[int]:
        """Return what was saved of the conversation, if it is worth restoring; else an empty list.

        It has to fit into what the cache will have for the answer, since it is restored whole.
        """
        if self._states is None or not wanted.conversation:
            return []
        saved = list(self._states.tokens(wanted.conversation))
        same = _common(saved, wanted.prompt)
        is_usable = self._shares_prefixes or same == len(saved)
        if is_usable and len(saved) <= wanted.kv_tokens and same - cached >= self._shortest_saved_tokens:
            return saved
        return []

    def _restore(self, wanted: Wanted, target: KvSequence, saved: list[int]) -> int | None:
        """Put what was saved into the empty target.

        Returns:
            How much of the prompt the target holds then; None if what was saved cannot be had.
        """
        assert self._states is not None  # noqa: S101 - nothing is saved otherwise
        if not self._states.restore(wanted.conversation, target.index):
            return None
        target.tokens, target.cells = saved, [next(self._cells) for _ in saved]
        self._used = None
        return self._truncate(target, _common(saved, wanted.prompt))

    def _target(self, wanted: Wanted, idle: list[KvSequence]) -> KvSequence:
        """Return the conversation's own sequence, or the most alike of the nameless, or the least missed.

        So whoever begins goes on in what a nameless one left, and the rest of that is of no use.
        """
        held = [each for each in idle if each.tokens]
        own = [each for each in held if each.conversation == wanted.conversation]
        nameless = [each for each in held if not each.conversation]
        return max(own or nameless, key=lambda each: _common(each.tokens, wanted.prompt), default=idle[0])

    def _is_only_one_alike(self, sequence: KvSequence) -> bool:
        """Return whether no other sequence begins with the same token."""
        others = (each for each in self._all if each is not sequence)
        return not any(_common(each.tokens, sequence.tokens) for each in others)

    def _evict(self, sequence: KvSequence) -> None:
        """Give up what the sequence holds, since another answer needs its place."""
        if sequence.conversation and sequence.tokens:
            if self._states is not None and self._is_worth_saving(sequence):
                self._states.save(sequence)
            self._on_evicted(sequence)
        sequence.conversation = ""

    def _is_worth_saving(self, sequence: KvSequence) -> bool:
        return len(sequence.tokens) >= self._shortest_saved_tokens

    def _truncate(self, sequence: KvSequence, length: int) -> int:
        """Cut the sequence to `length` tokens, or to none if the model refuses; return how many are left."""
        if len(sequence.tokens) > length and not self._memory.truncate(sequence.index, length):
            self._memory.truncate(sequence.index, 0)
            length = 0
        self._used = None
        del sequence.tokens[length:], sequence.cells[length:]
        return length


def _worth(sequence: KvSequence) -> tuple[bool, bool, int]:
    """Sort idle sequences, the one least missed first: empty, nameless, least recently used."""
    return bool(sequence.tokens), bool(sequence.conversation), sequence.last_used


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
