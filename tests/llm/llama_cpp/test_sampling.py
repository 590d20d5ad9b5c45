"""Promises of the sampler: it draws what llama.cpp's own chain would."""

import ctypes
from types import SimpleNamespace
from typing import Any

import llama_cpp
import numpy as np
import pytest

from june.errors import GenerationError
from june.kernels import llama_overrides
from june.llm.llama_cpp.sampling import LogitRows, Sampler, draw_likely
from june.messages import ChatRequest, Sampling
from tests.llm.llama_cpp.test_isolation import needs_kernel

N_TOKENS = 2003


class SmallVocabulary:
    """What the sampler asks of a vocabulary."""

    n_tokens = N_TOKENS
    end_tokens = frozenset({7})


def drawn_from(row: "np.ndarray[Any, Any]", sampler: Sampler) -> int:
    """Return what the sampler draws from a copy of the row, after one that is nobody's."""
    both = np.stack([np.flip(row), row])
    logits = LogitRows(both.ctypes.data, N_TOKENS)
    other = SimpleNamespace(kernel_draw=None)
    _, likely = draw_likely(logits, [other, sampler])  # type: ignore[list-item]  # all that it looks at
    return sampler.draw(logits, 1, likely)


def by_llama_cpp(sampling: Sampling, rows: "list[np.ndarray[Any, Any]]") -> list[int]:
    """Return what llama.cpp draws from each row, with all of its samplers in its own order."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    never = (llama_cpp.llama_logit_bias * 1)(llama_cpp.llama_logit_bias(7, -float("inf")))
    assert sampling.seed is not None
    for sampler in (
        llama_cpp.llama_sampler_init_logit_bias(N_TOKENS, 1, never),
        llama_cpp.llama_sampler_init_penalties(
            N_TOKENS, 64, sampling.repeat_penalty, 0.0, sampling.presence_penalty
        ),
        llama_cpp.llama_sampler_init_top_k(sampling.top_k),
        llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
        llama_cpp.llama_sampler_init_temp(sampling.temperature),
        llama_cpp.llama_sampler_init_dist(sampling.seed),
    ):
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    drawn = []
    for row in rows:
        data = (llama_cpp.llama_token_data * N_TOKENS)()
        for token, logit in enumerate(row):
            data[token] = llama_cpp.llama_token_data(token, float(logit), 0.0)
        choice = llama_cpp.llama_token_data_array(data, N_TOKENS, -1, False)
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(choice))
        drawn.append(int(choice.data[choice.selected].id))
        llama_cpp.llama_sampler_accept(chain, drawn[-1])
    llama_cpp.llama_sampler_free(chain)
    return drawn


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(presence_penalty=1.5, seed=1),
        Sampling(temperature=1.2, top_k=5, repeat_penalty=1.3, seed=2),
        Sampling(top_k=0, top_p=0.9, min_p=0.05, presence_penalty=0.5, seed=3),
        Sampling(top_k=N_TOKENS, top_p=1, repeat_penalty=0.8, seed=4),
        Sampling(temperature=0, presence_penalty=3, seed=5),
    ],
)
@pytest.mark.parametrize("drawer", ["june's kernel", "numpy"])
def test_it_draws_what_llama_cpp_draws(
    drawer: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    if drawer == "numpy":
        monkeypatch.setattr(llama_overrides, "drawer", lambda: None)
    random = np.random.default_rng(0)
    base = random.normal(0, 3, N_TOKENS)
    base[[7, -1]] = base.max()
    rows = [(base + random.normal(0, 1, N_TOKENS)).astype(np.float32) for _ in range(150)]
    request = ChatRequest((), sampling, max_tokens=1, ignore_eos=True)
    sampler = Sampler(request, SmallVocabulary())  # type: ignore[arg-type]  # all that it asks for
    drawn = [drawn_from(row, sampler) for row in rows]
    sampler.free()
    assert drawn == by_llama_cpp(sampling, rows)
    assert len(set(drawn)) > 1


@needs_kernel
def test_junes_kernel_passes_over_logits_that_are_no_numbers() -> None:
    assert llama_overrides.drawer() is not None
    sampling = Sampling(top_k=5, presence_penalty=0, seed=1)
    row = np.random.default_rng(2).normal(0, 3, N_TOKENS).astype(np.float32)
    broken, lowest = row.copy(), row.copy()
    broken[::7], lowest[::7] = np.nan, -np.inf
    sampler = Sampler(ChatRequest((), sampling, max_tokens=1, ignore_eos=True), SmallVocabulary())  # type: ignore[arg-type]
    drawn = [drawn_from(broken, sampler) for _ in range(20)]
    sampler.free()
    assert drawn == by_llama_cpp(sampling, [lowest] * 20)


@pytest.mark.parametrize("drawer", ["june's kernel", "numpy"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_an_answer_fails_whose_logits_are_no_numbers(
    temperature: float, drawer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if drawer == "numpy":
        monkeypatch.setattr(llama_overrides, "drawer", lambda: None)
    sampling = Sampling(temperature=temperature, top_k=5, seed=1)
    sampler = Sampler(ChatRequest((), sampling, max_tokens=1), SmallVocabulary())  # type: ignore[arg-type]
    with pytest.raises(GenerationError, match="not numbers"):
        drawn_from(np.full(N_TOKENS, np.nan, np.float32), sampler)
    sampler.free()


def test_it_draws_from_all_that_are_as_likely() -> None:
    sampling = Sampling(temperature=2, top_k=3, repeat_penalty=1.1, seed=1)
    rows = [np.zeros(N_TOKENS, np.float32)] * 20
    sampler = Sampler(ChatRequest((), sampling, max_tokens=1, ignore_eos=True), SmallVocabulary())  # type: ignore[arg-type]
    drawn = [drawn_from(row, sampler) for row in rows]
    sampler.free()
    assert drawn == by_llama_cpp(sampling, rows)
