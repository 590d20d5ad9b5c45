"""How the next token is drawn."""

import math
import random
from typing import Any

import llama_cpp

from june.llm.llama_cpp.vocabulary import Vocabulary
from june.messages import ChatRequest

REPEAT_PENALTY_WINDOW_TOKENS = 64


class Sampler:
    """A chain of llama.cpp's samplers for one answer, in the order of its own command line."""

    def __init__(self, request: ChatRequest, vocabulary: Vocabulary) -> None:
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

    def sample(self, context: Any, row: int) -> int:
        """The token drawn after a row of the last batch, which the chain then counts as written."""
        return int(llama_cpp.llama_sampler_sample(self._chain, context, row))

    def free(self) -> None:
        """Give the memory back; the sampler is of no use afterwards."""
        llama_cpp.llama_sampler_free(self._chain)
