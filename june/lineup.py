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
from june.models import Catalogue, Choice, LocalModel, Source, choose_preset, load_catalogue
from june.models.backends import find_backend
from june.models.catalogue import ModelFiles, Role
from june.models.files import require_logged
from june.models.present import present_llms
from june.models.references import SCHEME, find
from june.models.sources import parse_endpoint
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

    stt: Source
    llm: Source
    tts: Source
    reason: str
    voices: Mapping[str, Source] = field(default_factory=dict)

    @property
    def local(self) -> tuple[LocalModel, ...]:
        """Those whose files are on this machine."""
        chosen = (self.stt, self.llm, self.tts, *self.voices.values())
        return tuple(source for source in chosen if isinstance(source, LocalModel))


def choose_set(settings: Settings, catalogue: Catalogue, preset: Literal["auto", "starter", "gpu"]) -> Choice:
    """Return the preset's models for this machine; asks the GPU's driver, so never on the event loop.

    Raises:
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    gpus = hardware.find_gpus()
    obstacle = "no NVIDIA GPU was found"
    engine = llm.unloaded(settings.llm)
    is_llm_here = find_backend(llm.BACKENDS, settings.llm.backend, "llm.backend").opens == "files"
    if gpus and is_llm_here and (gpu_obstacle := engine.gpu_use().obstacle):
        gpus, obstacle = (), gpu_obstacle
    return choose_preset(
        catalogue,
        gpus,
        preset=preset,
        context_tokens=settings.llm.context_tokens,
        llm_gpu_bytes=engine.gpu_bytes if is_llm_here else None,
        stt_on_gpu=settings.stt.device != "cpu",
        obstacle=obstacle,
    )


@dataclass(frozen=True, slots=True)
class _Named:
    """A model as the settings name it, or the preset.

    Attributes:
        key: where the settings say it.
        reference: what they say.
        role: what the model is to do.
        opens: what its backend opens.
    """

    key: str
    reference: str
    role: Role
    opens: Literal["files", "endpoint"]

    def find(self, catalogue: Catalogue, directory: Path, stop: StopFlag | None = None) -> Source:
        """Return what the backend opens; see `june.models.references.find`.

        Raises:
            NotPulledError: a model on Hugging Face was not pulled yet.
            ModelFileError: there is no such model, or `stop` was set; the text begins with the key.
        """
        if self.opens == "endpoint":
            return parse_endpoint(self.reference)
        try:
            return find(self.reference, self.role, catalogue, directory, stop)
        except ModelFileError as error:
            raise type(error)(f"{self.key}: {error}") from error


def _named(settings: Settings, choice: Choice) -> Iterator[_Named]:
    """Yield what the settings name, or else the preset: the three models, and the voices of other languages.

    Raises:
        SettingsError: there is no such backend.
    """
    stt_opens = find_backend(stt.BACKENDS, settings.stt.backend, "stt.backend").opens
    llm_opens = find_backend(llm.BACKENDS, settings.llm.backend, "llm.backend").opens
    tts_opens = find_backend(tts.BACKENDS, settings.tts.backend, "tts.backend").opens
    preset = {"files": choice, "endpoint": Choice("starter", "", "", "", "")}  # a server has its own
    yield _Named("stt.model", settings.stt.model or preset[stt_opens].stt, "stt", stt_opens)
    yield _Named("llm.model", settings.llm.model or preset[llm_opens].llm, "llm", llm_opens)
    yield _Named("tts.model", settings.tts.model or preset[tts_opens].tts, "tts", tts_opens)
    for language, voice in settings.tts.voices.items():
        yield _Named(f"tts.voices.{language}", voice, "tts", tts_opens)


def choose_models(settings: Settings, stop: StopFlag | None = None) -> ChosenModels:
    """Return the models that the settings name, and the preset's where they name none.

    It blocks like `choose_set`.

    Raises:
        SettingsError: there is no such backend.
        NotPulledError: a model on Hugging Face was not pulled yet.
        ModelFileError: there is no such model, or it is one for another role, or `stop` was set.
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    catalogue, directory = load_catalogue(), settings.models.directory
    choice = choose_set(settings, catalogue, settings.models.preset)
    stt, llm, tts, *voices = (named.find(catalogue, directory, stop) for named in _named(settings, choice))
    by_name = dict(zip(settings.tts.voices.values(), voices, strict=True))
    return ChosenModels(stt, llm, tts, choice.reason, by_name)


