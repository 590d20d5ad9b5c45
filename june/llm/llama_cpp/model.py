"""The `ChatModel` by llama.cpp in this process, on llama-cpp-python's low-level API.

The high-level `Llama` serves one conversation at a time, decodes the whole answer anew for every token and
cannot pass keywords to the chat template. Here one thread owns model and context, and every batch takes all
conversations one token further; the scheduler decides what belongs into a batch, and the sequences what stays
in the cache.
"""

import asyncio
import hashlib
import queue
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakSet

from june import hardware
from june.errors import GenerationError, ModelLoadError
from june.llm.llama_cpp.engine import Engine
from june.llm.llama_cpp.library import gpu_offload_supported, llama_cpp
from june.llm.llama_cpp.meter import EngineStats
from june.llm.llama_cpp.needs import (
    capacity,
    cpu_format,
    kv_budget_tokens,
    kv_bytes,
    require_gpu,
    require_memory,
)
from june.llm.llama_cpp.settings import DEFAULTS, LlamaCppSettings
from june.llm.llama_cpp.state_files import StateFiles
from june.messages import ChatMessage, ChatRequest, Delta, Device, ModelDescription, Sampling
from june.models import LocalModel, Model
from june.models.catalogue import folder_of
from june.sections import LlmSettings
from june.workers import Channel, Mailbox, ModelThread, StopFlag


