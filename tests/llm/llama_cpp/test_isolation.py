"""Nobody's words reach another: proved by numbers, since greedy answers differ by llama.cpp's rounding alone.

llama.cpp rounds differently with the size of a batch and the place of a sequence in the cache. So the logits
of a conversation among others may differ from those of the same alone by as much as two batch sizes of it
alone do, and by no more. With june's own kernels, they do not differ at all.
"""

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from june import kernels
from june.llm.llama_cpp.answer import Answer
from june.llm.llama_cpp.context import Context
from june.llm.llama_cpp.engine import Engine
from june.llm.llama_cpp.meter import EngineStats
from june.llm.llama_cpp.pace import PairPace, PrefillPace
from june.llm.llama_cpp.sampling import LogitRows
from june.llm.llama_cpp.scheduler import Part
from june.llm.llama_cpp.settings import LlamaCppSettings
from june.messages import ChatMessage, ChatRequest, Sampling
from june.settings import Settings
from tests.conftest import LLM
from tests.llm.llama_cpp.test_model import Listener, run, with_engine

needs_kernel = pytest.mark.skipif(
    not any(kernel.runs_here for kernel in kernels.LLM), reason="this CPU runs none of june's kernels"
)

Logits = npt.NDArray[np.float32]

SYSTEM = "You are a friend who knows a lot about animals, and answers in short sentences. " * 4
FORCED = 40
OTHERS = ("house", "table", "water", "bread", "music", "train", "stars")
WILD = Sampling(temperature=1.2, top_p=1, top_k=0, seed=5)


