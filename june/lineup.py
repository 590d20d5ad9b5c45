"""The models that june works with: chosen for this machine and these settings, loaded, warmed and freed."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from june import hardware, llm, stt, tts
from june.conversation.gathering import Gathering
from june.conversation.listening import Listener
from june.conversation.turn import VoicePipeline
from june.conversation.voicing import Voicer
from june.conversation.writing import Writer
from june.errors import ModelLoadError
from june.llm import ChatModel
from june.llm.switching import SwitchableModel
from june.models import Catalogue, Choice, LocalModel, Model, choose_preset, is_present, load_catalogue
from june.models.catalogue import Role
from june.models.files import require_logged
from june.models.references import find
from june.sections import LlmSettings
from june.settings import Settings
from june.stt import SpeechToText
from june.telemetry import log, model_loaded
from june.tts import TextToSpeech
from june.workers import ModelThread, StopFlag, run_aside

AnyModel = SpeechToText | ChatModel | TextToSpeech

ROLES: tuple[Role, ...] = ("stt", "llm", "tts")


@dataclass(frozen=True, slots=True)
class Models:
    """The three models, loaded and warm."""

    stt: SpeechToText
    llm: SwitchableModel
    tts: TextToSpeech


@dataclass(frozen=True, slots=True)
class ChosenModels:
    """The models for this machine and these settings, and why.

    Attributes:
        voices: the voices of other languages, by what `tts.voices` calls them.
    """

    stt: LocalModel
    llm: LocalModel
    tts: LocalModel
    reason: str
    voices: Mapping[str, LocalModel] = field(default_factory=dict)

    @property
    def all(self) -> tuple[LocalModel, ...]:
        """Each of them."""
        return (self.stt, self.llm, self.tts, *self.voices.values())


def choose_set(settings: Settings, catalogue: Catalogue, preset: Literal["auto", "starter", "gpu"]) -> Choice:
    """Return the preset's models for this machine; asks the GPU's driver, so never on the event loop.

    Raises:
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    gpus = hardware.find_gpus()
    obstacle = "no NVIDIA GPU was found"
    engine = llm.unloaded(settings.llm)
    if gpus and (gpu_obstacle := engine.gpu_use().obstacle):
        gpus, obstacle = (), gpu_obstacle
    return choose_preset(
        catalogue,
        gpus,
        preset=preset,
        context_tokens=settings.llm.context_tokens,
        llm_gpu_bytes=engine.gpu_bytes,
        stt_on_gpu=settings.stt.device != "cpu",
        obstacle=obstacle,
    )


def choose_models(settings: Settings) -> ChosenModels:
    """Return the models that the settings name, and the preset's where they name none.

    It blocks like `choose_set`.

    Raises:
        ModelFileError: a name is not in the catalogue, or names a model of another role.
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    catalogue, directory = load_catalogue(), settings.models.directory
    choice = choose_set(settings, catalogue, settings.models.preset)
    stt, llm, tts = (
        find(
            f"{role}.model",
            getattr(settings, role).model or getattr(choice, role),
            role,
            catalogue,
            directory,
        )
        for role in ROLES
    )
    voices = {
        voice: find(f"tts.voices.{language}", voice, "tts", catalogue, directory)
        for language, voice in settings.tts.voices.items()
    }
    return ChosenModels(stt, llm, tts, choice.reason, voices)


def require_context(model: Model, settings: LlmSettings) -> None:
    """Return if the model was trained for as long a context as `llm.context_tokens` asks for.

    Raises:
        ModelLoadError: it was not; what it wrote beyond would be noise.
    """
    most = model.context_tokens_max
    if most is not None and settings.context_tokens > most:
        raise ModelLoadError(
            f"{model.name} was trained for {most:,} tokens of context, and llm.context_tokens is "
            f"{settings.context_tokens:,}: set it to {most} or less, or choose another model."
        )


async def pull_models(settings: Settings) -> None:
    """Return when the chosen models are here, downloading those that are missing.

    Raises:
        ModelFileError: one cannot be had.
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    from june.models import pull  # noqa: PLC0415 - its HTTP client costs every start 0.1 s

    chosen = await run_aside(lambda _: choose_models(settings))
    token = settings.models.hugging_face_token.get_secret_value()
    await pull.pull_logged([model.entry for model in chosen.all], settings.models.directory, token=token)