class LlamaCpp:
    """`ChatModel` by llama.cpp, on the CPU or a GPU."""

    def __init__(self, settings: LlmSettings, source: LocalModel, own: LlamaCppSettings = DEFAULTS) -> None:
        self._settings = settings
        self._own = own
        self._source = source
        self._model = source.entry
        self._thread = ModelThread("llm")
        self._requests: queue.SimpleQueue[tuple[ChatRequest | _Forget, Channel[Delta]] | None] = (
            queue.SimpleQueue()
        )
        self._channels: WeakSet[Channel[Delta]] = WeakSet()
        self._engine: Engine | None = None
        self._serving: asyncio.Task[None] | None = None
        self._is_closing = False
        self._files: StateFiles | None = None
        if own.state_dir:
            self._files = StateFiles(own.state_dir, round(own.state_max_gb * 1e9))

    async def load(self) -> None:
        """Read the weights, and serve.

        Raises:
            ModelLoadError: it needs a GPU or memory that is not here, a part of it would stay on the CPU,
                llama.cpp does not take the file, or `llm.llama_cpp.state_dir` cannot be written to.
        """
        assert self._engine is None  # noqa: S101 - nothing is loaded twice
        gpus, supported = await self._thread.run(lambda _: (hardware.find_gpus(), gpu_offload_supported()))
        require_gpu(self._model, self._settings, self._own, gpus, offload_supported=supported)
        offloaded = supported and self._own.gpu_layers != 0
        kv_tokens = kv_budget_tokens(self._model, self._settings, self._own, gpus, offloaded=offloaded)
        require_memory(
            self._model,
            self._own,
            gpus,
            kv_tokens,
            offloaded=offloaded,
            available_bytes=hardware.available_memory_bytes(),
        )
        self._engine = await self._thread.run(lambda _: self._open_engine(kv_tokens, offloaded=offloaded))
        self._mailbox = Mailbox()
        self._serving = asyncio.create_task(self._thread.run(self._serve, self._engine))
        self._serving.add_done_callback(self._end_all)

    def _open_engine(self, kv_tokens: int, *, offloaded: bool) -> Engine:
        if self._files is not None:
            try:
                self._files.open(_state_maker(self._model, self._own, offloaded=offloaded))
            except OSError as error:
                detail = (
                    f"llm.llama_cpp.state_dir: {self._own.state_dir} cannot be written to: {error.strerror}."
                )
                raise ModelLoadError(detail) from None
        return Engine(
            self._settings, self._source, kv_tokens, self._own, offloaded=offloaded, files=self._files
        )

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
        """Yield the answer, piece by piece; see the Protocol.

        The engine never waits for the reader: an answer has at most `max_tokens` pieces, and stands whole
        in memory if it is read slowly.
        """
        assert self._serving is not None  # noqa: S101 - `load` comes first
        if self._serving.done():
            raise _ended(self._serving)
        if self._requests.qsize() > self._settings.max_waiting:
            raise GenerationError("busy", f"{self._settings.max_waiting} answers wait already.")
        async with aclosing(self._ask(request)) as deltas:
            async for delta in deltas:
                yield delta

    async def forget(self, conversation: str) -> None:
        """Keep nothing of a conversation; see the Protocol."""
        if self._serving is not None:
            if not self._is_closing and not self._serving.done():
                with suppress(GenerationError):  # the engine failed, and its cache is gone
                    async for _ in self._ask(_Forget(conversation)):
                        pass
            else:
                await asyncio.wait([self._serving])  # it may save what is to be forgotten
        if self._files is not None:
            await self._files.forget(conversation)

    async def _ask(self, request: "ChatRequest | _Forget") -> AsyncGenerator[Delta, None]:
        """Yield what the engine's thread says to a request."""
        channel = Channel[Delta](self._mailbox)
        self._channels.add(channel)
        self._requests.put((request, channel))
        async with aclosing(channel.read()) as deltas:
            async for delta in deltas:
                yield delta

    def write_now(self, request: ChatRequest) -> Iterator[Delta]:
        """Yield the answer of the bare engine, on the caller's thread, while nothing else uses the model."""
        assert self._engine is not None  # noqa: S101 - `load` comes first
        reader = _Caller()
        self._engine.begin(request, reader)
        while self._engine.is_busy:
            self._engine.step()
            while reader.deltas:
                yield reader.deltas.popleft()
        if reader.error is not None:
            raise reader.error

    def stats(self) -> EngineStats:
        """Return what the engine does and did since it was loaded."""
        assert self._engine is not None  # noqa: S101 - `load` comes first
        return self._engine.stats()

    def describe(self) -> ModelDescription:
        """Return model, device, conversations and their cache."""
        details: dict[str, str | int | float | bool] = {
            "context_tokens": self._settings.context_tokens,
            "slots": self._settings.slots,
            "kv_type": self._own.kv_type,
        }
        device: Device = "cpu"
        if self._engine is not None:
            details["kv_tokens"] = self._engine.kv_tokens
            details["layers"] = self._engine.layers
            details["gpu_layers"] = self._engine.gpu_layers
            details["kernel"] = "june" if self._engine.has_own_kernel else "llama.cpp"
            details["capacity"] = capacity(self._model, self._engine.kv_tokens, self._settings, self._own)
            details["kv_gb"] = round(kv_bytes(self._model, self._engine.kv_tokens, self._own) / 1e9, 2)
            device = "cuda" if self._engine.offloaded else "cpu"
        return ModelDescription(self._source.name, "llama_cpp", device, details)

    async def close(self) -> None:
        """Let the answers that were begun end, save conversations, free the model and end its thread."""
        self._is_closing = True
        if self._serving is not None:
            self._requests.put(None)
            await asyncio.wait([self._serving])
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await self._thread.run(lambda _: engine.free())
        if self._files is not None:
            files = self._files
            await self._thread.run(lambda _: files.close())
        await self._thread.close()

    def _serve(self, stop: StopFlag, engine: "Engine") -> None:
        """Serve until the thread is to end: take what was asked for, decode one batch, and again."""
        is_closing = False
        with stop.interrupts(lambda: self._requests.put(None)):
            while engine.is_busy or not is_closing:
                while not is_closing and (not engine.is_busy or not self._requests.empty()):
                    asked = self._requests.get()
                    is_closing = asked is None
                    if asked is not None:
                        self._take_on(engine, *asked)
                        self._mailbox.flush()  # of a request that was refused
                if engine.is_busy:
                    engine.step()
                    self._mailbox.flush()
        engine.save_conversations()

    def _take_on(self, engine: Engine, request: "ChatRequest | _Forget", channel: Channel[Delta]) -> None:
        if isinstance(request, _Forget):
            engine.forget(request.conversation)
            channel.end()
        else:
            engine.begin(request, channel)

    def _end_all(self, serving: "asyncio.Task[None]") -> None:
        for channel in self._channels:
            channel.end(_ended(serving))
        self._mailbox.flush()


def _ended(serving: "asyncio.Task[None]") -> GenerationError:
    error = GenerationError("llm_failed", "The language model no longer serves.")
    error.__cause__ = None if serving.cancelled() else serving.exception()
    return error


def _state_maker(model: Model, own: LlamaCppSettings, *, offloaded: bool) -> str:
    """Return a folder's name for all that a state depends on; another one reads no state of this one."""
    weights = [file.identity for file in model.files]
    number_format = cpu_format(model, own, offloaded=offloaded)
    made_by = (weights, number_format, own.kv_type, own.flash_attention, llama_cpp.__version__)
    folder = folder_of(model.name, Path()).name
    return f"{folder}-{own.kv_type}-{hashlib.sha256(repr(made_by).encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class _Forget:
    """Asks the engine to drop a conversation."""

    conversation: str


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
