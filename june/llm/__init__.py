"""The language model: the Protocol, and the one place that picks a backend."""

from collections.abc import AsyncGenerator
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from june.errors import ModelLoadError
from june.hardware import Gpu
from june.messages import ChatRequest, Delta, ModelDescription
from june.models import Model, llm_gpu_bytes
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

        What is thought comes as `reasoning`, calls of `request.tools` as `tool_calls` (with an error in
        words for the model if they cannot be made), and only what is meant for a person as `text`.

        Raises:
            GenerationError: the prompt is longer than the context, too many answers wait already (code
                "busy"), the engine failed, or the grammar or JSON schema cannot be kept (code
                "bad_grammar"), which ends this request alone.
        """

    def describe(self) -> ModelDescription:
        """The model, for people and machines to read."""

    async def close(self) -> None:
        """Free the model and end its thread."""


_BACKENDS = {"llama_cpp": "june.llm.llama_cpp:LlamaCpp"}


def create(settings: LlmSettings, model: Model, path: Path) -> ChatModel:
    """The backend that the settings name, not yet loaded.

    Args:
        settings: the section `[llm]`.
        model: its entry in the catalogue.
        path: its GGUF file.
    """
    module, _, backend = _BACKENDS[settings.backend].partition(":")
    return cast("ChatModel", getattr(import_module(module), backend)(settings, model, path))


def require_gpu(
    model: Model, settings: LlmSettings, gpus: tuple[Gpu, ...], *, offload_supported: bool
) -> None:
    """Returns if the model may be loaded here: small enough for the CPU, or with room on a GPU.

    A model with more than `llm.gpu_only_above_b` billion parameters never computes on the CPU.

    Raises:
        ModelLoadError: what was found, and what is missing.
    """
    if model.parameters_b <= settings.gpu_only_above_b:
        return
    needed_gb = llm_gpu_bytes(model, settings.context_tokens, settings.kv_type) / 1e9
    most_free = max(gpus, key=lambda gpu: gpu.free_bytes, default=None)
    if most_free is None:
        missing = "no NVIDIA GPU was found"
    elif not offload_supported:
        missing = f"llama.cpp was built without CUDA, so {most_free.name} is of no use to it"
    elif settings.gpu_layers >= 0:
        missing = f"llm.gpu_layers = {settings.gpu_layers} leaves a part of it on the CPU; set it to -1"
    elif most_free.free_bytes / 1e9 < needed_gb:
        missing = f"{most_free.name} has only {most_free.free_bytes / 1e9:.1f} GB free"
    else:
        return
    raise ModelLoadError(
        f"{model.name} has {model.parameters_b:g} billion parameters, more than llm.gpu_only_above_b = "
        f"{settings.gpu_only_above_b:g}, and needs a GPU with {needed_gb:.1f} GB free: {missing}."
    )


def kv_budget_tokens(model: Model, settings: LlmSettings, gpus: tuple[Gpu, ...], *, offloaded: bool) -> int:
    """The cache of all conversations together, in tokens; see `llm.kv_tokens`.

    Half of what a GPU has free beside the weights is left to Whisper and to other programs.
    """
    if settings.kv_tokens or not offloaded:
        return max(settings.kv_tokens, settings.context_tokens)
    free_bytes = max((gpu.free_bytes for gpu in gpus), default=0) - llm_gpu_bytes(model, 0, settings.kv_type)
    contexts = free_bytes // 2 // kv_bytes(model, settings.context_tokens, settings)
    return settings.context_tokens * min(max(contexts, 1), settings.slots)


def kv_bytes(model: Model, tokens: int, settings: LlmSettings) -> int:
    """The memory of a cache of so many tokens."""
    return llm_gpu_bytes(model, tokens, settings.kv_type) - llm_gpu_bytes(model, 0, settings.kv_type)


def gpu_offload_supported(settings: LlmSettings) -> bool:
    """Whether the backend that the settings name was built for a GPU."""
    module = import_module(_BACKENDS[settings.backend].partition(":")[0])
    return bool(module.gpu_offload_supported())
