"""What a language model needs of this machine when llama.cpp runs it, and whether that is here.

Sizes are estimates from what june knows of the model; nothing of llama.cpp is loaded for them.
"""

from june.errors import ModelLoadError
from june.hardware import Gpu
from june.kernels import llama_overrides
from june.llm.llama_cpp.settings import LlamaCppSettings
from june.models import Model
from june.sections import LlmSettings

KV_FACTOR = {"f16": 1.0, "q8_0": 8.5 / 16, "q4_0": 4.5 / 16}
"""Bits a value against f16; llama.cpp's blocks of 32 values carry a 16-bit scale."""
GPU_WORKSPACE_BYTES = 1_000_000_000
"""CUDA context and llama.cpp's compute buffers for a batch of 512 (logits alone 152,000 x 512 x 4 bytes =
0.3 GB for Qwen3): an estimate, to be measured on a GPU."""
CPU_WORKSPACE_BYTES = 100_000_000
"""Compute buffers: those of a batch of 264 tokens are 52 MB of SmolLM2's logits and its activations."""


def cpu_format(model: Model, own: LlamaCppSettings, *, offloaded: bool) -> str | None:
    """Return the number format that weights are converted to before they are loaded; None: they are not.

    A GPU and june's own kernel compute with the weights as they are; a copy is for llama.cpp's code for CPUs.
    """
    has_own_kernel = own.kernel == "auto" and llama_overrides.usable_library() is not None
    return None if offloaded or has_own_kernel else model.cpu_format


def require_gpu(
    model: Model,
    settings: LlmSettings,
    own: LlamaCppSettings,
    gpus: tuple[Gpu, ...],
    *,
    offload_supported: bool,
) -> None:
    """Return if the model may be loaded here: small enough for the CPU, or with room on a GPU.

    A model with more than `llm.llama_cpp.gpu_only_above_b` billion parameters never computes on the CPU.

    Raises:
        ModelLoadError: what was found, and what is missing.
    """
    if model.parameters_b <= own.gpu_only_above_b:
        return
    needed_gb = gpu_bytes(model, settings.context_tokens, own) / 1e9
    most_free = max(gpus, key=lambda gpu: gpu.free_bytes, default=None)
    if most_free is None:
        missing = "no NVIDIA GPU was found"
    elif not offload_supported:
        missing = f"llama.cpp was built without CUDA, so {most_free.name} is of no use to it"
    elif own.gpu_layers >= 0:
        missing = f"llm.llama_cpp.gpu_layers = {own.gpu_layers} leaves a part of it on the CPU; set it to -1"
    elif most_free.free_bytes / 1e9 < needed_gb:
        missing = f"{most_free.name} has only {most_free.free_bytes / 1e9:.1f} GB free"
    else:
        return
    raise ModelLoadError(
        f"{model.name} has {model.parameters_b:g} billion parameters, more than "
        f"llm.llama_cpp.gpu_only_above_b = {own.gpu_only_above_b:g}, and needs a GPU with "
        f"{needed_gb:.1f} GB free: {missing}."
    )


