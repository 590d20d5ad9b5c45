"""The scheduler against a cache that only remembers: who runs, who waits, and what each sequence holds."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from june.errors import GenerationError
from june.llm.llama_cpp.pace import PAIRS, PairPace, PrefillPace
from june.llm.llama_cpp.scheduler import Generation, Part, Scheduler
from june.llm.llama_cpp.sequences import KvSequence, Sequences

SEQUENCES = 3
KV_TOKENS = 24
CHUNK_TOKENS = 4
MAX_WAITING = 2
SHORTEST_SAVED_TOKENS = 3

Batch: TypeAlias = list[Part[Generation]]


class Cache:
    """What llama.cpp does with a sequence, by the token: each cell is a list of its own."""

    def __init__(self, *, is_recurrent: bool = False) -> None:
        self.sequences: list[list[list[int]]] = [[] for _ in range(SEQUENCES)]
        self._is_recurrent = is_recurrent

    def copy(self, source: int, target: int, tokens: int) -> None:
        """`Memory.copy`."""
        assert not self._is_recurrent
        assert source != target
        assert not self.sequences[target]
        self.sequences[target] = self.sequences[source][:tokens]

    def truncate(self, sequence: int, tokens: int) -> bool:
        """`Memory.truncate`."""
        if self._is_recurrent and 0 < tokens < len(self.sequences[sequence]):
            return False
        del self.sequences[sequence][tokens:]
        return True

    def evaluate(self, part: Part[Generation]) -> None:
        """Add the part's tokens, each in a new cell."""
        cells = self.sequences[part.generation.sequence.index]
        assert len(cells) == part.position
        cells += [[token] for token in part.tokens]
        assert self.used <= KV_TOKENS

    def holds(self, sequence: int) -> list[int]:
        """Return the tokens of a sequence."""
        return [cell[0] for cell in self.sequences[sequence]]

    @property
    def used(self) -> int:
        """Cells that any sequence holds."""
        return len({id(cell) for cells in self.sequences for cell in cells})


@dataclass
class Shelf:
    """`SavedStates` in memory; what is `damaged` cannot be restored; `taken` counts what was asked for."""

    cache: Cache
    saved: dict[str, list[int]] = field(default_factory=dict)
    damaged: bool = False
    taken: int = 0

    def save(self, sequence: KvSequence) -> None:
        """`SavedStates.save`."""
        assert self.cache.holds(sequence.index) == sequence.tokens
        assert len(sequence.tokens) >= SHORTEST_SAVED_TOKENS
        self.saved[sequence.conversation] = sequence.tokens.copy()

    def tokens(self, conversation: str) -> Sequence[int]:
        """`SavedStates.tokens`."""
        return self.saved.get(conversation, ())

    def restore(self, conversation: str, sequence: int) -> bool:
        """`SavedStates.restore`."""
        assert not self.cache.sequences[sequence]
        tokens = self.saved.pop(conversation)
        self.taken += 1
        if not self.damaged:
            self.cache.sequences[sequence] = [[token] for token in tokens]
            assert self.cache.used <= KV_TOKENS
        return not self.damaged

    def forget(self, conversation: str) -> None:
        """`SavedStates.forget`."""
        self.saved.pop(conversation, None)


@dataclass
class Desk:
    """A scheduler, its cache, and the calls that the engine makes of them."""

    cache: Cache
    sequences: Sequences
    scheduler: Scheduler[Generation]

    def submit(self, prompt: list[int], answer: int = 1, conversation: str = "") -> Generation:
        """Ask for an answer of so many tokens."""
        generation = Generation(prompt.copy(), len(prompt) + answer - 1, conversation)
        self.scheduler.submit(generation)
        return generation

    def step(self, *, fails: bool = False) -> Batch:
        """Evaluate a batch, or fail to; what is written is always 7."""
        parts = self.scheduler.compose()
        for part in parts:
            self.cache.evaluate(part)
            if fails:
                self.scheduler.restore(part)
            else:
                self.scheduler.evaluated(part)
        for part in () if fails else parts:
            generation = part.generation
            if part.is_last:
                if len(generation.tokens) == generation.kv_tokens:  # the last one written is not evaluated
                    self.scheduler.end(generation)
                else:
                    generation.tokens.append(7)
        return parts

    def finish_all(self) -> None:
        """Step until nothing is left."""
        while self.scheduler.generations():
            assert self.step()

    def running(self) -> list[Generation]:
        """Those in the next batch."""
        return [part.generation for part in self.scheduler.compose()]


