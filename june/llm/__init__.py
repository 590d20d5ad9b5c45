"""The language model: what june asks of an engine, and the one table that names engines."""

import math
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Protocol, cast

from june.hardware import Gpu
from june.messages import ChatRequest, Delta, JsonObject, ModelDescription
from june.models import Model, Source
from june.models.backends import Backend, find_backend, load_class
from june.sections import LlmSettings, Section


class ChatModel(Protocol):
    """A model that answers."""

    async def load(self) -> None:
        """Read the weights; once.

        Raises:
            ModelLoadError: the model cannot be loaded on this machine.
        """

    async def warm_up(self) -> None:
        """Compute once, so that the first turn is as fast as the second."""

    def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer, piece by piece; closing the stream cancels it.

        What is thought comes as `reasoning`, calls of `request.tools` as `tool_calls` (with an error in
        words for the model if they cannot be made), and only what is meant for a person as `text`.

        Raises:
            GenerationError: the prompt is longer than the context, too many answers wait already (code
                "busy"), the engine failed, or the JSON schema cannot be kept (code "bad_grammar"), which ends
                this request alone.
        """

    async def forget(self, conversation: str) -> None:
        """Keep nothing of a conversation, in memory or on disk, whether a model is loaded or not.

        Raises:
            GenerationError: what was saved cannot be deleted.
        """

    def describe(self) -> ModelDescription:
        """Return what the model is, for people and machines to read."""

    async def close(self) -> None:
        """Free the model and end its thread; save conversations first, if the settings say so."""


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What an engine has to do with the GPUs of this machine.

    Attributes:
        obstacle: why it cannot compute on one, as a clause; empty: it can.
        remedy: what the owner can do about that, as a sentence.
        is_wanted: whether the settings let it.
    """

    obstacle: str = ""
    remedy: str = ""
    is_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model takes of this machine, by estimate.

    Attributes:
        ram_bytes: memory of the machine, beside that of Python and the libraries.
        gpu_bytes: memory of a GPU; 0: it does not compute on one.
        cache_tokens: the cache of all conversations together; 0: it is not on this machine.
        remedy: what the owner can do so that it takes less, as a clause; empty: nothing but another model.
    """

    ram_bytes: int = 0
    gpu_bytes: int = 0
    cache_tokens: int = 0
    remedy: str = ""


class Unloaded(Protocol):
    """What june asks of an engine without a model in memory."""

    def gpu_use(self) -> GpuUse:
        """Return whether the engine can compute on a GPU, and may."""

    def gpu_bytes(self, model: Model) -> int:
        """Return the memory that a model takes on a GPU, with the context of one conversation."""

    def needs(self, model: Model, gpus: tuple[Gpu, ...]) -> Needs:
        """Return what a model takes of this machine.

        Raises:
            ModelLoadError: the model may not be loaded here, whatever is free.
        """

    def require_schema(self, schema: JsonObject) -> None:
        """Return if answers can be held to a JSON schema.

        Raises:
            GenerationError: something in it cannot be kept (code "bad_grammar"), and what and where.
        """

    async def forget(self, *, conversations: Iterable[str] = (), older_than_s: float = math.inf) -> None:
        """Delete what is kept on disk of these conversations, and of those that were used longer ago.

        Raises:
            GenerationError: something cannot be deleted.
        """


class Elsewhere:
    """`Unloaded` of an engine on another machine, which takes and keeps nothing here."""

    def __init__(self, *_: Section) -> None:
        """Take the settings, as every engine does."""

    def gpu_use(self) -> GpuUse:
        """Return that it uses none here."""
        return GpuUse("the language model computes elsewhere")

    def gpu_bytes(self, _: Model) -> int:
        """Return 0."""
        return 0

    def needs(self, _: Model, __: tuple[Gpu, ...]) -> Needs:
        """Return that it needs nothing."""
        return Needs()

    def require_schema(self, schema: JsonObject) -> None:
        """Leave it to the engine."""

    async def forget(self, *, conversations: Iterable[str] = (), older_than_s: float = math.inf) -> None:
        """Keep nothing."""


@dataclass(frozen=True, slots=True)
class LlmBackend(Backend):
    """A line of the table.

    Attributes:
        unloaded: "module:Class" of its `Unloaded`, called with the section `[llm]` and its own section, if it
            has one. Its module imports no library of the engine's.
    """

    unloaded: str = "june.llm:Elsewhere"


BACKENDS = {
    "llama_cpp": LlmBackend(
        "june.llm.llama_cpp.model:LlamaCpp",
        library="llama_cpp",
        settings="june.llm.llama_cpp.settings:LlamaCppSettings",
        unloaded="june.llm.llama_cpp.unloaded:UnloadedLlamaCpp",
    ),
}
"""The engines, by their names in `llm.backend`."""


def create(settings: LlmSettings, source: Source) -> ChatModel:
    """Return a model of the engine that the settings name, not yet loaded.

    Args:
        settings: the section `[llm]`.
        source: what it opens.

    Raises:
        SettingsError: there is no such engine.
    """
    backend = find_backend(BACKENDS, settings.backend, "llm.backend")
    return cast("ChatModel", load_class(backend.path)(settings, source, *backend.own(settings)))


def unloaded(settings: LlmSettings) -> Unloaded:
    """Return what the engine that the settings name does without a model in memory.

    Args:
        settings: the section `[llm]`.

    Raises:
        SettingsError: there is no such engine.
    """
    backend = find_backend(BACKENDS, settings.backend, "llm.backend")
    return cast("Unloaded", load_class(backend.unloaded)(settings, *backend.own(settings)))
