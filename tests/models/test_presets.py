"""Promises of the choice of models for a machine."""

from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from june.errors import ModelLoadError
from june.hardware import Gpu
from june.llm.llama_cpp.settings import LlamaCppSettings
from june.llm.llama_cpp.unloaded import UnloadedLlamaCpp
from june.models import (
    GPU_LLMS,
    GPU_STT,
    GPU_TTS,
    STARTER,
    STT_WORKSPACE_BYTES,
    Model,
    choose_preset,
    load_catalogue,
)
from june.sections import LlmSettings

SHIPPED = load_catalogue()
KvType = Literal["f16", "q8_0", "q4_0"]
KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")


def taken(context_tokens: int = 4096, kv_type: KvType = "f16") -> Callable[[Model], int]:
    """Return a function: a language model's GPU memory, as june's engine estimates it."""
    settings = LlmSettings(context_tokens=context_tokens)
    return UnloadedLlamaCpp(settings, LlamaCppSettings(kv_type=kv_type)).gpu_bytes


def gpu(free_gb: float, name: str = "Some GPU", *, unified: bool = False) -> Gpu:
    return Gpu(name, int(free_gb * 1e9) + 500_000_000, int(free_gb * 1e9), (8, 9), unified)


@pytest.mark.parametrize(("free_gb", "preset"), [(2, "starter"), (4, "gpu")])
def test_a_language_model_elsewhere_takes_nothing_of_a_gpu(free_gb: float, preset: str) -> None:
    choice = choose_preset(SHIPPED, [gpu(free_gb)], preset="auto", context_tokens=4096, llm_gpu_bytes=None)
    assert choice.preset == preset
    assert f"Some GPU has {free_gb:.1f} GB free" in choice.reason
    assert "tokens of context" not in choice.reason
    if preset == "gpu":
        assert (choice.stt, choice.llm, choice.tts) == (GPU_STT, "", GPU_TTS)


def test_a_gpu_that_nothing_computes_on_does_not_make_the_models_larger() -> None:
    choice = choose_preset(
        SHIPPED, [gpu(80)], preset="auto", context_tokens=4096, llm_gpu_bytes=None, stt_on_gpu=False
    )
    assert choice.reason.startswith("Starter models, since neither the language model nor speech to text")


@pytest.mark.parametrize(
    ("gpus", "llm"),
    [
        ([], "smollm2-135m-instruct"),
        ([gpu(3.8)], "smollm2-135m-instruct"),
        ([gpu(7.6)], "qwen3-4b-instruct-2507"),
        ([gpu(11.5)], "qwen3-8b"),
        ([gpu(15.5)], "qwen3-8b"),
        ([gpu(23.5)], "qwen3-30b-a3b-instruct-2507"),
        ([gpu(80)], "qwen3-30b-a3b-instruct-2507"),
        ([gpu(119, unified=True)], "qwen3-30b-a3b-instruct-2507"),
        ([gpu(3.8), gpu(11.5), gpu(5)], "qwen3-8b"),
    ],
    ids=["none", "4 GB", "8 GB", "12 GB", "16 GB", "24 GB", "80 GB", "unified", "the freest of three"],
)
def test_the_best_language_model_that_fits_is_chosen(gpus: list[Gpu], llm: str) -> None:
    choice = choose_preset(SHIPPED, gpus, preset="auto", context_tokens=4096, llm_gpu_bytes=taken())
    assert choice.llm == llm
    starter = llm == STARTER[1]
    assert choice.preset == ("starter" if starter else "gpu")
    assert (choice.stt, choice.tts) == ((STARTER[0], STARTER[2]) if starter else (GPU_STT, GPU_TTS))


@given(
    free_bytes=st.integers(0, 60_000_000_000),
    context_tokens=st.integers(256, 262_144),
    kv_type=st.sampled_from(KV_TYPES),
    stt_on_gpu=st.booleans(),
)
def test_what_is_chosen_always_fits_and_nothing_better_would(
    free_bytes: int, context_tokens: int, kv_type: KvType, *, stt_on_gpu: bool
) -> None:
    card = Gpu("Some GPU", 60_000_000_000, free_bytes, (9, 0), unified_memory=False)
    choice = choose_preset(
        SHIPPED,
        [card],
        preset="auto",
        context_tokens=context_tokens,
        llm_gpu_bytes=taken(context_tokens, kv_type),
        stt_on_gpu=stt_on_gpu,
    )
    whisper_bytes = SHIPPED[GPU_STT].size_bytes + STT_WORKSPACE_BYTES if stt_on_gpu else 0
    fitting = [
        name
        for name in GPU_LLMS
        if whisper_bytes + taken(context_tokens, kv_type)(SHIPPED[name]) <= free_bytes
    ]
    assert choice.llm == (fitting or [STARTER[1]])[0]


def test_a_quantised_cache_and_whisper_elsewhere_make_room_for_a_better_model() -> None:
    def chosen(kv_type: KvType, *, stt_on_gpu: bool = True) -> str:
        choice = choose_preset(
            SHIPPED,
            [gpu(11.5)],
            preset="auto",
            context_tokens=32_768,
            llm_gpu_bytes=taken(32_768, kv_type),
            stt_on_gpu=stt_on_gpu,
        )
        return choice.llm

    assert chosen("f16") == "qwen3-4b-instruct-2507"
    assert chosen("q8_0") == "qwen3-8b"
    assert chosen("f16", stt_on_gpu=False) == "qwen3-8b"


def test_the_reason_holds_the_figures() -> None:
    choice = choose_preset(
        SHIPPED, [gpu(23.5, "RTX 4090")], preset="auto", context_tokens=4096, llm_gpu_bytes=taken()
    )
    assert choice.reason == (
        "RTX 4090 has 23.5 GB free, and qwen3-30b-a3b-instruct-2507 with 4096 tokens of context and "
        "whisper-large-v3-turbo need 22.5 GB."
    )
    choice = choose_preset(
        SHIPPED, [gpu(5, "GTX 1060")], preset="auto", context_tokens=4096, llm_gpu_bytes=taken()
    )
    assert "GTX 1060 has 5.0 GB free, 1.6 GB less than qwen3-4b-instruct-2507" in choice.reason


def test_the_preset_starter_ignores_a_gpu() -> None:
    choice = choose_preset(SHIPPED, [gpu(80)], preset="starter", context_tokens=4096, llm_gpu_bytes=taken())
    assert (choice.stt, choice.llm, choice.tts) == STARTER


@pytest.mark.parametrize(("gpus", "told"), [([], "no NVIDIA GPU"), ([gpu(2)], "2.0 GB free")])
def test_the_preset_gpu_is_refused_where_it_cannot_be(gpus: list[Gpu], told: str) -> None:
    with pytest.raises(ModelLoadError, match=told):
        choose_preset(SHIPPED, gpus, preset="gpu", context_tokens=4096, llm_gpu_bytes=taken())
