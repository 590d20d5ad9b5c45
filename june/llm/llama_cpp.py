"""llama.cpp in this process, on llama-cpp-python's low-level API.

The high-level `Llama` serves one conversation at a time, decodes the whole answer anew for every token and
cannot pass keywords to the chat template. Here one thread owns model and context, and every batch takes all
conversations one token further; what belongs into a batch, and what stays in the cache, is the scheduler's
business.

What this does not do: build the context anew should a GPU fail in the middle of a batch.
"""

import asyncio
import codecs
import ctypes
import math
import queue
import random
import re
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing
from ctypes.util import find_library
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

import jinja2

from june import hardware

with hardware.openmp_bound_to_cores():
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from june.errors import GenerationError, ModelLoadError
from june.llm import kv_budget_tokens, kv_bytes, require_gpu
from june.llm.reasoning import OPEN, ReasoningSplitter
from june.llm.scheduler import Generation, Part, Scheduler
from june.messages import (
    ChatMessage,
    ChatRequest,
    Delta,
    Device,
    FinishReason,
    ModelDescription,
    Sampling,
    Usage,
)
from june.models import Model
from june.settings import LlmSettings
from june.workers import Channel, ModelThread, StopFlag

REPEAT_PENALTY_WINDOW_TOKENS = 64
LONGEST_PIECE_BYTES = 256
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


class LlamaCpp:
    """`ChatModel` by llama.cpp, on the CPU or a GPU."""

    def __init__(self, settings: LlmSettings, model: Model, path: Path) -> None:
        self._settings = settings
        self._model = model
        self._name = model.name
        self._path = path
        self._thread = ModelThread("llm")
        self._requests: queue.SimpleQueue[tuple[ChatRequest, Channel[Delta]] | None] = queue.SimpleQueue()
        self._channels: WeakSet[Channel[Delta]] = WeakSet()
        self._engine: Engine | None = None
        self._serving: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Read the weights, and serve.

        Raises:
            ModelLoadError: it needs a GPU that is not here, or llama.cpp does not take the file.
        """
        gpus = hardware.find_gpus()
        supported = gpu_offload_supported()
        require_gpu(self._model, self._settings, gpus, offload_supported=supported)
        offloaded = supported and self._settings.gpu_layers != 0
        kv_tokens = kv_budget_tokens(self._model, self._settings, gpus, offloaded=offloaded)
        self._engine = await self._thread.run(
            lambda _: Engine(self._settings, self._name, self._path, kv_tokens, offloaded=offloaded)
        )
        self._serving = asyncio.create_task(self._thread.run(self._serve, self._engine))
        self._serving.add_done_callback(self._end_all)

    async def warm_up(self) -> None:
        """Evaluate the system prompt and one token; the first turn finds the prompt in the cache."""
        messages = (
            ChatMessage("system", self._settings.system_prompt),
            ChatMessage("user", "Hello"),
        )
        request = ChatRequest(messages, Sampling(temperature=0), max_tokens=1)
        async for _ in self.stream(request):
            pass

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """The answer, piece by piece; see the Protocol.

        The engine never waits for the reader: an answer has at most `max_tokens` pieces, and stands whole
        in memory if it is read slowly.
        """
        assert self._serving is not None  # noqa: S101 - `load` comes first
        if self._serving.done():
            raise _ended(self._serving)
        if self._requests.qsize() > self._settings.max_waiting:
            raise GenerationError("busy", f"{self._settings.max_waiting} answers wait already.")
        channel = Channel[Delta]()
        self._channels.add(channel)
        self._requests.put((request, channel))
        async with aclosing(channel.read()) as deltas:
            async for delta in deltas:
                yield delta

    def write_now(self, request: ChatRequest) -> Iterator[Delta]:
        """The same answer by the bare engine, on the caller's thread, while nothing else uses the model."""
        assert self._engine is not None  # noqa: S101 - `load` comes first
        reader = _Caller()
        self._engine.begin(request, reader)
        while self._engine.is_busy:
            self._engine.step()
            while reader.deltas:
                yield reader.deltas.popleft()
        if reader.error is not None:
            raise reader.error

    def describe(self) -> ModelDescription:
        """Model, device, conversations and their cache."""
        details: dict[str, str | int | float | bool] = {
            "context_tokens": self._settings.context_tokens,
            "slots": self._settings.slots,
            "kv_type": self._settings.kv_type,
        }
        device: Device = "cpu"
        if self._engine is not None:
            details["kv_tokens"] = self._engine.kv_tokens
            details["kv_gb"] = round(kv_bytes(self._model, self._engine.kv_tokens, self._settings) / 1e9, 2)
            device = "cuda" if self._engine.offloaded else "cpu"
        return ModelDescription(self._name, "llama_cpp", device, details)

    async def close(self) -> None:
        """Let the answers that were begun end, free the model and end its thread."""
        if self._serving is not None:
            self._requests.put(None)
            await asyncio.wait([self._serving])
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await self._thread.run(lambda _: engine.free())
        await self._thread.close()

    def _serve(self, stop: StopFlag, engine: "Engine") -> None:
        """The life of the thread: take what was asked for, decode one batch, and again."""
        with stop.interrupts(lambda: self._requests.put(None)):
            while True:
                while not engine.is_busy or not self._requests.empty():
                    request = self._requests.get()
                    if request is None:
                        while engine.is_busy:
                            engine.step()
                        return
                    engine.begin(*request)
                engine.step()

    def _end_all(self, serving: "asyncio.Task[None]") -> None:
        for channel in self._channels:
            channel.end(_ended(serving))


