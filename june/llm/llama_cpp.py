"""llama.cpp in this process, on llama-cpp-python's low-level API.

The high-level `Llama` decodes the whole answer anew for every token, keeps a score for every token of
a batch, and cannot pass keywords to the chat template; here one thread owns model and context and does
only what an answer needs. One conversation is decoded at a time; the prompt's longest prefix that is
still in the cache is not evaluated again.
"""

import codecs
import ctypes
import math
import random
import re
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import jinja2

from june import hardware

with hardware.openmp_bound_to_cores():
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from june.errors import GenerationError, ModelLoadError
from june.llm import require_gpu
from june.llm.reasoning import OPEN, ReasoningSplitter
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
from june.workers import ModelThread, StopFlag

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
DECODE_ABORTED = 2


class LlamaCpp:
    """`ChatModel` by llama.cpp, on the CPU or a GPU."""

    def __init__(self, settings: LlmSettings, model: Model, path: Path) -> None:
        self._settings = settings
        self._model = model
        self._name = model.name
        self._path = path
        self._thread = ModelThread("llm")
        self._engine: Engine | None = None

    async def load(self) -> None:
        """Read the weights.

        Raises:
            ModelLoadError: it needs a GPU that is not here, or llama.cpp does not take the file.
        """
        offload = gpu_offload_supported()
        require_gpu(self._model, self._settings, hardware.find_gpus(), offload_supported=offload)
        self._engine = await self._thread.run(lambda _: Engine(self._settings, self._name, self._path))

    async def warm_up(self) -> None:
        """Evaluate the system prompt and one token; the first turn finds the prompt in the cache."""
        messages = (
            ChatMessage("system", self._settings.system_prompt),
            ChatMessage("user", "Hello"),
        )
        request = ChatRequest(messages, Sampling(temperature=0), max_tokens=1)
        async for _ in self.stream(request):
            pass

    def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """The answer, piece by piece; see the Protocol."""
        return self._thread.stream(self.stream_now, request)

    def stream_now(self, stop: StopFlag, request: ChatRequest) -> Generator[Delta, None, None]:
        """What `stream` runs on its thread; blocks."""
        assert self._engine is not None  # noqa: S101 - `load` comes first
        return self._engine.generate(stop, request)

    def describe(self) -> ModelDescription:
        """Model, device, context and cache."""
        details: dict[str, str | int | float | bool] = {
            "context_tokens": self._settings.context_tokens,
            "kv_type": self._settings.kv_type,
        }
        device: Device = "cuda" if self._engine is not None and self._engine.offloaded else "cpu"
        return ModelDescription(self._name, "llama_cpp", device, details)

    async def close(self) -> None:
        """Free the model and end its thread."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await self._thread.run(lambda _: engine.free())
        await self._thread.close()


class Engine:
    """One model and one context; belongs to one thread at a time, and blocks it."""

    def __init__(self, settings: LlmSettings, name: str, path: Path) -> None:
        self.offloaded = gpu_offload_supported() and settings.gpu_layers != 0
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
        self._context = llama_cpp.llama_init_from_model(self._model, _context_params(settings))
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise ModelLoadError(
                f"Language model {name} was read, but there is no room for a context of "
                f"{settings.context_tokens} tokens; lower llm.context_tokens."
            )
        self._settings = settings
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._evaluated: list[int] = []
        self._abort = ctypes.create_string_buffer(2)
        _abort_when_set(self._context, self._abort)
        self._control_tokens = self._find_control_tokens()
        self._end_tokens = [
            token for token in range(self._n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocabulary, token)
        ]

    def free(self) -> None:
        """Give the memory back; the engine is of no use afterwards."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def generate(self, stop: StopFlag, request: ChatRequest) -> Generator[Delta, None, None]:
        """The answer, piece by piece, the last with its usage; ends early when `stop` is set.

        Raises:
            GenerationError: the prompt leaves no room in the context, or llama.cpp failed.
        """
        prompt_text = self._render(request)
        prompt = self._tokenize(prompt_text)
        room = llama_cpp.llama_n_ctx(self._context) - len(prompt)
        if room < 1:
            raise GenerationError(
                "context_overflow", f"The prompt has {len(prompt)} tokens, the context {room + len(prompt)}."
            )
        self._abort[0] = b"\0"
        with stop.interrupts(lambda: ctypes.memset(self._abort, 1, 1)), self._sampler(request) as sampler:
            cached = self._reuse_prefix(prompt)
            if not self._evaluate(prompt[cached:], stop):
                return
            splitter = ReasoningSplitter(thinking=prompt_text.rstrip().endswith(OPEN))
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            written = 0
            finish_reason: FinishReason = "length"
            while written < min(request.max_tokens, room):
                token = llama_cpp.llama_sampler_sample(sampler, self._context, -1)
                if llama_cpp.llama_vocab_is_eog(self._vocabulary, token):
                    finish_reason = "stop"
                    break
                written += 1
                text, reasoning = splitter.feed(decoder.decode(self._piece(token)))
                if text or reasoning:
                    yield Delta(text, reasoning)
                if not self._evaluate([token], stop):
                    return
            text, reasoning = splitter.feed(decoder.decode(b"", final=True))
            rest, more_reasoning = splitter.finish()
            yield Delta(
                text + rest, reasoning + more_reasoning, Usage(len(prompt), written, cached), finish_reason
            )

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

    def _reuse_prefix(self, prompt: Sequence[int]) -> int:
        """Keep what the cache holds of the prompt; how many tokens that is.

        The last token is always evaluated, since its logits are needed.
        """
        same = 0
        for old, new in zip(self._evaluated, prompt[:-1], strict=False):
            if old != new:
                break
            same += 1
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, same, -1):
            llama_cpp.llama_memory_clear(self._memory, True)  # recurrent models keep all or nothing
            same = 0
        del self._evaluated[same:]
        return same

    def _evaluate(self, tokens: Sequence[int], stop: StopFlag) -> bool:
        """Evaluate the tokens in chunks; False if it was stopped."""
        size = self._settings.prefill_chunk_tokens
        for begin in range(0, len(tokens), size):
            if stop.is_set():
                return False
            chunk = tokens[begin : begin + size]
            array = (llama_cpp.llama_token * len(chunk))(*chunk)  # the batch only points at it
            status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(array, len(chunk)))
            if status == DECODE_ABORTED:
                return False
            if status != 0:
                self._evaluated.clear()
                llama_cpp.llama_memory_clear(self._memory, True)
                raise GenerationError("llm_failed", f"llama_decode failed with status {status}.")
            self._evaluated.extend(chunk)
        return True

    @contextmanager
    def _sampler(self, request: ChatRequest) -> Iterator[Any]:
        """A chain of llama.cpp's samplers, in the order of its own command line."""
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
        try:
            yield chain
        finally:
            llama_cpp.llama_sampler_free(chain)

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


def gpu_offload_supported() -> bool:
    """Whether llama.cpp was built for a GPU, and finds one."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def _threads(settings: LlmSettings) -> int:
    return settings.threads or hardware.cpu_cores()


def _context_params(settings: LlmSettings) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = settings.context_tokens
    params.n_batch = params.n_ubatch = settings.prefill_chunk_tokens
    params.n_seq_max = 1
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
