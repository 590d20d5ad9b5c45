"""One model and one context, in which all answers are decoded together."""

import ctypes
from contextlib import ExitStack
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import llama_cpp

from june import hardware
from june.errors import GenerationError, ModelLoadError
from june.llm.llama_cpp.answer import Answer, Reader
from june.llm.llama_cpp.sampling import Sampler
from june.llm.llama_cpp.template import template_of
from june.llm.llama_cpp.vocabulary import Vocabulary
from june.llm.llama_cpp.weights import converted
from june.llm.output import Output
from june.llm.prompt import Prompts
from june.llm.reasoning import CLOSING
from june.llm.scheduler import Part, Scheduler
from june.messages import ChatRequest
from june.models import Model
from june.settings import LlmSettings

KV_TYPES = {
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}
FLASH_ATTENTION = {"auto": -1, False: 0, True: 1}
"""`enum llama_flash_attn_type`."""
ALL_LAYERS = 999
DECODED, DECODE_ABORTED = 0, 2
"""What `llama_decode` returns; all else is a failure."""


class Engine:
    """One model, and one context that decodes all answers together; used by one thread at a time."""

    def __init__(
        self, settings: LlmSettings, model: Model, path: Path, kv_tokens: int, *, offloaded: bool
    ) -> None:
        self.offloaded = offloaded
        self.kv_tokens = kv_tokens
        if not self.offloaded:
            hardware.keep_on_first_core(_threads(settings))
        llama_cpp.llama_log_set(_ignore_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        name = model.name
        if model.cpu_format and not offloaded:
            path = converted(path, model.cpu_format, threads=_threads(settings))
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = ALL_LAYERS if settings.gpu_layers < 0 else settings.gpu_layers
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise ModelLoadError(f"Language model {name} cannot be loaded: llama.cpp refuses {path.name}.")
        self._vocabulary = Vocabulary(self._model)
        try:
            template = template_of(self._model, name, self._vocabulary)
        except ModelLoadError:
            llama_cpp.llama_model_free(self._model)
            raise
        self._prompts = Prompts(template, self._vocabulary.control_tokens)
        self._context = llama_cpp.llama_init_from_model(self._model, _context_params(settings, kv_tokens))
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise ModelLoadError(
                f"Language model {name} was read, but there is no room for a cache of {kv_tokens} tokens; "
                "lower llm.kv_tokens or llm.context_tokens."
            )
        self._context_tokens = settings.context_tokens
        self._memory = _Memory(llama_cpp.llama_get_memory(self._context))
        self._scheduler: Scheduler[Answer] = Scheduler(
            self._memory,
            sequences=settings.slots,
            kv_tokens=kv_tokens,
            chunk_tokens=settings.prefill_chunk_tokens,
            max_waiting=settings.max_waiting,
            shares_prefixes=not (
                llama_cpp.llama_model_is_recurrent(self._model)
                or llama_cpp.llama_model_is_hybrid(self._model)
            ),
        )
        self._batch = llama_cpp.llama_batch_init(_batch_tokens(settings), 0, 1)
        self._abort = ctypes.create_string_buffer(2)
        _abort_when_set(self._context, self._abort)

    def free(self) -> None:
        """Give the memory back; the engine is of no use afterwards."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    @property
    def is_busy(self) -> bool:
        """Whether there is an answer to go on with."""
        return bool(self._scheduler.generations())

    def begin(self, request: ChatRequest, reader: Reader) -> None:
        """Take a request on; the reader is told if that cannot be."""
        try:
            answer = self._answer(request, reader)
            try:
                self._scheduler.submit(answer)
            except GenerationError:
                answer.sampler.free()
                raise
        except GenerationError as error:
            reader.end(error)

    def _answer(self, request: ChatRequest, reader: Reader) -> Answer:
        """The answer before its first token.

        Raises:
            GenerationError: the prompt is longer than the context, or cannot be rendered; or the grammar or
                JSON schema cannot be kept.
        """
        prompt = self._prompts.make(request)
        tokens = self._vocabulary.tokenize(prompt.text)
        room = self._context_tokens - len(tokens)
        if room < 1:
            raise GenerationError(
                "context_overflow",
                f"The prompt has {len(tokens)} tokens, the context {self._context_tokens}.",
            )
        max_tokens = min(request.max_tokens, room)
        return Answer(
            tokens=tokens,
            kv_tokens=len(tokens) + max_tokens - 1,  # the last one written is never evaluated
            conversation=request.conversation,
            reader=reader,
            sampler=Sampler(request, self._vocabulary, prompt.grammar),
            vocabulary=self._vocabulary,
            output=Output(thinking=prompt.thinking, calls=prompt.calls, stop=request.stop),
            max_tokens=max_tokens,
            prompt_tokens=len(tokens),
            thinking_budget_tokens=request.thinking_budget_tokens,
            closing=self._vocabulary.tokenize(CLOSING) if request.thinking_budget_tokens else [],
        )

    def step(self) -> None:
        """Drop the answers that nobody reads, decode one batch, and write a token of each it completes."""
        for answer in self._scheduler.generations():
            if answer.reader.stop.is_set():
                self._end(answer)
        parts = self._scheduler.compose()
        if parts and self._evaluate(parts) not in {DECODED, DECODE_ABORTED}:
            for part in self._scheduler.compose():  # once more, each alone, to find out whose fault it is
                status = self._evaluate([part])
                if status not in {DECODED, DECODE_ABORTED}:
                    error = GenerationError("llm_failed", f"llama_decode failed with status {status}.")
                    self._end(part.generation, error, keep=False)

    def _evaluate(self, parts: list[Part[Answer]]) -> int:
        """Decode the parts in one batch, and write a token for each that is the last; llama.cpp's status."""
        rows = self._fill_batch(parts)
        self._abort[0] = b"\0"

        def abort_if_mostly_unread() -> None:
            # What the others lose is less than what they would still wait for.
            unread = sum(len(part.tokens) for part in parts if part.generation.reader.stop.is_set())
            if unread * 2 > self._batch.n_tokens:
                ctypes.memset(self._abort, 1, 1)

        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(part.generation.reader.stop.interrupts(abort_if_mostly_unread))
            status = int(llama_cpp.llama_decode(self._context, self._batch))
        if status != DECODED:
            for part in parts:
                self._scheduler.restore(part)
            return status
        for part in parts:
            self._scheduler.evaluated(part)
        for part, row in zip(parts, rows, strict=True):
            if part.is_last:
                self._write_token(part.generation, row)
        return status

    def _write_token(self, answer: Answer, row: int) -> None:
        """Draw the next token from a row of the batch, and give its text to the reader."""
        try:
            if answer.write(answer.draw(self._context, row)):
                self._end(answer)
        except GenerationError as error:
            self._end(answer, error)

    def _fill_batch(self, parts: list[Part[Answer]]) -> list[int]:
        """Put the parts into the batch, one after the other; the row of each one's last token."""
        batch = self._batch
        rows = []
        row = 0
        for part in parts:
            for position, token in enumerate(part.tokens, part.position):
                batch.token[row] = token
                batch.pos[row] = position
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = part.generation.sequence.index
                batch.logits[row] = False
                row += 1
            batch.logits[row - 1] = part.is_last
            rows.append(row - 1)
        batch.n_tokens = row
        return rows

    def _end(self, answer: Answer, error: GenerationError | None = None, *, keep: bool = True) -> None:
        self._scheduler.end(answer, keep=keep)
        answer.sampler.free()
        answer.reader.end(error)


class _Memory:
    """`Memory` by llama.cpp."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def copy(self, source: int, target: int, tokens: int) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    def truncate(self, sequence: int, tokens: int) -> bool:
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, tokens, -1))


def _threads(settings: LlmSettings) -> int:
    return settings.threads or hardware.cpu_cores()


def _batch_tokens(settings: LlmSettings) -> int:
    return settings.prefill_chunk_tokens + settings.slots


def _context_params(settings: LlmSettings, kv_tokens: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = kv_tokens
    params.n_batch = params.n_ubatch = _batch_tokens(settings)
    params.n_seq_max = settings.slots
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = _threads(settings)
    params.flash_attn_type = FLASH_ATTENTION[settings.flash_attention]
    params.type_k = params.type_v = KV_TYPES[settings.kv_type]
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


_ignore_log = llama_cpp.llama_log_callback(lambda _level, _text, _user_data: None)
"""llama.cpp prints pages; what went wrong shows in what its calls return."""