def open_desk(cache: Cache, *, states: Shelf | None = None) -> Desk:
    sequences = Sequences(
        cache,
        SEQUENCES,
        shares_prefixes=not cache._is_recurrent,  # noqa: SLF001 - one thing, told to both
        states=states,
        shortest_saved_tokens=SHORTEST_SAVED_TOKENS,
    )
    scheduler: Scheduler[Generation] = Scheduler(
        sequences, kv_tokens=KV_TOKENS, chunk_tokens=CHUNK_TOKENS, max_waiting=MAX_WAITING
    )
    return Desk(cache, sequences, scheduler)


@pytest.fixture
def desk() -> Desk:
    cache = Cache()
    return open_desk(cache)


def test_a_conversation_evaluates_only_what_is_new(desk: Desk) -> None:
    desk.submit([1, 2, 3, 4], answer=2, conversation="ann")
    desk.finish_all()
    desk.submit([1, 5, 5], conversation="bob")
    desk.finish_all()
    again = desk.submit([1, 2, 3, 4, 7, 8], conversation="ann")
    assert again.cached_tokens == 5
    assert desk.step()[0].tokens == [8]


def test_a_common_beginning_is_evaluated_once_and_takes_no_more_cells(desk: Desk) -> None:
    desk.submit([1, 2, 3, 4, 5])
    desk.finish_all()
    sharing = [desk.submit([1, 2, 3, 4, 9], conversation=name) for name in ("ann", "bob")]
    assert [each.cached_tokens for each in sharing] == [4, 4]
    desk.finish_all()
    assert desk.cache.used == 6  # of the first one's answer nothing is left


def test_a_batch_holds_a_token_of_each_that_writes_and_one_chunk_of_prompts(desk: Desk) -> None:
    desk.submit([1], answer=9)
    desk.submit([2], answer=9)
    desk.submit([3] * 6)
    assert [part.tokens for part in desk.step()] == [[1], [2], [3] * 4]
    assert [part.tokens for part in desk.step()] == [[7], [7], [3] * 2]


def test_the_last_sequence_given_up_is_the_one_used_last(desk: Desk) -> None:
    for name in ("ann", "bob", "cid"):
        desk.submit([ord(name[0])] * 3, conversation=name)
        desk.finish_all()
    desk.submit([ord("a")] * 3, conversation="ann")
    desk.finish_all()
    desk.submit([1, 1], conversation="dan")
    assert desk.submit([ord("c")] * 3, conversation="cid").cached_tokens == 2
    assert desk.submit([ord("a")] * 3, conversation="ann").cached_tokens == 2


def test_cells_are_taken_from_who_was_idle_longest(desk: Desk) -> None:
    for number, name in enumerate(("ann", "bob", "cid")):
        desk.submit([number] * 8, conversation=name)
        desk.finish_all()
    desk.submit([9] * 12, conversation="dan")  # in the place of ann
    desk.finish_all()
    assert desk.submit([2] * 8, conversation="cid").cached_tokens == 7
    assert desk.cache.used == 12 + 7


def test_a_nameless_sequence_is_given_up_before_a_conversation(desk: Desk) -> None:
    desk.submit([1, 1, 1], conversation="ann")
    desk.finish_all()
    desk.submit([2, 2])
    desk.submit([3, 3])
    desk.finish_all()
    desk.submit([4, 4], conversation="bob")
    assert desk.submit([1, 1, 1], conversation="ann").cached_tokens == 2


