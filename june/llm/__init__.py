"""The language model: the Protocol, and the one place that picks a backend."""

from collections.abc import AsyncGenerator
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from june.messages import ChatRequest, Delta, ModelDescription
from june.settings import LlmSettings


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
        """The answer, piece by piece; closing the stream cancels it.

        Raises:
            GenerationError: the prompt is longer than the context, or the engine failed.
        """

    def describe(self) -> ModelDescription:
        """The model, for people and machines to read."""

    async def close(self) -> None:
        """Free the model and end its thread."""


_BACKENDS = {"llama_cpp": "june.llm.llama_cpp:LlamaCpp"}


def create(settings: LlmSettings, name: str, path: Path) -> ChatModel:
    """The backend that the settings name, not yet loaded.

    Args:
        settings: the section `[llm]`.
        name: the model's name in the catalogue.
        path: its GGUF file.
    """
    module, _, backend = _BACKENDS[settings.backend].partition(":")
    return cast("ChatModel", getattr(import_module(module), backend)(settings, name, path))


def gpu_offload_supported(settings: LlmSettings) -> bool:
    """Whether the backend that the settings name was built for a GPU."""
    module = import_module(_BACKENDS[settings.backend].partition(":")[0])
    return bool(module.gpu_offload_supported())
