"""How the next token is drawn."""

import ctypes
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from june.errors import GenerationError
from june.kernels import llama_overrides
from june.llm.llama_cpp.library import llama_cpp
from june.llm.llama_cpp.vocabulary import Vocabulary
from june.messages import ChatRequest

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.intp]
Candidates = npt.NDArray[np.void]

REPEAT_PENALTY_WINDOW_TOKENS = 64
GROUP_TOKENS = 64
"""Of a vocabulary, whose largest logits are looked for: 49,152 tokens in 21 us, against 300 by partition."""
KERNEL_MOST_TOP_K = 256
"""The largest `top_k` for which june's kernel finds the likeliest."""
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""`struct llama_token_data`."""

_APPLY = ctypes.cast(llama_cpp.llama_sampler_apply, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Logits in llama.cpp's memory, one row behind the other; there until the next batch.

    Attributes:
        address: of the first.
        n_tokens: of the vocabulary.
    """

    address: int
    n_tokens: int

    def __getitem__(self, row: int) -> Logits:
        """Return a row, of shape (tokens of the vocabulary,); what is written into it stays."""
        values = ctypes.c_float * self.n_tokens
        memory = values.from_address(self.address + row * ctypes.sizeof(values))
        return np.frombuffer(memoryview(memory), np.float32)


