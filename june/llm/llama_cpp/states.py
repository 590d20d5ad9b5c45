"""Sequences of llama.cpp's cache, saved and restored.

Meanwhile nobody's answer goes on. To save takes the engine's thread 0.7 ms a MB, which is copying; writing
goes on beside it, but a second one waits for the first. To restore takes 1.4 ms a MB, most of it reading and
SHA-256. Measured with SmolLM2 on 2 cores, where 1,049 tokens are 24 MB; of Qwen3-8B they are 155 MB.
"""

from collections.abc import Sequence

from june.llm.llama_cpp.context import Context
from june.llm.llama_cpp.sequences import KvSequence
from june.llm.llama_cpp.state_files import StateFiles
from june.telemetry import log


class SequenceStates:
    """`SavedStates` of one context, in files."""

    def __init__(self, context: Context, files: StateFiles) -> None:
        self._context = context
        self._files = files

    def save(self, sequence: KvSequence) -> None:
        """`SavedStates.save`."""
        self._files.put(sequence.conversation, sequence.tokens, self._context.state(sequence.index))

    def save_all(self, sequences: Sequence[KvSequence]) -> None:
        """Save as many of the last of them as there may be."""
        room_bytes = self._files.max_bytes
        kept: list[KvSequence] = []
        for sequence in reversed(sequences):
            room_bytes -= self._context.state_bytes(sequence.index)
            if room_bytes < 0:
                break
            kept.append(sequence)
        for sequence in reversed(kept):
            self.save(sequence)
        log.info("states.saved", conversations=len(kept))

    def tokens(self, conversation: str) -> Sequence[int]:
        """`SavedStates.tokens`."""
        return self._files.tokens(conversation)

    def restore(self, conversation: str, sequence: int) -> bool:
        """`SavedStates.restore`."""
        saved = self._files.take(conversation)
        if saved is None:
            return False
        if not self._context.set_state(sequence, saved.state, len(saved.tokens)):
            log.warning("state.refused", detail="llama.cpp does not take it")
            return False
        return True

    def forget(self, conversation: str) -> None:
        """`SavedStates.forget`."""
        self._files.discard(conversation)
