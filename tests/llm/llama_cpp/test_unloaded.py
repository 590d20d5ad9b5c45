"""What llama.cpp tells june without a model in memory, and that nothing is loaded for it."""

import subprocess
import sys
from pathlib import Path

import pytest

from june import llm
from june.errors import GenerationError, ModelLoadError, SettingsError
from june.hardware import Gpu
from june.llm import Needs
from june.llm.llama_cpp.needs import gpu_bytes, kv_bytes
from june.llm.llama_cpp.settings import DEFAULTS, LlamaCppSettings
from june.llm.llama_cpp.state_files import StateFiles
from june.llm.llama_cpp.unloaded import UnloadedLlamaCpp
from june.sections import PROJECT_ROOT, LlmSettings
from tests.conftest import CATALOGUE, LLM
from tests.llm.llama_cpp.test_state_files import kept

LIGHT = "settings needs unloaded scheduler sequences state_files pace grammar meter"
SMALL = CATALOGUE[LLM]
CARD = Gpu("Some GPU", 24_000_000_000, 23_000_000_000, (9, 0), unified_memory=False)


@pytest.fixture(params=[True, False], ids=["CUDA", "no CUDA"])
def built_for_gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Have llama.cpp say that it was built for GPUs, or was not."""
    monkeypatch.setattr("june.llm.llama_cpp.library.gpu_offload_supported", lambda: request.param)
    return bool(request.param)


def test_its_light_parts_load_no_library() -> None:
    names = ", ".join(f"june.llm.llama_cpp.{part}" for part in LIGHT.split())
    code = f"import sys, {names}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PROJECT_ROOT
    )
    loaded = done.stdout.split()
    assert "june.llm.llama_cpp.meter" in loaded
    assert "llama_cpp" not in loaded


@pytest.mark.parametrize("layers", [-1, 0])
def test_it_says_whether_it_can_compute_on_a_gpu_and_may(layers: int, *, built_for_gpus: bool) -> None:
    use = UnloadedLlamaCpp(LlmSettings(), LlamaCppSettings(gpu_layers=layers)).gpu_use()
    assert use.is_wanted == (layers != 0)
    assert ("without CUDA" in use.obstacle, "CMAKE_ARGS" in use.remedy) == (not built_for_gpus,) * 2


def test_it_needs_a_gpus_memory_or_the_machines(*, built_for_gpus: bool) -> None:
    settings = LlmSettings(context_tokens=1_000, slots=4)
    remedy = "lower llm.llama_cpp.kv_tokens"
    on_cpu = Needs(SMALL.size_bytes + kv_bytes(SMALL, 1_000, DEFAULTS), 0, 1_000, remedy)
    assert UnloadedLlamaCpp(settings).needs(SMALL, ()) == on_cpu
    on_gpu = Needs(0, gpu_bytes(SMALL, 4_000, DEFAULTS), 4_000, remedy)
    assert UnloadedLlamaCpp(settings).needs(SMALL, (CARD,)) == (on_gpu if built_for_gpus else on_cpu)
    unwanted = LlamaCppSettings(gpu_layers=0)
    assert UnloadedLlamaCpp(settings, unwanted).needs(SMALL, (CARD,)) == on_cpu


def test_a_model_that_is_too_large_for_the_cpu_is_refused(*, built_for_gpus: bool) -> None:
    large, engine = CATALOGUE["qwen3-32b"], UnloadedLlamaCpp(LlmSettings())
    if built_for_gpus:
        assert engine.needs(large, (CARD,)).gpu_bytes > large.size_bytes
    else:
        with pytest.raises(ModelLoadError, match="without CUDA"):
            engine.needs(large, (CARD,))
    with pytest.raises(ModelLoadError, match="no NVIDIA GPU was found"):
        engine.needs(large, ())


def test_a_schema_that_no_grammar_keeps_is_refused() -> None:
    engine = llm.unloaded(LlmSettings())
    engine.require_schema({"type": "string"})
    with pytest.raises(GenerationError, match="pattern"):
        engine.require_schema({"type": "string", "pattern": "a"})


async def test_it_forgets_what_is_on_disk_where_something_is(tmp_path: Path) -> None:
    await UnloadedLlamaCpp(LlmSettings()).forget(conversations=["telegram:1"])
    own = LlamaCppSettings(state_dir=tmp_path)
    files = StateFiles(tmp_path, 100_000)
    files.open("small")
    for chat in ("telegram:1", "telegram:2"):
        files.put(chat, range(300), bytearray(100))
    files.close()
    await UnloadedLlamaCpp(LlmSettings(), own).forget(conversations=["telegram:1"])
    assert len(kept(tmp_path)) == 1
    await UnloadedLlamaCpp(LlmSettings(), own).forget(older_than_s=-1)
    assert kept(tmp_path) == set()


def test_an_engine_that_there_is_not_is_told_with_those_that_there_are() -> None:
    with pytest.raises(SettingsError, match=r"^llm\.backend: 'vllm' is not a backend; expected .*llama_cpp"):
        llm.unloaded(LlmSettings(backend="vllm"))
