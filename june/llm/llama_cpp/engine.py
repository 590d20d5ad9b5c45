"""One model and one context, in which all answers are decoded together."""

import ctypes
import os
import time

from june import hardware
from june.errors import GenerationError, ModelLoadError
from june.kernels import llama_overrides
from june.llm.llama_cpp.answer import Answer, Reader
from june.llm.llama_cpp.context import DECODE_ABORTED, DECODE_INVALID, DECODED, Context, threads_of
from june.llm.llama_cpp.grammar import prompt_grammar
from june.llm.llama_cpp.library import llama_cpp
from june.llm.llama_cpp.meter import EngineStats, Meter
from june.llm.llama_cpp.needs import cpu_format, layers_to_offload
from june.llm.llama_cpp.pace import PairPace, PrefillPace
from june.llm.llama_cpp.sampling import LogitRows, Sampler, draw_likely
from june.llm.llama_cpp.scheduler import Part, Scheduler
from june.llm.llama_cpp.sequences import Sequences
from june.llm.llama_cpp.settings import DEFAULTS, LlamaCppSettings
from june.llm.llama_cpp.state_files import StateFiles
from june.llm.llama_cpp.states import SequenceStates
from june.llm.llama_cpp.template import template_of
from june.llm.llama_cpp.vocabulary import Vocabulary
from june.llm.llama_cpp.weights import converted
from june.llm.output import Output
from june.llm.prompt import Prompts
from june.llm.reasoning import CLOSING
from june.messages import ChatRequest
from june.models import LocalModel
from june.sections import LlmSettings
from june.telemetry import llm_kv_tokens, log

ALL_LAYERS = 999


