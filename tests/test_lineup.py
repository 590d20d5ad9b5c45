"""Promises of choosing, verifying and opening the models."""

import asyncio
import hashlib
import shutil
import threading
from pathlib import Path
from typing import Any

import pynvml
import pytest
from structlog.testing import capture_logs

from june import lineup, llm
from june.errors import ModelFileError, ModelLoadError, SettingsError
from june.hardware import Gpu
from june.llm import LlmBackend
from june.llm.switching import SwitchableModel
from june.models import GPU_STT, Endpoint, Source
from june.sections import LlmSettings, ModelsSettings
from june.settings import Settings
from tests.conftest import CATALOGUE, LLM, STT
from tests.fakes import FakeLlm
from tests.models.gguf_writer import gguf, write


@pytest.fixture
def copied(settings: Settings, model_paths: dict[str, Path], tmp_path: Path) -> Settings:
    """Return settings with the starter models in a folder where june cannot note their verification."""
    for path in model_paths.values():
        folder = path if path.is_dir() else path.parent
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns(".*"))
        (tmp_path / folder.name / ".verified.json").mkdir()  # stands in the way of root, too
    models = ModelsSettings(directory=tmp_path, preset="starter")
    return settings.model_copy(update={"models": models})


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """Note which threads hash a file, and which ask the GPU's driver."""
    seen: dict[str, set[int]] = {"hash": set(), "driver": set()}
    hash_now, ask_now = hashlib.sha256, pynvml.nvmlInit

    def hash_seen(*data: Any) -> Any:
        seen["hash"].add(threading.get_ident())
        return hash_now(*data)

    def ask_seen() -> None:
        seen["driver"].add(threading.get_ident())
        ask_now()

    monkeypatch.setattr("june.models.files.hashlib.sha256", hash_seen)
    monkeypatch.setattr("june.hardware.pynvml.nvmlInit", ask_seen)
    return seen


async def settled(model: SwitchableModel) -> None:
    """Return when no change is going on."""
    async with asyncio.timeout(60):
        while model.status().changing:  # noqa: ASYNC110 - a status is looked at, and sets no event
            await asyncio.sleep(0)


async def test_no_file_is_hashed_and_no_driver_asked_on_the_event_loop(
    copied: Settings, threads: dict[str, set[int]]
) -> None:
    with capture_logs() as events:
        async with lineup.open_models(copied) as models:
            models.llm.begin_unload()
            await settled(models.llm)
            CATALOGUE[LLM].path(copied.models.directory).touch()  # so that it is hashed again
            models.llm.begin_load(models.llm.status().name)
            await settled(models.llm)
            assert models.llm.is_loaded
    assert threads["hash"]
    assert threads["driver"]
    assert threading.get_ident() not in threads["hash"] | threads["driver"]
    told = [event["file"] for event in events if event["event"] == "verification.advanced"]
    assert {"model.bin", "en_US-joe-medium.onnx"} < set(told)
    unsaved = [event["model"] for event in events if event["event"] == "verification.unsaved"]
    assert len(unsaved) == 3
    assert STT in unsaved


async def test_where_june_may_not_write_a_file_is_hashed_once_a_process(
    copied: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lineup.pull_models(copied)
    with monkeypatch.context() as patch:
        patch.setattr("june.models.files.hashlib.sha256", None)  # would be called
        await lineup.pull_models(copied)


async def test_a_start_that_is_cancelled_does_not_read_a_file_to_its_end(
    copied: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    class SlowHash:
        updates = 0

        def update(self, _: bytes) -> None:
            SlowHash.updates += 1
            begun.set()
            may_go_on.wait(30)

    monkeypatch.setattr("june.models.files.hashlib.sha256", SlowHash)
    starting = asyncio.create_task(lineup.pull_models(copied))
    assert await asyncio.to_thread(begun.wait, 30)
    starting.cancel()
    await asyncio.sleep(0)  # the flag is set before the next block is read
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert SlowHash.updates == 1


async def test_a_context_that_the_model_was_not_trained_for_is_refused(settings: Settings) -> None:
    longer = settings.llm.model_copy(update={"context_tokens": 8193})
    with pytest.raises(ModelLoadError, match="set it to 8192 or less"):
        async with lineup.open_models(settings.model_copy(update={"llm": longer})):
            pass


class Parrot(FakeLlm):
    """A language model that a server has, as far as june knows."""

    def __init__(self, _: LlmSettings, source: Source) -> None:
        super().__init__()
        assert source == Endpoint("http://127.0.0.1:1/v1", "parrot")


async def test_a_model_of_a_server_is_opened_freed_and_opened_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(llm.BACKENDS, "parrot", LlmBackend("tests.test_lineup:Parrot", opens="endpoint"))
    section = settings.llm.model_copy(update={"backend": "parrot", "model": "http://127.0.0.1:1/v1#parrot"})
    chosen = settings.model_copy(update={"llm": section})
    await lineup.pull_models(chosen)
    assert list(lineup.find_llms(chosen)) == ["parrot"]
    async with lineup.open_models(chosen) as models:
        assert models.llm.status().name == "parrot"
        models.llm.begin_unload()
        await settled(models.llm)
        models.llm.begin_load("parrot")
        await settled(models.llm)
        assert (models.llm.is_loaded, models.llm.status().error) == (True, "")


def test_a_language_model_of_a_server_leaves_the_gpu_to_speech_to_text(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(llm.BACKENDS, "parrot", LlmBackend("tests.test_lineup:Parrot", opens="endpoint"))
    card = Gpu("Some GPU", 8_000_000_000, 8_000_000_000, (8, 9), unified_memory=False)
    monkeypatch.setattr("june.hardware.find_gpus", lambda: (card,))
    section = settings.llm.model_copy(update={"backend": "parrot"})
    choice = lineup.choose_set(settings.model_copy(update={"llm": section}), CATALOGUE, "gpu")
    assert (choice.stt, choice.llm) == (GPU_STT, "")


async def test_a_model_whose_file_was_removed_is_not_looked_for_in_the_working_folder(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "models"
    for folder in (directory, tmp_path):
        write(folder / "mine.gguf", gguf())
    monkeypatch.chdir(tmp_path)
    chosen = settings.model_copy(
        update={
            "models": settings.models.model_copy(update={"directory": directory}),
            "llm": settings.llm.model_copy(update={"context_tokens": 2048}),
        }
    )
    found = await lineup.create_llm(chosen, "mine.gguf")
    await found.close()
    (directory / "mine.gguf").unlink()
    with pytest.raises(ModelFileError, match=r"^mine\.gguf is not here any more\.$"):
        await lineup.create_llm(chosen, "mine.gguf")


async def test_an_unknown_backend_is_refused_before_anything_is_loaded(settings: Settings) -> None:
    section = settings.stt.model_copy(update={"backend": "ear"})
    with pytest.raises(
        SettingsError, match=r"stt\.backend: 'ear' is not a backend; expected one of: faster_whisper"
    ):
        async with lineup.open_models(settings.model_copy(update={"stt": section})):
            pass