def test_the_nameless_go_on_in_the_sequence_most_like_theirs(desk: Desk) -> None:
    desk.submit([1, 1])
    desk.submit([2, 2])
    desk.finish_all()
    for length in range(3, 8):
        assert desk.submit([1] * length).cached_tokens == length - 1
        desk.finish_all()
    assert sorted(map(desk.cache.holds, range(SEQUENCES))) == [[], [1] * 7, [2, 2]]


def test_of_the_nameless_nothing_stays_whose_beginning_another_has(desk: Desk) -> None:
    desk.submit([7, 7, 1, 1, 1], conversation="ann")
    desk.submit([7, 7, 2, 2])
    desk.finish_all()
    assert sorted(map(desk.cache.holds, range(SEQUENCES))) == [[], [], [7, 7, 1, 1, 1]]
    assert desk.submit([7, 7, 3]).cached_tokens == 2


def test_one_of_many_nameless_keeps_their_beginning_for_whoever_comes(desk: Desk) -> None:
    for last in range(SEQUENCES):
        desk.submit([7, 7, last])
    desk.finish_all()
    assert sum(map(bool, map(desk.cache.holds, range(SEQUENCES)))) == 1
    assert desk.submit([7, 7, 9], conversation="ann").cached_tokens == 2
    assert desk.cache.used == 2


def test_who_does_not_fit_waits_and_nobody_overtakes(desk: Desk) -> None:
    first = desk.submit([1] * 4, answer=17)
    large = desk.submit([2] * 10)
    small = desk.submit([3])
    assert desk.running() == [first]
    desk.scheduler.end(first)
    assert desk.running() == [large, small]


def test_idle_sequences_make_room_and_running_ones_do_not(desk: Desk) -> None:
    running = desk.submit([1] * 8, answer=6)
    desk.submit([2] * 8)
    for _ in range(4):
        desk.step()
    assert desk.running() == [running]
    desk.submit([3] * 10)
    desk.finish_all()
    assert desk.cache.holds(0)[:8] == [1] * 8
    assert [2] * 8 not in map(desk.cache.holds, range(SEQUENCES))


def test_one_too_many_is_refused_as_busy_and_the_others_stay(desk: Desk) -> None:
    taken = [desk.submit([number]) for number in range(SEQUENCES + MAX_WAITING)]
    with pytest.raises(GenerationError) as caught:
        desk.submit([9])
    assert caught.value.code == "busy"
    assert desk.scheduler.generations() == taken


def test_a_model_that_cannot_go_back_evaluates_anew_and_shares_nothing() -> None:
    cache = Cache(is_recurrent=True)
    desk = open_desk(cache)
    desk.submit([1, 2, 3], conversation="ann")
    desk.finish_all()
    assert desk.submit([1, 2, 3, 4], conversation="bob").cached_tokens == 0
    assert desk.submit([1, 2, 3, 4], conversation="ann").cached_tokens == 3
    desk.finish_all()
    assert desk.submit([1, 2, 9], conversation="ann").cached_tokens == 0


def test_a_lost_cache_is_evaluated_anew_in_the_same_order() -> None:
    cache = Cache()
    desk = open_desk(cache)
    desk.submit([1] * 3, answer=8, conversation="ann")
    desk.finish_all()
    sharing = [desk.submit([1] * 3 + [number], answer=8) for number in (2, 3)]  # no room for two copies
    for _ in range(3):
        desk.step()
    for cells in cache.sequences:
        cells.clear()
    desk.scheduler.lose_cache()
    assert desk.scheduler.generations() == sharing
    assert desk.submit([1] * 3, conversation="ann").cached_tokens == 0
    desk.finish_all()
    assert [len(each.tokens) for each in sharing] == [11, 11]