def require_memory(
    model: Model,
    own: LlamaCppSettings,
    gpus: tuple[Gpu, ...],
    kv_tokens: int,
    *,
    offloaded: bool,
    available_bytes: int,
) -> None:
    """Return if weights, cache and work space fit what is free, on the GPU or in the machine's memory.

    Args:
        model: its entry in the catalogue.
        own: the section `[llm.llama_cpp]`.
        gpus: those that llama.cpp may use.
        kv_tokens: the cache of all conversations.
        offloaded: whether it computes on a GPU.
        available_bytes: memory of the machine that can be had without swapping.

    Raises:
        ModelLoadError: what it needs, what is free, and what helps.
    """
    needed_bytes = model.size_bytes + kv_bytes(model, kv_tokens, own) + CPU_WORKSPACE_BYTES
    free_bytes, place = available_bytes, "of memory are available"
    if offloaded:
        needed_bytes = gpu_bytes(model, kv_tokens, own)
        if own.gpu_layers >= 0:
            return  # how much of it the GPU takes is the owner's reckoning
        most_free = max(gpus, key=lambda gpu: gpu.free_bytes, default=None)
        if most_free is None:
            return  # a GPU that only llama.cpp knows, and NVML does not
        free_bytes, place = most_free.free_bytes, f"are free on {most_free.name}"
    if needed_bytes <= free_bytes:
        return
    weights_gb = model.size_bytes / 1e9
    cache_gb = kv_bytes(model, kv_tokens, own) / 1e9
    raise ModelLoadError(
        f"{model.name} needs {needed_bytes / 1e9:.1f} GB ({weights_gb:.1f} GB of weights, {cache_gb:.1f} GB "
        f"for a cache of {kv_tokens:,} tokens, and work space); {free_bytes / 1e9:.1f} GB {place}. "
        "Lower llm.llama_cpp.kv_tokens or llm.context_tokens, or choose a smaller model."
    )


def layers_to_offload(own: LlamaCppSettings, layers: int) -> int:
    """Return how many of a model's layers go to the GPU, the output layer included.

    Args:
        own: `gpu_layers` says how many are wanted.
        layers: how many the model has, the output layer included.

    Raises:
        ModelLoadError: a part would stay on the CPU, and `gpu_partial` does not allow that.
    """
    if own.gpu_layers < 0 or own.gpu_layers >= layers:
        return layers
    if own.gpu_layers == 0 or own.gpu_partial:
        return own.gpu_layers
    raise ModelLoadError(
        f"llm.llama_cpp.gpu_layers = {own.gpu_layers} leaves {layers - own.gpu_layers} of {layers} layers on "
        "the CPU, which is mostly as slow as none on the GPU: set it to -1 (all) or 0 (none), or allow it "
        "with llm.llama_cpp.gpu_partial = true."
    )


def capacity(model: Model, kv_tokens: int, settings: LlmSettings, own: LlamaCppSettings) -> str:
    """Return what the cache holds, in words: "1 conversation of 4,096 tokens, 0.09 GB of KV"."""
    whole = min(kv_tokens // settings.context_tokens, settings.slots)
    noun = "conversation" if whole == 1 else "conversations"
    cache_gb = kv_bytes(model, kv_tokens, own) / 1e9
    room = f"{whole} {noun} of {settings.context_tokens:,} tokens"
    if settings.slots > whole:
        shorter = kv_tokens // settings.slots
        room += f" or {settings.slots} of {shorter:,}"
    return f"{room}, {cache_gb:.2f} GB of KV"


def kv_budget_tokens(
    model: Model, settings: LlmSettings, own: LlamaCppSettings, gpus: tuple[Gpu, ...], *, offloaded: bool
) -> int:
    """Return the size of the cache of all conversations together, in tokens; see `llm.llama_cpp.kv_tokens`.

    Half of what a GPU has free beside the weights is left to Whisper and to other programs.
    """
    if own.kv_tokens or not offloaded:
        return max(own.kv_tokens, settings.context_tokens)
    free_bytes = max((gpu.free_bytes for gpu in gpus), default=0) - gpu_bytes(model, 0, own)
    contexts = free_bytes // 2 // kv_bytes(model, settings.context_tokens, own)
    return settings.context_tokens * min(max(contexts, 1), settings.slots)


def gpu_bytes(model: Model, kv_tokens: int, own: LlamaCppSettings) -> int:
    """Return the memory that weights, a cache of so many tokens, and work space take on a GPU."""
    kv_bytes = int((model.kv_bytes_per_token or 0) * kv_tokens * KV_FACTOR[own.kv_type])
    return model.size_bytes + kv_bytes + GPU_WORKSPACE_BYTES


def kv_bytes(model: Model, tokens: int, own: LlamaCppSettings) -> int:
    """Return the memory of a cache of so many tokens, in bytes."""
    return gpu_bytes(model, tokens, own) - gpu_bytes(model, 0, own)