class Engine:
    """One model, and one context that decodes all answers together; used by one thread at a time.

    Args:
        settings: the section `[llm]`.
        source: the model and its GGUF file.
        kv_tokens: the cache of all conversations.
        own: the section `[llm.llama_cpp]`.
        offloaded: whether it computes on a GPU.
        files: where conversations are kept that leave the cache; None: nowhere.

    Attributes:
        layers: how many the model has, the output layer included.
        gpu_layers: how many of them are on a GPU.
        has_own_kernel: whether june's kernel computes what is on the CPU.
    """

    def __init__(
        self,
        settings: LlmSettings,
        source: LocalModel,
        kv_tokens: int,
        own: LlamaCppSettings = DEFAULTS,
        *,
        offloaded: bool,
        files: StateFiles | None = None,
    ) -> None:
        self.offloaded = offloaded
        self.kv_tokens = kv_tokens
        own = own.model_copy(update={"threads": threads_of(own)})  # counted before it is bound
        if not self.offloaded:
            hardware.keep_on_first_core(own.threads)
        llama_cpp.llama_log_set(_ignore_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        name, path = source.name, source.path
        self.has_own_kernel = llama_overrides.use(wanted=own.kernel == "auto")
        if number_format := cpu_format(source.entry, own, offloaded=offloaded):
            path = converted(path, number_format, threads=own.threads)
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = ALL_LAYERS if own.gpu_layers < 0 else own.gpu_layers
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self._model:
            raise ModelLoadError(f"Language model {name} cannot be loaded: llama.cpp refuses {path.name}.")
        self.layers = int(llama_cpp.llama_model_n_layer(self._model)) + 1
        self._vocabulary = Vocabulary(self._model)
        try:
            self.gpu_layers = layers_to_offload(own, self.layers) if offloaded else 0
            template = template_of(self._model, name, self._vocabulary)
        except ModelLoadError:
            llama_cpp.llama_model_free(self._model)
            raise
        self._prompts = Prompts(template, self._vocabulary.control_tokens)
        self._context = Context(self._model, own, slots=settings.slots, kv_tokens=kv_tokens)
        if not self._context.handle:
            self.free()
            raise ModelLoadError(
                f"Language model {name} was read, but there is no room for a cache of {kv_tokens} tokens; "
                "lower llm.llama_cpp.kv_tokens or llm.context_tokens."
            )
        self._meter = Meter()
        llm_kv_tokens.set(kv_tokens)
        self._pace = PrefillPace(own.prefill_chunk_tokens, own.prefill_pause_s)
        self._pairs = PairPace()
        self._retried: set[Answer] = set()
        self._context_tokens = settings.context_tokens
        self._states = SequenceStates(self._context, files) if files is not None else None
        self._sequences = Sequences(
            self._context,
            settings.slots,
            shares_prefixes=not (
                llama_cpp.llama_model_is_recurrent(self._model)
                or llama_cpp.llama_model_is_hybrid(self._model)
            ),
            states=self._states,
            on_evicted=lambda _: self._meter.evicted(),
        )
        self._scheduler: Scheduler[Answer] = Scheduler(
            self._sequences,
            kv_tokens=kv_tokens,
            chunk_tokens=own.prefill_chunk_tokens,
            max_waiting=settings.max_waiting,
            on_admitted=self._meter.admitted,
        )

    def free(self) -> None:
        """Give the memory back; the engine is of no use afterwards."""
        self._context.free()
        llama_cpp.llama_model_free(self._model)

    def stats(self) -> EngineStats:
        """Return what the engine does and did; on any thread."""
        return self._meter.stats(self.kv_tokens)

    @property
    def is_busy(self) -> bool:
        """Whether there is an answer to go on with."""
        return bool(self._scheduler.generations())

    def begin(self, request: ChatRequest, reader: Reader) -> None:
        """Take a request on, or tell the reader why that cannot be."""
        try:
            answer = self._answer(request, reader)
            try:
                self._scheduler.submit(answer)
            except GenerationError:
                answer.sampler.free()
                raise
            reader.stop.add_interrupt(self._context.abort_if_mostly_unread)
        except GenerationError as error:
            reader.end(error)

    def _answer(self, request: ChatRequest, reader: Reader) -> Answer:
        """Return the answer as it is before its first token.

        Raises:
            GenerationError: the prompt is longer than the context, or cannot be rendered; or the JSON schema
                cannot be kept.
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
            sampler=Sampler(request, self._vocabulary, prompt_grammar(prompt)),
            vocabulary=self._vocabulary,
            output=Output(thinking=prompt.thinking, calls=prompt.calls, stop=request.stop),
            max_tokens=max_tokens,
            prompt_tokens=len(tokens),
            thinking_budget_tokens=request.thinking_budget_tokens,
            closing=self._vocabulary.tokenize(CLOSING) if request.thinking_budget_tokens else [],
        )

    def forget(self, conversation: str) -> None:
        """Drop a conversation from the cache; what was saved of it stays."""
        self._scheduler.forget(conversation)
        self._tell_what_is_held()

    def save_conversations(self) -> None:
        """Save what the cache holds of conversations; at the end, when nothing is written any more."""
        if self._states is not None:
            self._states.save_all(self._sequences.conversations())

    def step(self) -> None:
        """Drop the answers that nobody reads, decode one batch, and write a token of each it completes.

        Raises:
            MemoryError: the context broke, and there is no room for a new one.
        """
        begin_s = time.perf_counter()
        for answer in self._scheduler.generations():
            if answer.reader.stop.is_set():
                self._meter.cancelled()
                self._end(answer)
        parts = self._scheduler.compose(self._pace.chunk_tokens(is_writing=self._scheduler.is_writing))
        if not parts:
            self._tell_what_is_held()
            return
        size = sum(len(part.tokens) for part in parts)
        read = sum(len(part.tokens) for part in parts if part.position < part.generation.prompt_tokens)
        batches = [[part] for part in parts] if self._pairs.splits(len(parts), size) else [parts]
        status, decode_s = DECODED, 0.0
        while batches and status == DECODED:
            status = self._evaluate(batches.pop(0))
            decode_s += self._decode_s
        if status == DECODED:
            self._pace.decoded(size, decode_s)
        elif status != DECODE_ABORTED:
            self._evaluate_alone()
        self._meter.stepped(time.perf_counter() - begin_s, decode_s, size, read if status == DECODED else 0)
        self._tell_what_is_held()

    def _tell_what_is_held(self) -> None:
        scheduler = self._scheduler
        self._meter.holds(scheduler.running, scheduler.waiting, self._sequences.used_tokens)

    def _evaluate(self, parts: list[Part[Answer]]) -> int:
        """Decode the parts in one batch, and write a token for each that is the last.

        Returns:
            llama.cpp's status.
        """
        begin_s = time.perf_counter()
        status = self._context.decode(parts)
        self._decode_s = time.perf_counter() - begin_s
        if status != DECODED:
            for part in parts:
                self._scheduler.restore(part)
            return status
        self._pairs.decoded(sum(len(part.tokens) for part in parts), self._decode_s)
        for part in parts:
            self._scheduler.evaluated(part)
        if last := [part.generation for part in parts if part.is_last]:
            logits = self._context.logits()
            likely = draw_likely(logits, [answer.sampler for answer in last])
            for row, answer in enumerate(last):
                self._write_token(answer, logits, row, likely[row])
        return status

    def _evaluate_alone(self) -> None:
        """Evaluate the batch that failed once more, each part alone, to find the part that fails.

        If llama.cpp's context is what broke, a new one is built, and all are evaluated anew in it; whoever
        was part of a failure before has had this second chance.
        """
        is_broken = False
        for part in self._scheduler.compose():
            answer = part.generation
            status = self._evaluate([part])
            if status in {DECODED, DECODE_ABORTED}:
                continue
            if status < DECODE_INVALID and answer not in self._retried:
                self._retried.add(answer)
                is_broken = True
            else:
                error = GenerationError("llm_failed", f"llama_decode failed with status {status}.")
                self._end(answer, error, keep=False)
        if is_broken:
            log.warning("context.rebuilt", running=self._scheduler.running)
            self._meter.rebuilt()
            self._context.rebuild()
            self._scheduler.lose_cache()

    def _write_token(self, answer: Answer, logits: LogitRows, row: int, likely: int | None) -> None:
        """Draw the next token, and give its text to the reader."""
        try:
            token = answer.draw(logits, row, likely)
            answer.first_token_s = answer.first_token_s or time.perf_counter()
            if answer.write(token):
                self._meter.finished(answer, answer.prompt_tokens)
                self._end(answer)
        except GenerationError as error:
            self._end(answer, error)

    def _end(self, answer: Answer, error: GenerationError | None = None, *, keep: bool = True) -> None:
        if error is not None:
            self._meter.failed()
        self._retried.discard(answer)
        self._scheduler.end(answer, keep=keep)
        answer.sampler.free()
        answer.reader.end(error)


_ignore_log = llama_cpp.llama_log_callback(lambda _level, _text, _user_data: None)
"""llama.cpp prints pages; what went wrong shows in what its calls return."""