def test_it_tells_who_was_admitted_and_who_lost_their_place() -> None:
    cache = Cache()
    admitted: list[Generation] = []
    evicted: list[tuple[str, list[int]]] = []

    def note(sequence: KvSequence) -> None:
        evicted.append((sequence.conversation, sequence.tokens.copy()))

    sequences = Sequences(cache, 1, on_evicted=note)
    tells = Scheduler[Generation](
        sequences,
        kv_tokens=KV_TOKENS,
        chunk_tokens=CHUNK_TOKENS,
        max_waiting=MAX_WAITING,
        on_admitted=admitted.append,
    )
    desk = Desk(cache, sequences, tells)
    first = desk.submit([1, 2], conversation="ann")
    second = desk.submit([1, 2, 3], conversation="ann")
    assert admitted == [first]
    desk.finish_all()
    third = desk.submit([4], conversation="bob")
    assert admitted == [first, second, third]
    assert evicted == [("ann", [1, 2, 3])]
    assert second.submitted_s < second.admitted_s


@pytest.fixture
def shelved() -> tuple[Desk, Shelf]:
    """Return a desk with a shelf that holds ann's conversation, who has left the cache."""
    return without_ann(Cache())


def without_ann(cache: Cache) -> tuple[Desk, Shelf]:
    shelf = Shelf(cache)
    desk = open_desk(cache, states=shelf)
    desk.submit([1] * 6, answer=2, conversation="ann")
    desk.finish_all()
    for number, name in enumerate(("bob", "cid", "dan"), 2):
        desk.submit([number] * 5, conversation=name)
        desk.finish_all()
    assert shelf.saved == {"ann": [1] * 6 + [7]}
    return desk, shelf


def test_a_conversation_that_lost_its_place_is_restored(shelved: tuple[Desk, Shelf]) -> None:
    desk, shelf = shelved
    again = desk.submit([1] * 6 + [7, 8], conversation="ann")
    assert (again.cached_tokens, again.restored_tokens) == (7, 7)
    assert desk.step()[0].tokens == [8]
    assert shelf.saved == {"bob": [2] * 5}  # whose place it is now


def test_of_what_is_restored_only_the_common_beginning_stays(shelved: tuple[Desk, Shelf]) -> None:
    desk, _ = shelved
    again = desk.submit([1] * 5 + [9], answer=3, conversation="ann")
    assert again.restored_tokens == 5
    assert desk.sequences.used_tokens == desk.cache.used
    assert desk.step()[0].tokens == [9]


def test_what_is_restored_takes_cells_of_its_own() -> None:
    shelf = Shelf(cache := Cache(), {"ann": [1] * 5})
    desk = open_desk(cache, states=shelf)
    desk.submit([2] * 5, conversation="bob")
    desk.finish_all()
    desk.submit([1] * 6, conversation="ann")
    assert desk.sequences.used_tokens == desk.cache.used == 10


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ([1, 1, 9, 9, 9, 9, 9, 9], 1),  # it begins otherwise
        ([1] * 5, 1),  # the saved is longer than the room that the answer has
    ],
)
def test_what_is_not_worth_restoring_is_forgotten(
    shelved: tuple[Desk, Shelf], prompt: list[int], answer: int
) -> None:
    desk, shelf = shelved
    again = desk.submit(prompt, answer, conversation="ann")
    assert (again.cached_tokens, again.restored_tokens) == (0, 0)
    assert "ann" not in shelf.saved


def test_what_another_sequence_holds_too_is_not_restored(shelved: tuple[Desk, Shelf]) -> None:
    desk, shelf = shelved
    desk.submit([1] * 6 + [8], conversation="bob")
    desk.finish_all()
    again = desk.submit([1] * 6 + [7, 8], conversation="ann")
    assert (again.cached_tokens, again.restored_tokens) == (6, 0)
    assert "ann" not in shelf.saved


def test_what_cannot_be_restored_is_evaluated(shelved: tuple[Desk, Shelf]) -> None:
    desk, shelf = shelved
    shelf.damaged = True
    again = desk.submit([1] * 6 + [7, 8], conversation="ann")
    assert (again.cached_tokens, again.restored_tokens) == (0, 0)
    assert desk.step()[0].tokens == [1] * CHUNK_TOKENS


