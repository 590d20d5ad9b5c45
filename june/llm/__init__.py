"""The language model: the Protocol, and the one place that picks a backend."""

from collections.abc import AsyncGenerator
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from june.errors import ModelLoadError
from june.hardware import Gpu
from june.kernels import llama_overrides
from june.messages import ChatRequest, Delta, ModelDescription
from june.models import Model, llm_gpu_bytes
from june.sections import LlmSettings


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

    async def forget(self, conversation: str) -> None:
        """Keep nothing of a conversation, in memory or in `llm.state_dir`, whether a model is loaded or not.

        Raises:
            GenerationError: what was saved cannot be deleted.
        """

    def describe(self) -> ModelDescription:
        """The model, for people and machines to read."""

    async def close(self) -> None:
        """Save conversations, if there is `llm.state_dir`, free the model and end its thread."""


CPU_WORKSPACE_BYTES = 100_000_000
"""Compute buffers: those of a batch of 264 tokens are 52 MB of SmolLM2's logits and its activations."""

_BACKENDS = {"llama_cpp": "june.llm.llama_cpp:LlamaCpp"}


def cpu_format(model: Model, settings: LlmSettings, *, offloaded: bool) -> str | None:
    """Number format that the weights are converted to before they are loaded; None: they stay as they are.

    A GPU and june's own kernel compute with what comes; the copy is for llama.cpp's code for CPUs.
    """
    has_own_kernel = settings.kernel == "auto" and llama_overrides.usable_library() is not None
    return None if offloaded or has_own_kernel else model.cpu_format


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


def require_memory(
    model: Model,
    settings: LlmSettings,
    gpus: tuple[Gpu, ...],
    kv_tokens: int,
    *,
    offloaded: bool,
    available_bytes: int,
) -> None:
    """Returns if weights, cache and work space fit what is free, on the GPU or in the machine's memory.

    Args:
        model: its entry in the catalogue.
        settings: the section `[llm]`.
        gpus: those that llama.cpp may use.
        kv_tokens: the cache of all conversations.
        offloaded: whether it computes on a GPU.
        available_bytes: memory of the machine that can be had without swapping.

    Raises:
        ModelLoadError: what it needs, what is free, and what helps.
    """
    needed_bytes = model.size_bytes + kv_bytes(model, kv_tokens, settings) + CPU_WORKSPACE_BYTES
    free_bytes, place = available_bytes, "of memory are available"
    if offloaded:
        needed_bytes = llm_gpu_bytes(model, kv_tokens, settings.kv_type)
        if settings.gpu_layers >= 0:
            return  # how much of it the GPU takes is the owner's reckoning
        most_free = max(gpus, key=lambda gpu: gpu.free_bytes, default=None)
        if most_free is None:
            return  # a GPU that only llama.cpp knows, and NVML does not
        free_bytes, place = most_free.free_bytes, f"are free on {most_free.name}"
    if needed_bytes <= free_bytes:
        return
    weights_gb = model.size_bytes / 1e9
    cache_gb = kv_bytes(model, kv_tokens, settings) / 1e9
    raise ModelLoadError(
        f"{model.name} needs {needed_bytes / 1e9:.1f} GB ({weights_gb:.1f} GB of weights, {cache_gb:.1f} GB "
        f"for a cache of {kv_tokens:,} tokens, and work space); {free_bytes / 1e9:.1f} GB {place}. "
        "Lower llm.kv_tokens or llm.context_tokens, or choose a smaller model."
    )


def layers_to_offload(settings: LlmSettings, layers: int) -> int:
    """How many of a model's layers go to the GPU, the output layer included.

    Args:
        settings: `gpu_layers` says how many are wanted.
        layers: how many the model has, the output layer included.

    Raises:
        ModelLoadError: a part would stay on the CPU, and `gpu_partial` does not allow that.
    """
    if settings.gpu_layers < 0 or settings.gpu_layers >= layers:
        return layers
    if settings.gpu_layers == 0 or settings.gpu_partial:
        return settings.gpu_layers
    raise ModelLoadError(
        f"llm.gpu_layers = {settings.gpu_layers} leaves {layers - settings.gpu_layers} of {layers} layers on "
        "the CPU, which is mostly as slow as none on the GPU: set it to -1 (all) or 0 (none), or allow it "
        "with llm.gpu_partial = true."
    )


def capacity(model: Model, kv_tokens: int, settings: LlmSettings) -> str:
    """What the cache holds, in words: "1 conversation of 4,096 tokens, 0.09 GB of KV"."""
    whole = min(kv_tokens // settings.context_tokens, settings.slots)
    noun = "conversation" if whole == 1 else "conversations"
    cache_gb = kv_bytes(model, kv_tokens, settings) / 1e9
    room = f"{whole} {noun} of {settings.context_tokens:,} tokens"
    if settings.slots > whole:
        shorter = kv_tokens // settings.slots
        room += f" or {settings.slots} of {shorter:,}"
    return f"{room}, {cache_gb:.2f} GB of KV"


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
