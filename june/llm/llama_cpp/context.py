"""llama.cpp's context: the cache of all sequences, and the batches that are decoded in it."""

import ctypes
from collections.abc import Sequence
from ctypes.util import find_library
from typing import Any

from june import hardware
from june.llm.llama_cpp.answer import Answer
from june.llm.llama_cpp.library import llama_cpp
from june.llm.llama_cpp.sampling import LogitRows
from june.llm.llama_cpp.scheduler import Part
from june.llm.llama_cpp.settings import LlamaCppSettings

KV_TYPES = {
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}
FLASH_ATTENTION = {"auto": -1, False: 0, True: 1}
"""`enum llama_flash_attn_type`."""
DECODED, DECODE_ABORTED, DECODE_INVALID = 0, 2, -1
"""What `llama_decode` returns; what is less than the last has broken the context."""


class Context:
    """One context of one model; a `Memory` to the sequences.

    Args:
        model: llama.cpp's handle of the model.
        own: the section `[llm.llama_cpp]`.
        slots: how many sequences there are.
        kv_tokens: the cache of all of them together.

    Attributes:
        handle: llama.cpp's own; None if there is no memory for it.
    """

    def __init__(self, model: Any, own: LlamaCppSettings, *, slots: int, kv_tokens: int) -> None:
        self._model = model
        self._n_tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._params = _context_params(own, slots, kv_tokens)
        self._batch = llama_cpp.llama_batch_init(self._params.n_batch, 0, 1)
        for row in range(self._params.n_batch):
            self._batch.n_seq_id[row] = 1
        self._abort = ctypes.create_string_buffer(2)
        self._decoding: Sequence[Part[Answer]] = ()
        self._open()

    def _open(self) -> None:
        self.handle = llama_cpp.llama_init_from_model(self._model, self._params)
        if self.handle:
            self._memory = llama_cpp.llama_get_memory(self.handle)
            _abort_when_set(self.handle, self._abort)

    def rebuild(self) -> None:
        """Replace llama.cpp's context by a new and empty one.

        Raises:
            MemoryError: there is no room for it any more.
        """
        llama_cpp.llama_free(self.handle)
        self._open()
        if not self.handle:
            raise MemoryError

    def free(self) -> None:
        """Give the memory back; the context is of no use afterwards."""
        llama_cpp.llama_batch_free(self._batch)
        if self.handle:
            llama_cpp.llama_free(self.handle)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """`Memory.copy`."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    def truncate(self, sequence: int, tokens: int) -> bool:
        """`Memory.truncate`."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, tokens, -1))

    def state_bytes(self, sequence: int) -> int:
        """Return the size of the state of a sequence."""
        return int(llama_cpp.llama_state_seq_get_size(self.handle, sequence))

    def state(self, sequence: int) -> bytearray:
        """Return what the cache holds of a sequence, for a context of the same model and number format."""
        state = bytearray(self.state_bytes(sequence))
        buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
        written = llama_cpp.llama_state_seq_get_data(self.handle, buffer, len(state), sequence)
        del buffer  # while it is there, the size of the other cannot change
        del state[written:]
        return state

    def set_state(self, sequence: int, state: bytearray, tokens: int) -> bool:
        """Let an empty sequence hold a state of so many tokens; if that fails, empty it and return False."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
        read = llama_cpp.llama_state_seq_set_data(self.handle, buffer, len(state), sequence)
        if read and llama_cpp.llama_memory_seq_pos_max(self._memory, sequence) == tokens - 1:
            return True
        self.truncate(sequence, 0)
        return False

    def decode(self, parts: Sequence[Part[Answer]]) -> int:
        """Decode the parts in one batch, unless it is given up; see `abort_if_mostly_unread`.

        Returns llama.cpp's status.
        """
        self._fill(parts)
        self._decoding = parts
        self._abort[0] = b"\0"
        self.abort_if_mostly_unread()
        status = int(llama_cpp.llama_decode(self.handle, self._batch))
        self._decoding = ()
        return status

    def logits(self) -> LogitRows:
        """Return those of the last batch: a row for each part that was its generation's last, in order."""
        first = llama_cpp.llama_get_logits(self.handle).contents
        return LogitRows(ctypes.addressof(first), self._n_tokens)

    def abort_if_mostly_unread(self) -> None:
        """Give the batch up that is being decoded, if most of it has lost its reader; on any thread.

        What the others lose is less than what they would still wait for.
        """
        parts = self._decoding
        unread = sum(len(part.tokens) for part in parts if part.generation.reader.stop.is_set())
        if unread and unread * 2 > sum(len(part.tokens) for part in parts):
            ctypes.memset(self._abort, 1, 1)

    def _fill(self, parts: Sequence[Part[Answer]]) -> None:
        """Put the parts into the batch, one after the other."""
        batch = self._batch
        row = 0
        for part in parts:
            for position, token in enumerate(part.tokens, part.position):
                batch.token[row] = token
                batch.pos[row] = position
                batch.seq_id[row][0] = part.generation.sequence.index
                batch.logits[row] = False
                row += 1
            batch.logits[row - 1] = part.is_last
        batch.n_tokens = row


def threads_of(own: LlamaCppSettings) -> int:
    """Return the CPU threads that compute."""
    return own.threads or hardware.cpu_cores()


def _context_params(own: LlamaCppSettings, slots: int, kv_tokens: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = kv_tokens
    params.n_batch = params.n_ubatch = own.prefill_chunk_tokens + slots
    params.n_seq_max = slots
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = threads_of(own)
    params.flash_attn_type = FLASH_ATTENTION[own.flash_attention]
    params.type_k = params.type_v = KV_TYPES[own.kv_type]
    params.no_perf = True
    return params


def _abort_when_set(context: Any, flag: "ctypes.Array[ctypes.c_char]") -> None:
    """Have llama.cpp give up a batch as soon as the flag's first byte is not zero (CPU only).

    llama.cpp asks its abort callback before every node of the graph, far too often for Python. The C
    library's `strlen` answers the same question, "is the first byte set?", without the interpreter.
    """
    strlen = ctypes.CDLL(find_library("c")).strlen
    callback = ctypes.cast(strlen, llama_cpp.ggml_abort_callback)
    llama_cpp.llama_set_abort_callback(context, callback, ctypes.cast(flag, ctypes.c_void_p))
