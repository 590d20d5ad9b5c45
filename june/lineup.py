"""The models that june works with: chosen for this machine and these settings, loaded, warmed and freed."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from june import hardware, llm, stt, tts
from june.conversation.gathering import Gathering
from june.conversation.listening import Listener
from june.conversation.turn import VoicePipeline
from june.conversation.voicing import Voicer
from june.conversation.writing import Writer
from june.errors import ModelFileError, ModelLoadError
from june.llm import ChatModel
from june.llm.switching import SwitchableModel
from june.models import Catalogue, Choice, LocalModel, Model, choose_preset, load_catalogue
from june.models.catalogue import ModelFiles, Role
from june.models.files import require_logged
from june.models.present import present_llms
from june.models.references import SCHEME, find, is_path
from june.sections import LlmSettings
from june.settings import Settings
from june.stt import SpeechToText
from june.telemetry import log, model_loaded
from june.tts import TextToSpeech
from june.workers import ModelThread, StopFlag, run_aside

AnyModel = SpeechToText | ChatModel | TextToSpeech


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
    if gpus and (gpu_obstacle := llm.unloaded(settings.llm).gpu_use().obstacle):
        gpus, obstacle = (), gpu_obstacle
    return choose_preset(
        catalogue,
        gpus,
        preset=preset,
        context_tokens=settings.llm.context_tokens,
        kv_type=settings.llm.kv_type,
        stt_on_gpu=settings.stt.device != "cpu",
        obstacle=obstacle,
    )


def _references(settings: Settings, choice: Choice) -> Iterator[tuple[str, str, Role]]:
    """Yield what the settings call each model, or else the preset: its key, what it says, and the role."""
    yield "stt.model", settings.stt.model or choice.stt, "stt"
    yield "llm.model", settings.llm.model or choice.llm, "llm"
    yield "tts.model", settings.tts.model or choice.tts, "tts"
    for language, voice in settings.tts.voices.items():
        yield f"tts.voices.{language}", voice, "tts"


def choose_models(settings: Settings) -> ChosenModels:
    """Return the models that the settings name, and the preset's where they name none.

    It blocks like `choose_set`.

    Raises:
        NotPulledError: a model on Hugging Face was not pulled yet.
        ModelFileError: there is no such model, or it is one for another role.
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    catalogue, directory = load_catalogue(), settings.models.directory
    choice = choose_set(settings, catalogue, settings.models.preset)
    stt, llm, tts, *voices = (
        _find(key, reference, role, catalogue, directory)
        for key, reference, role in _references(settings, choice)
    )
    return ChosenModels(
        stt, llm, tts, choice.reason, dict(zip(settings.tts.voices.values(), voices, strict=True))
    )


def _find(key: str, reference: str, role: Role, catalogue: Catalogue, directory: Path) -> LocalModel:
    """Return the model that a key of the settings names; see `find`.

    Raises:
        NotPulledError: a model on Hugging Face was not pulled yet.
        ModelFileError: there is no such model; the text begins with the key.
    """
    try:
        return find(reference, role, catalogue, directory)
    except ModelFileError as error:
        raise type(error)(f"{key}: {error}") from error


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

    token = settings.models.hugging_face_token.get_secret_value()
    wanted = await run_aside(lambda _: _pullable(settings, token))
    await pull.pull_logged(wanted, settings.models.directory, token=token)


def _pullable(settings: Settings, token: str) -> list[ModelFiles]:
    """Return the files of the chosen models that can be pulled; asks Hugging Face what a place there is.

    Raises:
        ModelFileError: there is no such model, or nobody answers.
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    from june.models.hub import pin  # noqa: PLC0415 - see `pull_models`

    catalogue, directory = load_catalogue(), settings.models.directory
    choice = choose_set(settings, catalogue, settings.models.preset)
    return [
        pin(reference, role, directory, token=token)
        if reference.startswith(SCHEME)
        else _find(key, reference, role, catalogue, directory).entry
        for key, reference, role in _references(settings, choice)
        if not is_path(reference)
    ]


def find_llms(settings: Settings) -> dict[str, str]:
    """Return what the settings would call each language model that is here, by its name."""
    return present_llms(settings.llm.model, load_catalogue(), settings.models.directory)


async def _create_llm(settings: Settings, name: str) -> ChatModel:
    """Return the language model of that name, not yet loaded.

    Raises:
        ModelFileError: it is not in the catalogue, or its file is missing or wrong.
        ModelLoadError: it does not hold as long a context as is set.
    """

    def found(stop: StopFlag) -> LocalModel:
        reference = find_llms(settings).get(name, name)
        model = find(reference, "llm", load_catalogue(), settings.models.directory)
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
