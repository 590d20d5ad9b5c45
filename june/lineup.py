"""The models that june works with: chosen for this machine and these settings, loaded, warmed and freed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from june import hardware, llm, stt, tts
from june.conversation.gathering import Gathering
from june.conversation.listening import Listener
from june.conversation.turn import VoicePipeline
from june.conversation.voicing import Voicer
from june.conversation.writing import Writer
from june.errors import ModelFileError
from june.llm import ChatModel
from june.llm.switching import SwitchableModel
from june.models import Catalogue, Choice, Model, choose_preset, is_present, load_catalogue, require
from june.settings import Settings
from june.stt import SpeechToText
from june.telemetry import log, model_loaded
from june.tts import TextToSpeech
from june.workers import ModelThread

AnyModel = SpeechToText | ChatModel | TextToSpeech


@dataclass(frozen=True, slots=True)
class Models:
    """The three models, loaded and warm."""

    stt: SpeechToText
    llm: SwitchableModel
    tts: TextToSpeech


@dataclass(frozen=True, slots=True)
class ChosenModels:
    """The catalogue's entries for this machine and these settings, and why."""

    stt: Model
    llm: Model
    tts: Model
    reason: str
    voices: tuple[Model, ...] = ()
    """Voices of other languages, by `tts.voices`."""


def choose_set(settings: Settings, catalogue: Catalogue, preset: Literal["auto", "starter", "gpu"]) -> Choice:
    """The preset's models for this machine.

    Raises:
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    gpus = hardware.find_gpus()
    obstacle = "no NVIDIA GPU was found"
    if gpus and not llm.gpu_offload_supported(settings.llm):
        gpus, obstacle = (), "llama.cpp was built without CUDA"
    return choose_preset(
        catalogue,
        gpus,
        preset=preset,
        context_tokens=settings.llm.context_tokens,
        kv_type=settings.llm.kv_type,
        stt_on_gpu=settings.stt.device != "cpu",
        obstacle=obstacle,
    )


def choose_models(settings: Settings) -> ChosenModels:
    """The models that the settings name, and the preset's where they name none.

    Raises:
        ModelFileError: a name is not in the catalogue, or names a model of another role.
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    catalogue = load_catalogue()
    choice = choose_set(settings, catalogue, settings.models.preset)
    chosen = {}
    for role in ("stt", "llm", "tts"):
        named = getattr(settings, role).model
        chosen[role] = _find(catalogue, f"{role}.model", named or getattr(choice, role), role)
    others = settings.tts.voices.items()
    voices = [_find(catalogue, f"tts.voices.{language}", name, "tts") for language, name in others]
    return ChosenModels(chosen["stt"], chosen["llm"], chosen["tts"], choice.reason, tuple(voices))


def _find(catalogue: Catalogue, key: str, name: str, role: str) -> Model:
    if name not in catalogue:
        raise ModelFileError(f"{key}: {name!r} is not in the catalogue; see python -m june models list.")
    if catalogue[name].role != role:
        raise ModelFileError(f"{key}: {name} is a model for {catalogue[name].role}, not for {role}.")
    return catalogue[name]


async def pull_models(settings: Settings) -> None:
    """Returns when the chosen models are here, downloading those that are missing.

    Raises:
        ModelFileError: one cannot be had.
        ModelLoadError: the preset "gpu" is demanded and does not fit.
    """
    from june.models import pull  # noqa: PLC0415 - its HTTP client costs every start 0.1 s

    chosen = choose_models(settings)
    models = (chosen.stt, chosen.llm, chosen.tts, *chosen.voices)
    token = settings.models.hugging_face_token.get_secret_value()
    await pull.pull_logged(models, settings.models.directory, token=token)


def present_llms(settings: Settings) -> list[str]:
    """Names of the language models whose files are here."""
    directory = settings.models.directory
    models = load_catalogue().values()
    return [model.name for model in models if model.role == "llm" and is_present(model, directory)]


async def _create_llm(settings: Settings, name: str) -> ChatModel:
    """The language model of that name, not yet loaded.

    Raises:
        ModelFileError: it is not in the catalogue, or its file is missing or wrong.
    """
    model = _find(load_catalogue(), "llm.model", name, "llm")
    reading = ModelThread("load")  # a file that was not verified before is read whole
    try:
        path = await reading.run(lambda _: require(model, settings.models.directory))
    finally:
        await reading.close()
    return llm.create(settings.llm, model, path)


@asynccontextmanager
async def open_models(settings: Settings) -> AsyncIterator[Models]:
    """The three models, loaded side by side and warmed; freed at the end.

    Raises:
        ModelFileError: a model's file is missing or wrong.
        ModelLoadError: a model cannot be loaded on this machine.
    """
    begin = time.perf_counter()
    hardware.share_malloc_arenas()
    chosen = choose_models(settings)
    directory = settings.models.directory
    paths = {model.role: require(model, directory) for model in (chosen.stt, chosen.llm, chosen.tts)}
    voices = {voice.name: require(voice, directory) for voice in chosen.voices}
    async with AsyncExitStack() as stack:
        models = Models(
            stt.create(settings.stt, chosen.stt, paths["stt"]),
            SwitchableModel(
                partial(_create_llm, settings),
                chosen.llm.name,
                llm.create(settings.llm, chosen.llm, paths["llm"]),
            ),
            tts.create(settings.tts, chosen.tts, paths["tts"], voices),
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
