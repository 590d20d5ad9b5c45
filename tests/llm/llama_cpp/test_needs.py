"""What llama.cpp needs of a machine, and what it says where that is not there."""

import pytest

from june.errors import ModelLoadError
from june.hardware import Gpu
from june.llm.llama_cpp.needs import (
    CPU_WORKSPACE_BYTES,
    capacity,
    gpu_bytes,
    kv_budget_tokens,
    kv_bytes,
    layers_to_offload,
    require_memory,
)
from june.llm.llama_cpp.settings import DEFAULTS, LlamaCppSettings
from june.models import Model
from june.sections import LlmSettings
from tests.conftest import CATALOGUE, LLM


def gpu(free_gb: float) -> Gpu:
    return Gpu("RTX", int(24e9), int(free_gb * 1e9), (8, 9), unified_memory=False)


def test_the_cache_is_one_context_on_the_cpu_and_what_a_gpu_has_room_for() -> None:
    model: Model = CATALOGUE[LLM]
    llm_settings = LlmSettings(context_tokens=1_000, slots=8)
    assert kv_budget_tokens(model, llm_settings, DEFAULTS, (gpu(24),), offloaded=False) == 1_000
    assert kv_budget_tokens(model, llm_settings, DEFAULTS, (gpu(24),), offloaded=True) == 8_000
    weights = gpu_bytes(model, 0, DEFAULTS)
    context = gpu_bytes(model, 1_000, DEFAULTS) - weights
    for contexts, tokens in ((0, 1_000), (2, 1_000), (6, 3_000), (7.9, 3_000), (99, 8_000)):
        free = gpu((weights + context * contexts + 10) / 1e9)
        assert kv_budget_tokens(model, llm_settings, DEFAULTS, (gpu(0), free), offloaded=True) == tokens
    asked = LlamaCppSettings(kv_tokens=5_000)
    assert kv_budget_tokens(model, llm_settings, asked, (), offloaded=False) == 5_000
    too_few = LlamaCppSettings(kv_tokens=500)
    assert kv_budget_tokens(model, llm_settings, too_few, (), offloaded=False) == 1_000


def test_a_model_that_does_not_fit_is_refused_before_it_is_read() -> None:
    model = CATALOGUE[LLM]
    needed_bytes = model.size_bytes + kv_bytes(model, 4096, DEFAULTS)
    needed_bytes += CPU_WORKSPACE_BYTES

    def load(free_bytes: int, gpus: tuple[Gpu, ...] = (), layers: int = -1) -> None:
        require_memory(
            model,
            LlamaCppSettings(gpu_layers=layers),
            gpus,
            4096,
            offloaded=bool(gpus),
            available_bytes=free_bytes,
        )

    load(needed_bytes)
    with pytest.raises(ModelLoadError, match=r"needs 0\.3 GB .* cache of 4,096 tokens.* 0\.3 GB of memory"):
        load(needed_bytes - 1)
    load(0, (gpu(0), gpu(24)))
    with pytest.raises(ModelLoadError, match=r"needs 1\.2 GB .*; 0\.3 GB are free on RTX"):
        load(10**12, (gpu(0.3),))
    load(0, (gpu(0.3),), layers=3)


def test_a_model_goes_to_the_gpu_whole_or_not_at_all_unless_allowed() -> None:
    def offload(wanted: int, *, partial: bool = False) -> int:
        return layers_to_offload(LlamaCppSettings(gpu_layers=wanted, gpu_partial=partial), 31)

    assert (offload(-1), offload(0), offload(31), offload(99)) == (31, 0, 31, 31)
    assert offload(20, partial=True) == 20
    with pytest.raises(
        ModelLoadError, match=r"leaves 11 of 31 layers on the CPU.*llm\.llama_cpp\.gpu_partial"
    ):
        offload(20)


def test_what_the_cache_holds_is_said_in_words() -> None:
    model = CATALOGUE[LLM]
    assert (
        capacity(model, 4096, LlmSettings(slots=1), DEFAULTS)
        == "1 conversation of 4,096 tokens, 0.09 GB of KV"
    )
    several = "2 conversations of 4,096 tokens or 8 of 1,024, 0.19 GB of KV"
    assert capacity(model, 8192, LlmSettings(), DEFAULTS) == several
    assert capacity(model, 99_999, LlmSettings(), DEFAULTS).startswith("8 conversations of 4,096 tokens, ")
