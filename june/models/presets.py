"""Which set of models suits a machine, by the memory that they take."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from june.errors import ModelLoadError
from june.hardware import Gpu
from june.models.catalogue import Catalogue, Model

Preset = Literal["starter", "gpu"]

STARTER = ("whisper-tiny-en", "smollm2-135m-instruct", "en_US-joe-medium")
GPU_STT = "whisper-large-v3-turbo"
GPU_LLMS = ("qwen3-30b-a3b-instruct-2507", "qwen3-8b", "qwen3-4b-instruct-2507")
"""The best first."""
GPU_TTS = "en_US-joe-medium"
STT_WORKSPACE_BYTES = 900_000_000
"""CUDA context and activations of Whisper turbo: an estimate, to be measured on a GPU."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Names of the models for one machine; `reason` is a sentence for people.

    `llm` is empty where a server has the language model.
    """

    preset: Preset
    stt: str
    llm: str
    tts: str
    reason: str


def choose_preset(
    catalogue: Catalogue,
    gpus: Iterable[Gpu],
    *,
    preset: Literal["auto"] | Preset,
    context_tokens: int,
    llm_gpu_bytes: Callable[[Model], int] | None,
    stt_on_gpu: bool = True,
    obstacle: str = "no NVIDIA GPU was found",
) -> Choice:
    """Return the models for this machine: the best language model that fits the freest GPU.

    With "auto", a machine where nothing fits gets the starter models.

    Args:
        catalogue: the models that june knows.
        gpus: the GPUs that may be used.
        preset: which of the two sets, or the one that suits.
        context_tokens: of one conversation; for the reason.
        llm_gpu_bytes: what a language model takes on a GPU with that context; None: a server has it.
        stt_on_gpu: whether Whisper has to fit, too.
        obstacle: why `gpus` is empty.

    Raises:
        ModelLoadError: "gpu" was asked for, and there is no GPU or nothing fits it.
    """
    if preset == "starter":
        return Choice("starter", *STARTER, "Starter models, as asked.")
    gpu = max(gpus, key=lambda gpu: gpu.free_bytes, default=None)
    if gpu is None:
        shortfall = obstacle
    elif llm_gpu_bytes is None and not stt_on_gpu:
        shortfall = "neither the language model nor speech to text computes on a GPU here"
    else:
        stt_bytes = catalogue[GPU_STT].size_bytes + STT_WORKSPACE_BYTES if stt_on_gpu else 0
        needed = {"": stt_bytes}
        if llm_gpu_bytes is not None:
            needed = {name: stt_bytes + llm_gpu_bytes(catalogue[name]) for name in GPU_LLMS}
        llm = next((name for name in needed if needed[name] <= gpu.free_bytes), [*needed][-1])
        missing_bytes = needed[llm] - gpu.free_bytes
        has = f"{gpu.name} has {gpu.free_bytes / 1e9:.1f} GB free"
        users = [f"{llm} with {context_tokens} tokens of context"] if llm else []
        users += [GPU_STT] if stt_on_gpu else []
        uses, need = " and ".join(users), "need" if len(users) > 1 else "needs"
        if missing_bytes <= 0:
            reason = f"{has}, and {uses} {need} {needed[llm] / 1e9:.1f} GB."
            return Choice("gpu", GPU_STT, llm, GPU_TTS, reason)
        shortfall = f"{has}, {missing_bytes / 1e9:.1f} GB less than {uses} {need}"
    if preset == "gpu":
        raise ModelLoadError(
            f'The preset "gpu" cannot be used: {shortfall}; use "starter" or name the models.'
        )
    return Choice("starter", *STARTER, f"Starter models, since {shortfall}.")
