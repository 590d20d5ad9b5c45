"""How the next token is drawn."""

import ctypes
import math
import random
from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from june.errors import GenerationError
from june.llm import cpu
from june.llm.llama_cpp.vocabulary import Vocabulary
from june.messages import ChatRequest, Sampling

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.intp]
Candidates = npt.NDArray[np.void]

REPEAT_PENALTY_WINDOW_TOKENS = 64
GROUP_TOKENS = 64
"""Of a vocabulary, whose largest logits are looked for: 49,152 tokens in 21 us, against 300 by partition."""
MOST_FOUND, FOUND_ROOM = 256, 1024
"""The most of the likeliest that june's kernel finds, and room for those that are as likely."""
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""`struct llama_token_data`."""


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
        self._never = vocabulary.end_tokens if request.ignore_eos else frozenset()
        self._penalizes = sampling.repeat_penalty != 1 or sampling.presence_penalty != 0
        self._recent = np.zeros(REPEAT_PENALTY_WINDOW_TOKENS, np.intp)  # a ring
        self._drawn = 0
        self._likeliest = None
        if (find := cpu.likeliest_finder()) and sampling.temperature and 0 < sampling.top_k <= MOST_FOUND:
            self._likeliest = _Likeliest(find, sampling, self._recent)
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

    def _add(self, sampler: Any) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def draw(self, logits: Logits, *, constrained: bool = False) -> int:
        """The token drawn, which then counts as written.

        Args:
            logits: shape (tokens of the vocabulary,); penalties are written into it.
            constrained: whether the grammar holds, if there is one.

        Raises:
            GenerationError: the grammar leaves no token, or the logits are no numbers.
        """
        for never in self._never:
            logits[never] = -math.inf
        token = self._draw_likely(logits)
        if self._grammar is not None and constrained:
            if not self._allows(token):
                # To ask the grammar about one token takes 0.1 ms, about a whole vocabulary 10 to 50. What is
                # drawn from those that it allows comes as often as if it had been asked first.
                token = _draw(np.arange(self._n_tokens), logits, self._grammar, self._chain)
                if not self._allows(token):  # to accept it would end the process
                    raise GenerationError(
                        "bad_grammar", "The grammar leaves no token that the model could write."
                    )
            llama_cpp.llama_sampler_accept(self._grammar, token)
        self._recent[self._drawn % len(self._recent)] = token
        self._drawn += 1
        return token

    def _penalize(self, logits: Logits) -> None:
        """Lower, in place, what was written lately, as `llama_sampler_init_penalties` does."""
        if self._penalizes:
            written = self._recent[: self._drawn]  # one that stands there twice is still lowered once
            lowered = logits[written]
            if (repeat := self._sampling.repeat_penalty) != 1:
                lowered = np.where(lowered > 0, lowered / repeat, lowered * repeat)
            logits[written] = lowered - self._sampling.presence_penalty

    def _draw_likely(self, logits: Logits) -> int:
        """The token that the chain draws; it is shown only what it would not drop first of all."""
        if self._likeliest is None:
            self._penalize(logits)
        elif (found := self._likeliest.draw(logits, self._drawn, self._chain)) is not None:
            return found
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        top_k, groups = self._sampling.top_k, self._n_tokens // GROUP_TOKENS
        if not 0 < top_k <= groups:
            return _draw(np.arange(self._n_tokens), logits, self._chain)
        # The k largest maxima of groups are k logits, so the k largest logits are no smaller. A group is a
        # column: for numpy that is six times as fast as a row.
        maxima = logits[: groups * GROUP_TOKENS].reshape(GROUP_TOKENS, groups).max(axis=0)
        tokens = np.flatnonzero(logits >= np.partition(maxima, -top_k)[-top_k])
        if not tokens.size:  # llama.cpp's samplers would end the process
            raise GenerationError("llm_failed", "The model's logits are no numbers.")
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


class _Likeliest:
    """What june's kernel finds of a row, where llama.cpp's samplers take it.

    Args:
        find: the kernel.
        sampling: how many it finds, or some more, and how what was written is lowered before.
        recent: what was written, a ring.
    """

    def __init__(self, find: Callable[..., int], sampling: Sampling, recent: Tokens) -> None:
        self._find = find
        self._recent = recent.ctypes.data, len(recent)
        self._how = sampling.repeat_penalty, sampling.presence_penalty, sampling.top_k
        self._data = (llama_cpp.llama_token_data * FOUND_ROOM)()
        self._choice = llama_cpp.llama_token_data_array(self._data, 0, -1, False)

    def draw(self, logits: Logits, written: int, sampler: Any) -> int | None:
        """The token that the sampler chooses; None: none is a number, or more are as likely than have room.

        Args:
            logits: one row; penalties are written into it.
            written: how many tokens were written.
            sampler: llama.cpp's.
        """
        recent, size = self._recent
        row = logits.ctypes.data, len(logits)
        found = self._find(*row, recent, min(written, size), *self._how, self._data, FOUND_ROOM)
        if not 0 < found <= FOUND_ROOM:
            return None
        choice = self._choice
        choice.data, choice.size, choice.selected, choice.sorted = self._data, found, -1, False
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(choice))
        return int(choice.data[choice.selected].id)


def _draw(tokens: Tokens, logits: Logits, *samplers: Any) -> int:
    """The one of the tokens that the samplers choose, one after the other; nothing counts as written."""
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