def _ended(serving: "asyncio.Task[None]") -> GenerationError:
    error = GenerationError("llm_failed", "The language model no longer serves.")
    error.__cause__ = None if serving.cancelled() else serving.exception()
    return error


class Reader(Protocol):
    """Who an answer is written for: a `Channel`, or the caller itself."""

    @property
    def stop(self) -> StopFlag:
        """Set when nobody reads any more."""

    def post(self, item: Delta) -> None:
        """Take the next piece."""

    def end(self, error: GenerationError | None = None) -> None:
        """Know that it was the last, and why there are no more."""


@dataclass(eq=False)
class _Caller:
    """A reader on the engine's own thread."""

    stop: StopFlag = field(default_factory=StopFlag)
    deltas: deque[Delta] = field(default_factory=deque)
    error: GenerationError | None = None

    def post(self, item: Delta) -> None:
        self.deltas.append(item)

    def end(self, error: GenerationError | None = None) -> None:
        self.error = error


@dataclass(slots=True, eq=False, kw_only=True)
class Answer(Generation):
    """One answer and all that is its own: reader, sampler, and how tokens become text."""

    reader: Reader
    sampler: Any
    splitter: ReasoningSplitter
    max_tokens: int
    prompt_tokens: int
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )


class Engine:
    """One model, and one context that decodes all answers together; used by one thread at a time."""

    def __init__(
        self, settings: LlmSettings, name: str, path: Path, kv_tokens: int, *, offloaded: bool
    ) -> None:
        self.offloaded = offloaded
        self.kv_tokens = kv_tokens
        if not self.offloaded:
            hardware.keep_on_first_core(_threads(settings))
        llama_cpp.llama_log_set(_ignore_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = ALL_LAYERS if settings.gpu_layers < 0 else settings.gpu_layers
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise ModelLoadError(f"Language model {name} cannot be loaded: llama.cpp refuses {path.name}.")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        self._formatter = self._find_formatter(name)
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
        self._control_tokens = self._find_control_tokens()
        self._end_tokens = [
            token for token in range(self._n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocabulary, token)
        ]

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
            prompt_text = self._render(request)
            prompt = self._tokenize(prompt_text)
            room = self._context_tokens - len(prompt)
            if room < 1:
                raise GenerationError(  # noqa: TRY301 - the one place that tells the reader
                    "context_overflow",
                    f"The prompt has {len(prompt)} tokens, the context {self._context_tokens}.",
                )
            max_tokens = min(request.max_tokens, room)
            answer = Answer(
                tokens=prompt,
                kv_tokens=len(prompt) + max_tokens - 1,  # the last one written is never evaluated
                conversation=request.conversation,
                reader=reader,
                sampler=self._sampler(request),
                splitter=ReasoningSplitter(thinking=prompt_text.rstrip().endswith(OPEN)),
                max_tokens=max_tokens,
                prompt_tokens=len(prompt),
            )
            try:
                self._scheduler.submit(answer)
            except GenerationError:
                llama_cpp.llama_sampler_free(answer.sampler)
                raise
        except GenerationError as error:
            reader.end(error)

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

    def _write_token(self, answer: Answer, row: int) -> None:
        """Draw the next token from a row of the batch, and give its text to the reader."""
        token = llama_cpp.llama_sampler_sample(answer.sampler, self._context, row)
        if llama_cpp.llama_vocab_is_eog(self._vocabulary, token):
            self._finish(answer, "stop")
            return
        answer.tokens.append(token)
        text, reasoning = answer.splitter.feed(answer.decoder.decode(self._piece(token)))
        if text or reasoning:
            answer.reader.post(Delta(text, reasoning))
        if len(answer.tokens) - answer.prompt_tokens == answer.max_tokens:
            self._finish(answer, "length")

    def _finish(self, answer: Answer, finish_reason: FinishReason) -> None:
        text, reasoning = answer.splitter.feed(answer.decoder.decode(b"", final=True))
        rest, more_reasoning = answer.splitter.finish()
        written = len(answer.tokens) - answer.prompt_tokens
        usage = Usage(answer.prompt_tokens, written, answer.cached_tokens)
        answer.reader.post(Delta(text + rest, reasoning + more_reasoning, usage, finish_reason))
        self._end(answer)

    def _end(self, answer: Answer, error: GenerationError | None = None, *, keep: bool = True) -> None:
        self._scheduler.end(answer, keep=keep)
        llama_cpp.llama_sampler_free(answer.sampler)
        answer.reader.end(error)

    def _render(self, request: ChatRequest) -> str:
        """The prompt by the model's own template; a person's text cannot contain control tokens."""
        messages: list[Any] = [
            {"role": each.role, "content": self._without_control_tokens(each.content)}
            for each in request.messages
        ]
        try:
            return str(self._formatter(messages=messages, enable_thinking=request.thinking).prompt)
        except (jinja2.TemplateError, ValueError) as error:
            raise GenerationError(
                "llm_failed", f"The chat template failed: {type(error).__name__}."
            ) from None

    def _without_control_tokens(self, text: str) -> str:
        """The text without control tokens, and without those that stand there once others are gone."""
        while (shorter := self._control_tokens.sub("", text)) != text:
            text = shorter
        return text

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        tokens = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), tokens, len(tokens), False, True)
        return tokens[:count]

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(LONGEST_PIECE_BYTES)
        size = llama_cpp.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, False)
        return buffer.raw[:size]

    def _sampler(self, request: ChatRequest) -> Any:
        """A new chain of llama.cpp's samplers, in the order of its own command line."""
        sampling = request.sampling
        seed = random.getrandbits(32) if sampling.seed is None else sampling.seed
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        add = llama_cpp.llama_sampler_chain_add
        if request.ignore_eos:
            never = [llama_cpp.llama_logit_bias(token, -math.inf) for token in self._end_tokens]
            bias = (llama_cpp.llama_logit_bias * len(never))(*never)
            add(chain, llama_cpp.llama_sampler_init_logit_bias(self._n_vocab, len(never), bias))
        if sampling.presence_penalty or sampling.repeat_penalty != 1:
            window, repeat, presence = (
                REPEAT_PENALTY_WINDOW_TOKENS,
                sampling.repeat_penalty,
                sampling.presence_penalty,
            )
            add(chain, llama_cpp.llama_sampler_init_penalties(self._n_vocab, window, repeat, 0.0, presence))
        if sampling.temperature == 0:
            add(chain, llama_cpp.llama_sampler_init_greedy())
        else:
            add(chain, llama_cpp.llama_sampler_init_top_k(sampling.top_k))
            add(chain, llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
            add(chain, llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
            add(chain, llama_cpp.llama_sampler_init_temp(sampling.temperature))
            add(chain, llama_cpp.llama_sampler_init_dist(seed))
        return chain

    def _token_text(self, token: int) -> str:
        return bytes(llama_cpp.llama_vocab_get_text(self._vocabulary, token) or b"").decode(
            "utf-8", "replace"
        )

    def _find_control_tokens(self) -> re.Pattern[str]:
        texts = {
            self._token_text(token)
            for token in range(self._n_vocab)
            if llama_cpp.llama_vocab_is_control(self._vocabulary, token)
        }
        return re.compile("|".join(map(re.escape, sorted(texts - {""}, key=len, reverse=True))) or r"(?!)")

    def _find_formatter(self, name: str) -> Jinja2ChatFormatter:
        template = llama_cpp.llama_model_chat_template(self._model, None)
        if not template:
            llama_cpp.llama_model_free(self._model)
            raise ModelLoadError(f"Language model {name} has no chat template; choose an instruct model.")
        bos, eos = (
            self._token_text(token) if token >= 0 else ""
            for token in (
                llama_cpp.llama_vocab_bos(self._vocabulary),
                llama_cpp.llama_vocab_eos(self._vocabulary),
            )
        )
        return Jinja2ChatFormatter(template.decode(), eos_token=eos, bos_token=bos)


class _Memory:
    """`Memory` by llama.cpp."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def copy(self, source: int, target: int, tokens: int) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    def truncate(self, sequence: int, tokens: int) -> bool:
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, tokens, -1))


def gpu_offload_supported() -> bool:
    """Whether llama.cpp was built for a GPU, and finds one."""
    return bool(llama_cpp.llama_supports_gpu_offload())


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
