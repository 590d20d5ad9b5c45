"""The language model of a running june, which another one can replace.

Answers that were begun end first, and those that come meanwhile wait. The old model is freed before the new
one is read, so that there is never more than one in memory; if the new one cannot be loaded, the old one is
loaded again.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Literal

from june.errors import GenerationError, JuneError, ModelChangeError
from june.llm import ChatModel
from june.messages import ChatRequest, Delta, ModelDescription
from june.telemetry import log, model_loaded
from june.workers import settled

State = Literal["loaded", "finishing", "loading", "unloaded"]
"""`finishing`: a change waits for the answers that were begun."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the language model is at the moment.

    Attributes:
        name: the model that is loaded, or was last.
        state: whether it is.
        changing: whether a change is going on.
        target: the model that is to be loaded; "": none is.
        answers: how many are being written.
        error: why the last change failed; "": it did not.
    """

    name: str
    state: State
    changing: bool
    target: str
    answers: int
    error: str


class SwitchableModel:
    """A `ChatModel` that passes everything on to the one that is loaded.

    Args:
        create: the backend for a model by its name, not yet loaded; raises a JuneError for one that cannot be
            had, since its file is missing, say.
        name: the first model.
        backend: its backend, not yet loaded.
    """

    def __init__(self, create: Callable[[str], Awaitable[ChatModel]], name: str, backend: ChatModel) -> None:
        self._create = create
        self._name = name
        self.backend = backend
        """The model that is loaded, or was last."""
        self._state: State = "unloaded"
        self._target = ""
        self._error = ""
        self._answers = 0
        self._is_freed = False
        self._is_open = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._changing: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Load the first model; see the Protocol."""
        await self.backend.load()

    async def warm_up(self) -> None:
        """Compute once; answers can be written from then on."""
        await self.backend.warm_up()
        self._state = "loaded"
        self._is_open.set()

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer, piece by piece; wait while models are exchanged. See the Protocol.

        Raises:
            GenerationError: no model is loaded (code "model_unavailable").
        """
        while not self._is_open.is_set():  # a second change may have begun before the waiter woke
            await self._is_open.wait()
        if self._state == "unloaded":
            raise GenerationError("model_unavailable", "No language model is loaded.")
        self._answers += 1
        self._is_idle.clear()
        try:
            async with aclosing(self.backend.stream(request)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._answers -= 1
            if not self._answers:
                self._is_idle.set()

    async def forget(self, conversation: str) -> None:
        """Keep nothing of a conversation; wait while models are exchanged. See the Protocol."""
        while not self._is_open.is_set():  # the old model saves conversations when it is freed
            await self._is_open.wait()
        await self.backend.forget(conversation)

    def describe(self) -> ModelDescription:
        """Return what the model is that is loaded, or was last."""
        return self.backend.describe()

    @property
    def is_loaded(self) -> bool:
        """Whether there is a model in memory that answers are written by."""
        return self._state in {"loaded", "finishing"}

    def status(self) -> ModelStatus:
        """Return what it is at the moment."""
        return ModelStatus(
            self._name, self._state, self._is_changing, self._target, self._answers, self._error
        )

    def begin_load(self, name: str) -> None:
        """Begin to load a model where none is loaded; do nothing if it is loaded already.

        Raises:
            ModelChangeError: another model is loaded, or a change is going on.
        """
        if self._state == "loaded" and self._name != name:
            raise ModelChangeError(f"{self._name} is loaded: switch replaces it.")
        self.begin_switch(name)

    def begin_switch(self, name: str) -> None:
        """Begin to replace the model; do nothing if it is loaded already.

        Raises:
            ModelChangeError: a change is going on.
        """
        self._require_rest()
        if self._state != "loaded" or self._name != name:
            self._begin(name)

    def begin_unload(self) -> None:
        """Begin to free the model; do nothing if none is loaded.

        Raises:
            ModelChangeError: a change is going on.
        """
        self._require_rest()
        if self._state == "loaded":
            self._begin("")

    @property
    def _is_changing(self) -> bool:
        return self._changing is not None and not self._changing.done()

    def _require_rest(self) -> None:
        if self._is_changing:
            raise ModelChangeError(f"A change to {self._target or 'no model'} is going on.")

    def _begin(self, target: str) -> None:
        self._target, self._error = target, ""
        self._changing = asyncio.create_task(self._change(target))

    async def _change(self, target: str) -> None:
        """Let what was begun end, free the old model, and load the new one or else the old one again."""
        old, was_loaded = self._name, self._state == "loaded"
        try:
            model = await self._create(target) if target else None
            self._is_open.clear()
            if was_loaded:
                self._state = "finishing"
                await self._is_idle.wait()
                await self._free()
            if model is not None and not await self._try(model, target) and was_loaded:
                await self._try(await self._create(old), old)
        except JuneError as error:
            self._note(target, str(error))
        except Exception as error:
            self._note(target, f"{type(error).__name__}, which june did not expect.")
            raise
        finally:
            if self._is_freed:
                self._state = "unloaded"
            self._target = ""
            self._is_open.set()

    async def _free(self) -> None:
        self._is_freed = True
        await self.backend.close()
        self._state = "unloaded"
        model_loaded.labels("llm", self._name).set(0)
        log.info("model.unloaded", model=self._name)

    async def _try(self, model: ChatModel, name: str) -> bool:
        """Return whether the model could be loaded and warmed; if not, free it and note why."""
        self._state = "loading"
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(model.close)
                await model.load()
                await model.warm_up()
                stack.pop_all()
        except JuneError as error:
            self._note(name, str(error))
            return False
        self.backend, self._name, self._state, self._is_freed = model, name, "loaded", False
        model_loaded.labels("llm", name).set(1)
        description = model.describe()
        log.info("model.loaded", model=name, device=description.device, **description.details)
        return True

    def _note(self, name: str, detail: str) -> None:
        """Keep for the owner why a model could not be had."""
        self._error = f"{self._error} {detail}".strip()
        log.error("model.failed", model=name, detail=detail)

    async def close(self) -> None:
        """Let a change end, and free the model."""
        if self._changing is not None:
            await settled(self._changing)
        if not self._is_freed:
            self._is_freed = True
            await self.backend.close()