def require_context(source: Source, settings: LlmSettings) -> None:
    """Return if the model was trained for as long a context as `llm.context_tokens` asks for.

    Raises:
        ModelLoadError: it was not; what it wrote beyond would be noise.
    """
    most = source.entry.context_tokens_max if isinstance(source, LocalModel) else None
    if most is not None and settings.context_tokens > most:
        raise ModelLoadError(
            f"{source.name} was trained for {most:,} tokens of context, and llm.context_tokens is "
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
    wanted = await run_aside(_pullable, settings, token)
    await pull.pull_logged(wanted, settings.models.directory, token=token)


def _pullable(stop: StopFlag, settings: Settings, token: str) -> list[ModelFiles]:
    """Return the files of the chosen models that can be pulled; asks Hugging Face what a place there is.

    Raises:
        ModelFileError: there is no such model, nobody answers, or june was asked to stop.
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    from june.models.hub import pin  # noqa: PLC0415 - see `pull_models`

    catalogue, directory = load_catalogue(), settings.models.directory
    choice = choose_set(settings, catalogue, settings.models.preset)
    files: list[ModelFiles] = []
    for named in _named(settings, choice):
        if named.opens == "files" and named.reference.startswith(SCHEME):
            files.append(pin(named.reference, named.role, directory, token=token, stop=stop))
        elif isinstance(source := named.find(catalogue, directory, stop), LocalModel):
            files.append(source.entry)
    return files


def find_llms(settings: Settings) -> dict[str, str]:
    """Return what the settings would call each language model that june can have, by its name."""
    if find_backend(llm.BACKENDS, settings.llm.backend, "llm.backend").opens == "endpoint":
        return {_llm_name(settings, parse_endpoint(settings.llm.model)): settings.llm.model}
    return present_llms(settings.llm.model, load_catalogue(), settings.models.directory)


def _llm_name(settings: Settings, source: Source) -> str:
    """Return what people and logs call the language model; one without a name is called as its backend."""
    return source.name or settings.llm.backend or next(iter(llm.BACKENDS))


async def create_llm(settings: Settings, name: str) -> ChatModel:
    """Return the language model of that name, not yet loaded.

    Raises:
        SettingsError: there is no such backend.
        ModelFileError: it is neither here nor in the catalogue, or its file is missing or wrong.
        ModelLoadError: it does not hold as long a context as is set.
    """

    def found(stop: StopFlag) -> Source:
        opens = find_backend(llm.BACKENDS, settings.llm.backend, "llm.backend").opens
        catalogue, present = load_catalogue(), find_llms(settings)
        if name not in present and name not in catalogue:
            raise ModelFileError(f"{name} is not here any more.")
        named = _Named("llm.model", present.get(name, name), "llm", opens)
        source = named.find(catalogue, settings.models.directory, stop)
        require_context(source, settings.llm)
        if isinstance(source, LocalModel):
            require_logged(stop, source.entry, source.folder)
        return source

    return llm.create(settings.llm, await run_aside(found))


def _require_models(stop: StopFlag, settings: Settings) -> ChosenModels:
    """Return the chosen models, after all their files were found right; hashes those that are new or changed.

    Raises:
        SettingsError: there is no such backend.
        ModelFileError: a file is missing or wrong, or june was asked to stop.
        ModelLoadError: a model does not suit this machine or these settings.
    """
    chosen = choose_models(settings, stop)
    require_context(chosen.llm, settings.llm)
    for model in chosen.local:
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
                partial(create_llm, settings),
                _llm_name(settings, chosen.llm),
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
        log.info("models.loaded", ready_s=round(time.perf_counter() - begin, 2), reason=chosen.reason)
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