class Sampler:
    """How one answer's tokens are drawn: by llama.cpp's samplers, in the order of its own command line.

    Penalties and the choice of the `top_k` likeliest are made here, since llama.cpp takes three times as long
    for them: it copies the whole vocabulary for each token, and looks every word of it up.

    Args:
        request: how to sample.
        vocabulary: the model's.
        grammar: what is written must follow it, in GBNF; empty: anything may be written.

    Raises:
        GenerationError: llama.cpp does not take the grammar.
    """

    def __init__(self, request: ChatRequest, vocabulary: Vocabulary, grammar: str = "") -> None:
        self._n_tokens = vocabulary.n_tokens
        self._grammar = vocabulary.grammar(grammar) if grammar else None
        self._sampling = sampling = request.sampling
        self._never = np.array([*vocabulary.end_tokens] if request.ignore_eos else [], np.intp)
        self._penalizes = sampling.repeat_penalty != 1 or sampling.presence_penalty != 0
        self._recent = np.zeros(REPEAT_PENALTY_WINDOW_TOKENS, np.intp)  # a ring
        self._drawn = 0
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if sampling.temperature == 0:
            self._add(llama_cpp.llama_sampler_init_greedy())
        else:
            seed = random.getrandbits(32) if sampling.seed is None else sampling.seed
            self._add(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
            self._add(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
            self._add(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
            self._add(llama_cpp.llama_sampler_init_temp(sampling.temperature))
            self._add(llama_cpp.llama_sampler_init_dist(seed))
        self.kernel_draw = None
        if sampling.temperature == 0 or 0 < sampling.top_k <= KERNEL_MOST_TOP_K:
            self.kernel_draw = llama_overrides.Draw(
                never=self._never.ctypes.data,
                never_count=len(self._never),
                written=self._recent.ctypes.data,
                sampler=ctypes.addressof(self._chain.contents) if sampling.temperature else None,
                repeat=sampling.repeat_penalty,
                presence=sampling.presence_penalty,
                top_k=sampling.top_k,
            )

    def _add(self, sampler: Any) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def draw(self, logits: LogitRows, row: int, likely: int | None, *, constrained: bool = False) -> int:
        """Return the token drawn, which then counts as written.

        Args:
            logits: those of a batch; penalties are written into them.
            row: the sampler's.
            likely: what `draw_likely` drew from it.
            constrained: whether the grammar holds, if there is one.

        Raises:
            GenerationError: the grammar leaves no token, or the logits are not numbers.
        """
        token = self._draw_by_numpy(logits[row]) if likely is None else likely
        if token < 0:
            raise GenerationError("llm_failed", "The model's logits are not numbers.")
        if self._grammar is not None and constrained:
            if not self._allows(token):
                # To ask the grammar about one token takes 0.1 ms, about a whole vocabulary 10 to 50. What is
                # drawn from those that it allows comes as often as if it had been asked first.
                token = _draw(np.arange(self._n_tokens), logits[row], self._grammar, self._chain)
                if not self._allows(token):  # to accept it would end the process
                    raise GenerationError(
                        "bad_grammar", "The grammar leaves no token that the model could write."
                    )
            llama_cpp.llama_sampler_accept(self._grammar, token)
        self._recent[self._drawn % REPEAT_PENALTY_WINDOW_TOKENS] = token
        self._drawn += 1
        if self._penalizes and self.kernel_draw is not None:
            self.kernel_draw.written_count = min(self._drawn, REPEAT_PENALTY_WINDOW_TOKENS)
        return token

    def _penalize(self, logits: Logits) -> None:
        """Lower, in place, what was written lately, as `llama_sampler_init_penalties` does."""
        if self._penalizes:
            written = self._recent[: self._drawn]  # one that stands there twice is still lowered once
            lowered = logits[written]
            if (repeat := self._sampling.repeat_penalty) != 1:
                lowered = np.where(lowered > 0, lowered / repeat, lowered * repeat)
            logits[written] = lowered - self._sampling.presence_penalty

    def _draw_by_numpy(self, logits: Logits) -> int:
        """Return the token that the chain draws from all that it would not drop at once; -1: none."""
        logits[self._never] = -math.inf
        self._penalize(logits)
        if self._sampling.temperature == 0:
            token = int(logits.argmax())
            return -1 if math.isnan(logits[token]) else token
        top_k, groups = self._sampling.top_k, self._n_tokens // GROUP_TOKENS
        if not 0 < top_k <= groups:
            return _draw(np.arange(self._n_tokens), logits, self._chain)
        # The k largest maxima of groups are k logits, so the k largest logits are not smaller. A group is a
        # column: for numpy that is six times as fast as a row.
        maxima = logits[: groups * GROUP_TOKENS].reshape(GROUP_TOKENS, groups).max(axis=0)
        tokens = np.flatnonzero(logits >= np.partition(maxima, -top_k)[-top_k])
        if not tokens.size:  # llama.cpp's samplers would end the process
            return -1
        return _draw(tokens, logits[tokens], self._chain)

    def _allows(self, token: int) -> bool:
        candidates = _candidates(np.array([token]), np.zeros(1, np.float32))
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(_token_data_array(candidates)))
        return bool(candidates["logit"][0] > -math.inf)

    def free(self) -> None:
        """Give the memory back; the sampler is of no use afterwards."""
        llama_cpp.llama_sampler_free(self._chain)
        if self._grammar is not None:
            llama_cpp.llama_sampler_free(self._grammar)


def draw_likely(logits: LogitRows, samplers: Sequence[Sampler]) -> Sequence[int | None]:
    """Return what june's kernel draws for each sampler from its row, into which penalties are written.

    That is what the sampler draws if its grammar allows it; -1: no logit is a number; None: it has to draw.
    """
    kernel = llama_overrides.drawer()
    if kernel is None:
        return [None] * len(samplers)
    draws = [sampler.kernel_draw for sampler in samplers]
    addresses = [None if draw is None else ctypes.addressof(draw) for draw in draws]
    kernel(logits.address, logits.n_tokens, (ctypes.c_void_p * len(draws))(*addresses), len(draws), _APPLY)
    return [None if draw is None else draw.token for draw in draws]


def _draw(tokens: Tokens, logits: Logits, *samplers: Any) -> int:
    """Return the token that the samplers choose, one after the other; it does not count as written."""
    candidates = _candidates(tokens, logits)
    choice = _token_data_array(candidates)
    for sampler in samplers:
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(choice))
    return int(choice.data[choice.selected].id)


def _candidates(tokens: Tokens, logits: Logits) -> Candidates:
    candidates = np.zeros(len(tokens), CANDIDATE)
    candidates["id"] = tokens
    candidates["logit"] = logits
    return candidates


def _token_data_array(candidates: Candidates) -> Any:
    """`struct llama_token_data_array` on the same memory."""
    data = (llama_cpp.llama_token_data * len(candidates)).from_buffer(candidates.data)
    return llama_cpp.llama_token_data_array(data, len(candidates), -1, False)
