"""How the next token is drawn."""

import ctypes
import math
import random
from typing import Any

import llama_cpp
import numpy as np

from june.errors import GenerationError
from june.llm.llama_cpp.vocabulary import Vocabulary
from june.messages import ChatRequest

REPEAT_PENALTY_WINDOW_TOKENS = 64
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""`struct llama_token_data`."""


class Sampler:
    """A chain of llama.cpp's samplers for one answer, in the order of its own command line.

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
        sampling = request.sampling
        seed = random.getrandbits(32) if sampling.seed is None else sampling.seed
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if request.ignore_eos:
            never = [llama_cpp.llama_logit_bias(token, -math.inf) for token in vocabulary.end_tokens]
            bias = (llama_cpp.llama_logit_bias * len(never))(*never)
            self._add(llama_cpp.llama_sampler_init_logit_bias(vocabulary.n_tokens, len(never), bias))
        if sampling.presence_penalty or sampling.repeat_penalty != 1:
            window, repeat, presence = (
                REPEAT_PENALTY_WINDOW_TOKENS,
                sampling.repeat_penalty,
                sampling.presence_penalty,
            )
            self._add(
                llama_cpp.llama_sampler_init_penalties(vocabulary.n_tokens, window, repeat, 0.0, presence)
            )
        if sampling.temperature == 0:
            self._add(llama_cpp.llama_sampler_init_greedy())
        else:
            self._add(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
            self._add(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
            self._add(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
            self._add(llama_cpp.llama_sampler_init_temp(sampling.temperature))
            self._add(llama_cpp.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: Any, row: int, *, constrained: bool) -> int:
        """The token drawn after a row of the last batch, which then counts as written.

        Args:
            context: llama.cpp's.
            row: of the batch.
            constrained: whether the grammar holds, if there is one.

        Raises:
            GenerationError: the grammar leaves no token.
        """
        if self._grammar is None or not constrained:
            return int(llama_cpp.llama_sampler_sample(self._chain, context, row))
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, row), (self._n_tokens,))
        token = self._draw(logits, self._chain)
        if not self._allows(token):
            # To ask the grammar about one token takes 0.1 ms, about a whole vocabulary 10 to 50. What is
            # drawn from those that it allows comes as often as if it had been asked first.
            token = self._draw(logits, self._grammar, self._chain)
            if not self._allows(token):  # to accept it would end the process
                raise GenerationError(
                    "bad_grammar", "The grammar leaves no token that the model could write."
                )
        llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def _draw(self, logits: Any, *samplers: Any) -> int:
        """The token that the samplers choose, one after the other; nothing counts as written."""
        candidates = np.zeros(self._n_tokens, CANDIDATE)
        candidates["id"] = np.arange(self._n_tokens)
        candidates["logit"] = logits
        choice = _token_data_array(candidates)
        for sampler in samplers:
            llama_cpp.llama_sampler_apply(sampler, ctypes.byref(choice))
        return int(choice.data[choice.selected].id)

    def _allows(self, token: int) -> bool:
        candidate = np.zeros(1, CANDIDATE)
        candidate["id"] = token
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(_token_data_array(candidate)))
        return bool(candidate["logit"][0] > -math.inf)

    def free(self) -> None:
        """Give the memory back; the sampler is of no use afterwards."""
        llama_cpp.llama_sampler_free(self._chain)
        if self._grammar is not None:
            llama_cpp.llama_sampler_free(self._grammar)


def _token_data_array(candidates: "np.ndarray[Any, Any]") -> Any:
    """`struct llama_token_data_array` on the same memory."""
    data = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    return llama_cpp.llama_token_data_array(data, len(candidates), -1, False)