def test_who_waits_for_room_is_restored_when_there_is_some(shelved: tuple[Desk, Shelf]) -> None:
    desk, shelf = shelved
    large = desk.submit([9] * 12, answer=8)
    waiting = desk.submit([1] * 6 + [7, 8], conversation="ann")
    assert desk.running() == [large]
    assert "ann" in shelf.saved
    desk.scheduler.end(large)
    assert waiting.restored_tokens == 7


def test_a_model_that_cannot_go_back_restores_only_what_is_all_of_it_wanted() -> None:
    desk, _ = without_ann(Cache(is_recurrent=True))
    assert desk.submit([1] * 6 + [7, 8], conversation="ann").restored_tokens == 7
    desk, shelf = without_ann(Cache(is_recurrent=True))
    assert desk.submit([1] * 6 + [8, 8], answer=3, conversation="ann").restored_tokens == 0
    assert shelf.taken == 0


def test_the_short_and_the_nameless_are_not_saved() -> None:
    shelf = Shelf(cache := Cache())
    desk = open_desk(cache, states=shelf)
    desk.submit([1] * (SHORTEST_SAVED_TOKENS - 1), conversation="ann")
    desk.submit([2] * 8)
    desk.submit([3] * 8, conversation="cid")
    desk.finish_all()
    assert [each.conversation for each in desk.sequences.conversations()] == ["cid"]
    for number in range(4, 8):
        desk.submit([number] * 2, conversation=str(number))
        desk.finish_all()
    assert set(shelf.saved) == {"cid"}


def test_a_forgotten_conversation_leaves_the_cache_at_once_or_with_its_answer(desk: Desk) -> None:
    desk.submit([1] * 6, conversation="ann")
    desk.finish_all()
    desk.scheduler.forget("ann")
    assert desk.cache.used == desk.sequences.used_tokens == 0
    running = desk.submit([2] * 6, answer=3, conversation="bob")
    desk.step()
    desk.scheduler.forget("bob")
    desk.finish_all()
    assert len(running.tokens) == 8
    assert desk.cache.used == desk.sequences.used_tokens == 0


def test_a_chunk_is_whole_while_nobody_writes_and_short_enough_while_somebody_does() -> None:
    pace = PrefillPace(256, pause_s=0.2)
    assert pace.chunk_tokens(is_writing=True) == 32
    pace.decoded(8, 0.1)  # a batch of writers, which says nothing
    assert pace.chunk_tokens(is_writing=True) == 32
    pace.decoded(256, 0.5)
    assert pace.chunk_tokens(is_writing=False) == 256
    assert pace.chunk_tokens(is_writing=True) == 96
    for _ in range(20):
        pace.decoded(96, 0.02)
    assert pace.chunk_tokens(is_writing=True) == 256
    for _ in range(20):
        pace.decoded(96, 3.0)
    assert pace.chunk_tokens(is_writing=True) == 32


def test_two_are_decoded_one_after_the_other_where_that_is_seen_to_be_faster() -> None:
    pace = PairPace()
    for _ in range(PAIRS - 1):
        pace.decoded(1, 0.007)
        pace.decoded(2, 0.021)
    assert not pace.splits(2, 2)
    pace.decoded(1, 0.050)  # something else ran on the machine
    pace.decoded(2, 0.050)
    assert pace.splits(2, 2)
    assert not pace.splits(2, 40)  # one of them is a prompt
    assert not pace.splits(1, 2)
    assert not pace.splits(4, 4)
    for _ in range(PAIRS):
        pace.decoded(1, 0.011)
    assert not pace.splits(2, 2)


