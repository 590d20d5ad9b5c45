"""Which set of models suits a machine, by the memory that they take."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from june.errors import ModelLoadError
from june.hardware import Gpu
from june.models.catalogue import Catalogue, Model

Preset = Literal["starter", "gpu"]
KvType = Literal["f16", "q8_0", "q4_0"]

STARTER = ("whisper-tiny-en", "smollm2-135m-instruct", "en_US-joe-medium")
GPU_STT = "whisper-large-v3-turbo"
GPU_LLMS = ("qwen3-30b-a3b-instruct-2507", "qwen3-8b", "qwen3-4b-instruct-2507")
"""The best first."""
GPU_TTS = "en_US-joe-medium"
KV_FACTOR = {"f16": 1.0, "q8_0": 8.5 / 16, "q4_0": 4.5 / 16}
"""Bits a value against f16; llama.cpp's blocks of 32 values carry a 16-bit scale."""
STT_WORKSPACE_BYTES = 900_000_000
"""CUDA context and activations of Whisper turbo: an estimate, to be measured on a GPU."""
LLM_WORKSPACE_BYTES = 1_000_000_000
"""CUDA context and llama.cpp's compute buffers for a batch of 512 (logits alone 152,000 x 512 x 4 bytes =
0.3 GB for Qwen3): an estimate, to be measured on a GPU."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Names of the models for one machine; `reason` is a sentence for people."""

    preset: Preset
    stt: str
    llm: str
    tts: str
    reason: str


def llm_gpu_bytes(model: Model, context_tokens: int, kv_type: KvType) -> int:
    """GPU memory that a language model takes: weights, the attention cache of `context_tokens`, workspace."""
    kv_bytes = int((model.kv_bytes_per_token or 0) * context_tokens * KV_FACTOR[kv_type])
    return model.size_bytes + kv_bytes + LLM_WORKSPACE_BYTES


def choose_preset(
    catalogue: Catalogue,
    gpus: Iterable[Gpu],
    *,
    preset: Literal["auto"] | Preset,
    context_tokens: int,
    kv_type: KvType,
    stt_on_gpu: bool = True,
    obstacle: str = "no NVIDIA GPU was found",
) -> Choice:
    """The models for this machine: the best language model that fits the GPU with the most free memory.

    Whisper is counted too, unless `stt_on_gpu` is off. With "auto", a machine where nothing fits gets the
    starter models. `obstacle` says why `gpus` is empty.

    Raises:
        ModelLoadError: "gpu" was asked for, and there is no GPU or nothing fits it.
    """
    if preset == "starter":
        return Choice("starter", *STARTER, "Starter models, as asked.")
    gpu = max(gpus, key=lambda gpu: gpu.free_bytes, default=None)
    if gpu is None:
        shortfall = obstacle
    else:
        stt_bytes = catalogue[GPU_STT].size_bytes + STT_WORKSPACE_BYTES if stt_on_gpu else 0
        needed = {
            name: stt_bytes + llm_gpu_bytes(catalogue[name], context_tokens, kv_type) for name in GPU_LLMS
        }
        llm = next((name for name in GPU_LLMS if needed[name] <= gpu.free_bytes), GPU_LLMS[-1])
        missing_bytes = needed[llm] - gpu.free_bytes
        has = f"{gpu.name} has {gpu.free_bytes / 1e9:.1f} GB free"
        uses = f"{llm} with {context_tokens} tokens of context" + (f" and {GPU_STT}" if stt_on_gpu else "")
        if missing_bytes <= 0:
            reason = f"{has}, and {uses} need {needed[llm] / 1e9:.1f} GB."
            return Choice("gpu", GPU_STT, llm, GPU_TTS, reason)
        shortfall = f"{has}, {missing_bytes / 1e9:.1f} GB less than {uses} need"
    if preset == "gpu":
        raise ModelLoadError(
            f'The preset "gpu" cannot be used: {shortfall}; use "starter" or name the models.'
        )
    return Choice("starter", *STARTER, f"Starter models, since {shortfall}.")
