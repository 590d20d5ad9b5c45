"""The tokens of one model, and the text that they stand for."""

import ctypes
from typing import Any

from june.errors import GenerationError
from june.llm.llama_cpp.grammar import refuse_bottomless
from june.llm.llama_cpp.library import llama_cpp

LONGEST_PIECE_BYTES = 256


class Vocabulary:
    """Turns text into a model's tokens, and tokens into bytes.

    Attributes:
        n_tokens: how many there are.
        end_tokens: those that end an answer.
        control_tokens: the texts of those that steer the model and are not words.
    """

    def __init__(self, model: Any) -> None:
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self.n_tokens = int(llama_cpp.llama_vocab_n_tokens(self._vocabulary))
        self.end_tokens = frozenset(
            token for token in range(self.n_tokens) if llama_cpp.llama_vocab_is_eog(self._vocabulary, token)
        )
        self.control_tokens = frozenset(
            self._name(token)
            for token in range(self.n_tokens)
            if llama_cpp.llama_vocab_is_control(self._vocabulary, token)
        )
        self._buffer = ctypes.create_string_buffer(LONGEST_PIECE_BYTES)
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text, in which control tokens are taken for what they are."""
        data = text.encode("utf-8", "replace")
        tokens = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), tokens, len(tokens), False, True)
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token, which may be a part of a character; none of a control token."""
        if (piece := self._pieces.get(token)) is None:
            size = llama_cpp.llama_token_to_piece(
                self._vocabulary, token, self._buffer, LONGEST_PIECE_BYTES, 0, False
            )
            piece = self._pieces[token] = self._buffer.raw[:size]
        return piece

    def grammar(self, gbnf: str) -> Any:
        """Return a sampler that lets pass only tokens with which the text follows the grammar.

        Raises:
            GenerationError: llama.cpp does not take the grammar.
        """
        refuse_bottomless(gbnf)
        sampler = llama_cpp.llama_sampler_init_grammar(
            self._vocabulary, gbnf.encode("utf-8", "replace"), b"root"
        )
        if not sampler:
            raise GenerationError(
                "bad_grammar",
                "llama.cpp does not take the grammar: it is not GBNF, has no rule root, or has a rule that "
                "is missing, begins with itself, or is repeated too often.",
            )
        return sampler

    def bos(self) -> str:
        """Return the control token that begins a text; empty if there is none."""
        return self._name(llama_cpp.llama_vocab_bos(self._vocabulary))

    def eos(self) -> str:
        """Return the control token that ends a text; empty if there is none."""
        return self._name(llama_cpp.llama_vocab_eos(self._vocabulary))

    def _name(self, token: int) -> str:
        if token < 0:
            return ""
        return bytes(llama_cpp.llama_vocab_get_text(self._vocabulary, token) or b"").decode(
            "utf-8", "replace"
        )