class Conversations(RuleBasedStateMachine):
    """Any requests, ends, steps and failures, in any order."""

    is_recurrent = False

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache(is_recurrent=self.is_recurrent)
        self.shelf = Shelf(self.cache)
        self.desk = open_desk(self.cache, states=self.shelf)
        self.expected: deque[Generation] = deque()  # in the order they came
        self.sent_back = 0

    def running(self) -> list[Generation]:
        """Those that were admitted and have not ended."""
        return [each for each in self.desk.scheduler.generations() if hasattr(each, "sequence")]

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=16),
        answer=st.integers(1, 8),
        conversation=st.sampled_from(["", "ann", "bob", "cid", "dan"]),
    )
    def submit(self, prompt: list[int], answer: int, conversation: str) -> None:
        """Somebody asks."""
        try:
            generation = self.desk.submit(prompt, answer, conversation)
        except GenerationError:
            assert len(self.expected) - len(self.running()) >= MAX_WAITING
        else:
            self.expected.append(generation)

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, *, keep: bool) -> None:
        """Somebody hangs up, or fails."""
        self.desk.scheduler.end(data.draw(st.sampled_from(list(self.expected))), keep=keep)

    @rule(fails=st.booleans())
    def step(self, *, fails: bool) -> None:
        """One batch."""
        before = self.desk.scheduler.generations()
        parts = self.desk.step(fails=fails)
        assert bool(parts) == bool(before)
        assert sum(len(part.tokens) for part in parts if len(part.tokens) > 1) <= CHUNK_TOKENS

    @rule(conversation=st.sampled_from(["ann", "bob"]))
    def forget(self, conversation: str) -> None:
        """Somebody's conversation begins anew."""
        before = self.desk.scheduler.generations()
        self.desk.scheduler.forget(conversation)
        assert self.desk.scheduler.generations() == before
        assert conversation not in [each.conversation for each in self.desk.sequences.conversations()]

    @rule()
    def damage_what_is_saved(self) -> None:
        """Let a disk fail, or be mended."""
        self.shelf.damaged = not self.shelf.damaged

    @rule()
    def lose_the_cache(self) -> None:
        """llama.cpp's context breaks."""
        for cells in self.cache.sequences:
            cells.clear()
        before = self.desk.scheduler.generations()
        self.sent_back = SEQUENCES
        self.desk.scheduler.lose_cache()
        assert self.desk.scheduler.generations() == before

    @invariant()
    def nobody_is_lost_or_overtaken(self) -> None:
        """Order and number of those that wait and run."""
        now = self.desk.scheduler.generations()
        assert now == [each for each in self.expected if each in now]
        self.expected = deque(now)
        running = self.running()
        assert now[: len(running)] == running
        assert len({each.sequence.index for each in running}) == len(running)
        assert len(now) - len(running) <= MAX_WAITING + self.sent_back
        assert running or not now

    @invariant()
    def each_sequence_holds_the_tokens_of_its_answer_alone(self) -> None:
        """No token of one is in the sequence of another."""
        for each in self.running():
            held = self.cache.holds(each.sequence.index)
            assert held == each.sequence.tokens == each.tokens[: len(held)]
            assert len(held) <= each.kv_tokens

    @invariant()
    def a_conversation_is_saved_only_while_it_is_out_of_the_cache(self) -> None:
        """No old copy of what goes on."""
        assert not self.shelf.saved.keys() & {each.conversation for each in self.running()}

    @invariant()
    def the_cache_has_room_for_all_that_runs(self) -> None:
        """Check that what was promised is there."""
        to_come = sum(each.kv_tokens - len(each.sequence.tokens) for each in self.running())
        assert self.cache.used + to_come <= KV_TOKENS
        assert self.desk.sequences.used_tokens == self.cache.used

    def teardown(self) -> None:
        """Whatever happened, all that is left can be finished."""
        self.desk.finish_all()


class RecurrentConversations(Conversations):
    """The same with a model that cannot go back."""

    is_recurrent = True


TestConversations = Conversations.TestCase
TestConversations.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRecurrentConversations = RecurrentConversations.TestCase
TestRecurrentConversations.settings = settings(max_examples=75, stateful_step_count=40, deadline=None)
