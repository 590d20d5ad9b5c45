"""Fixtures that several test files share; each starter model is loaded once per session."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from june.bench.recordings import Question, load_questions
from june.llm.llama_cpp.model import LlamaCpp
from june.models import STARTER, LocalModel, load_catalogue, require
from june.sections import PROJECT_ROOT, LlmSettings, ModelsSettings
from june.settings import Settings
from june.stt.faster_whisper import FasterWhisper
from june.tts.piper import Piper
from june.workers import short_collections

STT, LLM, TTS = STARTER
CATALOGUE = load_catalogue()


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Return the defaults with the starter models and greedy sampling, so that answers repeat."""
    return Settings(
        models=ModelsSettings(directory=PROJECT_ROOT / "models", preset="starter"),
        llm=LlmSettings(temperature=0, presence_penalty=0, max_tokens=40),
    )


@pytest.fixture
def punctual() -> Iterator[None]:
    """Keep garbage collection short for a test that measures time: all that the suite left takes 0.3 s."""
    with short_collections():
        yield


@pytest.fixture(scope="session")
def model_paths(settings: Settings) -> dict[str, Path]:
    """Return the model that each engine loads, by name."""
    directory = settings.models.directory
    for name in STARTER:
        require(CATALOGUE[name], CATALOGUE[name].folder(directory))
    return {name: CATALOGUE[name].path(directory) for name in STARTER}


@pytest.fixture(scope="session")
async def stt(settings: Settings, model_paths: dict[str, Path]) -> AsyncIterator[FasterWhisper]:
    """Load Whisper tiny.en."""
    whisper = FasterWhisper(settings.stt, LocalModel(CATALOGUE[STT], model_paths[STT]))
    await whisper.load()
    await whisper.warm_up()
    yield whisper
    await whisper.close()


@pytest.fixture(scope="session")
async def llm(settings: Settings, model_paths: dict[str, Path]) -> AsyncIterator[LlamaCpp]:
    """Load SmolLM2 with 135 million parameters."""
    model = LlamaCpp(settings.llm, LocalModel(CATALOGUE[LLM], model_paths[LLM]))
    await model.load()
    await model.warm_up()
    yield model
    await model.close()


@pytest.fixture(scope="session")
async def tts(settings: Settings, model_paths: dict[str, Path]) -> AsyncIterator[Piper]:
    """Load the voice Joe."""
    voice = Piper(settings.tts, LocalModel(CATALOGUE[TTS], model_paths[TTS]))
    await voice.load()
    await voice.warm_up()
    yield voice
    await voice.close()


@pytest.fixture(scope="session")
def questions() -> tuple[Question, ...]:
    """Return the recorded questions that ship with june."""
    return load_questions()


@pytest.fixture(scope="session")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same settings to a file, for commands that are run as people run them."""
    file = tmp_path_factory.mktemp("settings") / "settings.toml"
    file.write_text(
        f'[models]\ndirectory = "{PROJECT_ROOT / "models"}"\npreset = "starter"\n'
        "[llm]\ntemperature = 0\npresence_penalty = 0\nmax_tokens = 40\n[api]\nport = 0\n"
    )
    return file