def present_llms(settings: Settings) -> list[str]:
    """Return the names of the language models whose files are here."""
    directory = settings.models.directory
    models = load_catalogue().values()
    return [
        model.name for model in models if model.role == "llm" and is_present(model, model.folder(directory))
    ]


async def _create_llm(settings: Settings, name: str) -> ChatModel:
    """Return the language model of that name, not yet loaded.

    Raises:
        ModelFileError: it is not in the catalogue, or its file is missing or wrong.
        ModelLoadError: it does not hold as long a context as is set.
    """

    def found(stop: StopFlag) -> LocalModel:
        model = find("llm.model", name, "llm", load_catalogue(), settings.models.directory)
        require_context(model.entry, settings.llm)
        require_logged(stop, model.entry, model.folder)
        return model

    model = await run_aside(found)
    return llm.create(settings.llm, model)


def _require_models(stop: StopFlag, settings: Settings) -> ChosenModels:
    """Return the chosen models, after all their files were found right; hashes those that are new or changed.

    Raises:
        ModelFileError: a file is missing or wrong, or june was asked to stop.
        ModelLoadError: a model does not suit this machine or these settings.
    """
    chosen = choose_models(settings)
    require_context(chosen.llm.entry, settings.llm)
    for model in chosen.all:
        require_logged(stop, model.entry, model.folder)
    return chosen


@asynccontextmanager
async def open_models(settings: Settings) -> AsyncIterator[Models]:
    """Yield the three models, loaded side by side and warmed; they are freed at the end.

    Raises:
        ModelFileError: a model's file is missing or wrong.
        ModelLoadError: a model cannot be loaded on this machine.
    """
    begin = time.perf_counter()
    hardware.share_malloc_arenas()
    chosen = await run_aside(_require_models, settings)
    async with AsyncExitStack() as stack:
        models = Models(
            stt.create(settings.stt, chosen.stt),
            SwitchableModel(
                partial(_create_llm, settings),
                chosen.llm.name,
                llm.create(settings.llm, chosen.llm),
            ),
            tts.create(settings.tts, chosen.tts, chosen.voices),
        )
        roles: dict[str, AnyModel] = {"stt": models.stt, "llm": models.llm, "tts": models.tts}
        for role, model in roles.items():
            model_loaded.labels(role, model.describe().name).set(0)
            stack.push_async_callback(_unload, role, model)
        await asyncio.gather(*(_load(role, model) for role, model in roles.items()))
        hardware.return_freed_memory()
        log.info("models.ready", ready_s=round(time.perf_counter() - begin, 2), reason=chosen.reason)
        yield models


async def _load(role: str, model: AnyModel) -> None:
    await model.load()
    await model.warm_up()
    description = model.describe()
    model_loaded.labels(role, description.name).set(1)
    log.info("model.loaded", model=description.name, device=description.device, **description.details)


async def _unload(role: str, model: AnyModel) -> None:
    model_loaded.labels(role, model.describe().name).set(0)
    await model.close()


def create_pipeline(
    settings: Settings, stt: SpeechToText, llm: ChatModel, tts: TextToSpeech, *, cores: int
) -> VoicePipeline:
    """Return a pipeline over three models, which it does not own."""
    codec = ModelThread("decode")
    return VoicePipeline(
        Listener(stt, settings.stt, settings.audio, codec, Gathering(settings.llm.slots)),
        Writer(llm, settings.llm),
        Voicer(
            tts,
            settings.tts,
            codec,
            max_voice_s=settings.reply.max_voice_s,
            opus_bitrate=settings.audio.opus_bitrate,
        ),
        codec,
        settings.reply,
        cores=cores,
        log_content=settings.telemetry.log_content,
    )


@asynccontextmanager
async def open_pipeline(settings: Settings, models: Models) -> AsyncIterator[VoicePipeline]:
    """Yield a pipeline over loaded models."""
    cores = hardware.cpu_cores()
    pipeline = create_pipeline(settings, models.stt, models.llm, models.tts, cores=cores)
    try:
        yield pipeline
    finally:
        await pipeline.close()