class Forced(Engine):
    """Writes the same tokens whatever the model would say, and keeps the logits before each."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.logits: dict[str, list[Logits]] = defaultdict(list)

    def _write_token(self, answer: Answer, logits: LogitRows, row: int, _likely: int | None) -> None:
        written = len(answer.tokens) - answer.prompt_tokens
        self.logits[answer.conversation].append(logits[row].copy())
        if answer.write(1_000 + 37 * written + len(answer.conversation)):
            self._end(answer)


SINGLE_THREAD = LlamaCppSettings(threads=1)
"""So that the order of every sum is the same."""


def asks(name: str, *, system: str = SYSTEM, max_tokens: int = FORCED) -> ChatRequest:
    messages = (ChatMessage("system", system), ChatMessage("user", f"Tell me of the {name}."))
    return ChatRequest(messages, Sampling(temperature=0), max_tokens, conversation=name, ignore_eos=True)


def logits_of(engine: Forced, name: str, *requests: ChatRequest) -> Logits:
    """Return the logits of one of several that are written at once: (tokens, vocabulary)."""
    engine.logits.clear()
    run(engine, *(replace(each, ignore_eos=False) for each in requests))  # nothing is written into the logits
    assert len(engine.logits[name]) == FORCED
    return np.stack(engine.logits[name])


def clean(engine: Engine, chunk_tokens: int = 256) -> None:
    """Empty the cache: where a sequence lies in it changes the rounding too."""
    engine._context.rebuild()  # noqa: SLF001 - nothing else empties it
    engine._scheduler.lose_cache()  # noqa: SLF001
    engine._pace = PrefillPace(chunk_tokens, 10)  # noqa: SLF001


def difference(first: Logits, second: Logits) -> float:
    return float(np.abs(first - second).max())


def batch_sizes_differ(engine: Forced, mine: ChatRequest, alone: Logits) -> float:
    """How much the logits of a conversation alone depend on the size of its batches."""
    clean(engine)
    copies = [replace(mine, conversation=f"copy {number}") for number in range(7)]
    beside_itself = logits_of(engine, mine.conversation, mine, *copies)
    clean(engine, chunk_tokens=8)
    in_small_chunks = logits_of(engine, mine.conversation, mine)
    return max(difference(alone, beside_itself), difference(alone, in_small_chunks))


async def test_the_logits_among_seven_others_differ_by_rounding_alone(
    settings: Settings, model_paths: dict[str, Path]
) -> None:
    def work(engine: Forced) -> tuple[float, float, float]:
        mine = asks("fox", system="")
        clean(engine)
        alone = logits_of(engine, "fox", mine)
        clean(engine)
        assert difference(alone, logits_of(engine, "fox", mine)) == 0  # a fixed batch repeats itself
        allowed = batch_sizes_differ(engine, mine, alone)
        clean(engine)
        among = logits_of(engine, "fox", mine, *(asks(name, system="") for name in OTHERS))
        clean(engine)
        other = logits_of(engine, "cow", asks("cow", system=""))
        return difference(alone, among), allowed, difference(alone, other)

    among, allowed, other = await with_engine(Forced, settings.llm, model_paths[LLM], work, SINGLE_THREAD)
    assert among <= allowed < other


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2])
async def test_with_junes_kernels_an_answer_is_the_same_to_the_last_bit_whoever_is_beside_it(
    threads: int, settings: Settings, model_paths: dict[str, Path]
) -> None:
    def work(engine: Forced) -> list[float]:
        assert engine.has_own_kernel
        alone = logits_of(engine, "fox", asks("fox"))
        others = [asks(name) for name in OTHERS]
        clean(engine)
        among = logits_of(engine, "fox", asks("fox"), *others)  # with a system prompt that all share
        elsewhere = logits_of(engine, "fox", asks("fox"))  # in the cache
        clean(engine, chunk_tokens=16)
        in_small_chunks = logits_of(engine, "fox", asks("fox"))
        return [difference(alone, other) for other in (among, elsewhere, in_small_chunks)]

    own = LlamaCppSettings(threads=threads)
    assert await with_engine(Forced, settings.llm, model_paths[LLM], work, own) == [0, 0, 0]


class Splitting(PairPace):
    """Has every pair decoded one after the other."""

    def splits(self, parts: int, batch_tokens: int) -> bool:
        """See `PairPace`."""
        return parts == batch_tokens == 2


async def test_the_logits_of_two_that_take_turns_differ_by_rounding_alone(
    settings: Settings, model_paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    decode = Context.decode

    def noted(context: Context, parts: Sequence[Part[Answer]]) -> int:
        sizes.append(sum(len(part.tokens) for part in parts))
        return decode(context, parts)

    monkeypatch.setattr(Context, "decode", noted)

    def work(engine: Forced) -> tuple[float, float]:
        mine = asks("fox")
        clean(engine)
        alone = logits_of(engine, "fox", mine)
        allowed = batch_sizes_differ(engine, mine, alone)
        clean(engine)
        engine._pairs = Splitting()  # noqa: SLF001
        sizes.clear()
        beside = logits_of(engine, "fox", mine, asks("cow"))
        assert len(engine.logits["cow"]) == FORCED
        return difference(alone, beside), allowed

    beside, allowed = await with_engine(Forced, settings.llm, model_paths[LLM], work, SINGLE_THREAD)
    assert beside <= allowed
    assert 2 not in sizes
    assert sizes.count(1) >= 2 * (FORCED - 2)


async def test_a_shared_system_prompt_is_as_good_as_an_own_copy(
    settings: Settings, model_paths: dict[str, Path]
) -> None:
    def work(engine: Forced) -> tuple[int, float, float]:
        mine = asks("fox")
        before = asks("cow", max_tokens=1)  # reads the system prompt first, so that batches are the same
        clean(engine)
        alone = logits_of(engine, "fox", mine)
        allowed = batch_sizes_differ(engine, mine, alone)
        clean(engine)
        run(engine, replace(before, conversation="fox"))
        own = logits_of(engine, "fox", mine)
        clean(engine)
        run(engine, before)
        reused = engine.stats().prompt_tokens_reused
        shared = logits_of(engine, "fox", mine)
        return engine.stats().prompt_tokens_reused - reused, difference(own, shared), allowed

    cached, shared, allowed = await with_engine(Forced, settings.llm, model_paths[LLM], work, SINGLE_THREAD)
    assert cached > 60
    assert shared <= allowed


async def test_a_fixed_batch_with_fixed_seeds_repeats_itself(
    settings: Settings, model_paths: dict[str, Path]
) -> None:
    def work(engine: Engine) -> list[str]:
        requests = [
            replace(asks(name, max_tokens=8), sampling=replace(WILD, seed=seed))
            for seed, name in enumerate(OTHERS)
        ]
        clean(engine)
        return [listener.text for listener in run(engine, *requests)]

    first, second = await with_engine(
        Engine,
        settings.llm,
        model_paths[LLM],
        lambda engine: (work(engine), work(engine)),
        SINGLE_THREAD,
    )
    assert first == second
    assert len(set(first)) == len(OTHERS)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def churn(engine: Engine, requests: int) -> EngineStats:
    """Make requests of mixed length in random order, and give a third of them up at a random moment."""
    dice = random.Random(7)  # noqa: S311 - no secret
    emojis = "🎉🦄🍕🚀🌍🎸🐢🔥🎈🐙"
    open_ones: dict[Listener, str] = {}
    cancelled = finished = begun = warm_bytes = 0
    while begun < requests or open_ones:
        while begun < requests and len(open_ones) < 12:
            emoji = dice.choice(emojis)
            words = f"{dice.choice(OTHERS)} " * dice.randrange(0, 60, 20)
            messages = (ChatMessage("system", words), ChatMessage("user", f"Repeat: {emoji * 4}"))
            request = ChatRequest(messages, Sampling(0), dice.randrange(2, 12), conversation=str(begun % 25))
            listener = Listener()
            open_ones[listener] = emoji
            engine.begin(request, listener)
            begun += 1
        if dice.random() < 0.04 * len(open_ones):
            dice.choice(list(open_ones)).stop.set()
        engine.step()
        for listener, emoji in [*open_ones.items()]:
            if listener.has_ended:
                assert listener.error is None
                assert not set(listener.text) & (set(emojis) - {emoji})
                assert listener.stop.is_set() or listener.usage is not None
                cancelled += listener.stop.is_set()
                finished += listener.usage is not None
                del open_ones[listener]
        if begun >= requests // 2 and not warm_bytes:
            warm_bytes = resident_bytes()
    assert finished + cancelled >= requests
    assert cancelled > requests // 5
    assert resident_bytes() < warm_bytes * 1.02
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.failed) == (0, 0, 0)
    engine._scheduler.lose_cache()  # noqa: SLF001
    assert engine._sequences.used_tokens == 0  # noqa: SLF001
    return stats


async def test_of_a_hundred_requests_with_a_third_given_up_none_is_lost_or_mixed_up(
    settings: Settings, model_paths: dict[str, Path]
) -> None:
    stats = await with_engine(Engine, settings.llm, model_paths[LLM], lambda engine: churn(engine, 100))
    assert stats.evictions > 10
    assert stats.prompt_tokens_reused > 0


@pytest.mark.slow
async def test_of_a_thousand_requests_with_a_third_given_up_none_is_lost_or_mixed_up(
    settings: Settings, model_paths: dict[str, Path]
) -> None:
    await with_engine(Engine, settings.llm, model_paths[LLM], lambda engine: churn(engine, 1_000))


# --- what breaks ---


async def test_when_the_context_breaks_all_are_evaluated_anew_and_written_to_their_end(
    settings: Settings, model_paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks = {12, 13, 14, 15}  # the batch of three, and each of them alone
    batches = count()
    decode = Context.decode

    def sometimes(context: Context, parts: list[Any]) -> int:
        return -3 if next(batches) in breaks else decode(context, parts)

    monkeypatch.setattr(Context, "decode", sometimes)
    requests = [asks(name, max_tokens=20) for name in OTHERS[:3]]

    def work(engine: Engine) -> tuple[list[Listener], EngineStats]:
        return run(engine, *requests), engine.stats()

    answers, stats = await with_engine(Engine, settings.llm, model_paths[LLM], work, SINGLE_THREAD)
    assert [each.usage and each.usage.completion_tokens for each in answers] == [20, 20, 20]
    assert (stats.rebuilt, stats.failed) == (1, 0)
    breaks.clear()
    undisturbed, _ = await with_engine(Engine, settings.llm, model_paths[LLM], work, SINGLE_THREAD)
    assert [each.text[:20] for each in undisturbed] == [each.text[:20] for each in answers]


async def test_who_breaks_the_context_twice_fails_alone(
    settings: Settings, model_paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Context.decode

    def unless_table(context: Context, parts: list[Any]) -> int:
        is_there = any(part.generation.conversation == "table" for part in parts)
        return -3 if is_there else decode(context, parts)

    monkeypatch.setattr(Context, "decode", unless_table)
    requests = [asks(name, max_tokens=10) for name in OTHERS[:3]]
    answers = await with_engine(
        Engine, settings.llm, model_paths[LLM], lambda engine: run(engine, *requests), SINGLE_THREAD
    )
    assert [each.error and each.error.code for each in answers] == [None, "llm_failed", None]
    assert [each.usage and each.usage.completion_tokens for each in answers] == [10, None, 10]
