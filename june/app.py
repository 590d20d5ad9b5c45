"""The composition root: builds every part from the settings and owns how long it lives."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from june import hardware, llm, stt, tts
from june.conversation.turn import VoicePipeline
from june.errors import ModelFileError
from june.llm import ChatModel
from june.models import Catalogue, Choice, Model, choose_preset, load_catalogue, require
from june.settings import Settings
from june.stt import SpeechToText
from june.telemetry import log
from june.tts import TextToSpeech


@dataclass(frozen=True, slots=True)
class Models:
    """The three models, loaded and warm."""

    stt: SpeechToText
    llm: ChatModel
    tts: TextToSpeech


@dataclass(frozen=True, slots=True)
class ChosenModels:
    """The catalogue's entries for this machine and these settings, and why."""

    stt: Model
    llm: Model
    tts: Model
    reason: str


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
        name = named or getattr(choice, role)
        if name not in catalogue:
            raise ModelFileError(
                f"{role}.model: {name!r} is not in the catalogue; see python -m june models list."
            )
        if catalogue[name].role != role:
            raise ModelFileError(
                f"{role}.model: {name} is a model for {catalogue[name].role}, not for {role}."
            )
        chosen[role] = catalogue[name]
    return ChosenModels(chosen["stt"], chosen["llm"], chosen["tts"], choice.reason)


@asynccontextmanager
async def open_models(settings: Settings) -> AsyncIterator[Models]:
    """The three models, loaded side by side and warmed; freed at the end.

    Raises:
        ModelFileError: a model's file is missing or wrong.
        ModelLoadError: a model cannot be loaded on this machine.
    """
    begin = time.perf_counter()
    chosen = choose_models(settings)
    directory = settings.models.directory
    paths = {model.role: require(model, directory) for model in (chosen.stt, chosen.llm, chosen.tts)}
    async with AsyncExitStack() as stack:
        models = Models(
            stt.create(settings.stt, chosen.stt, paths["stt"]),
            llm.create(settings.llm, chosen.llm, paths["llm"]),
            tts.create(settings.tts, chosen.tts, paths["tts"]),
        )
        for model in (models.stt, models.llm, models.tts):
            stack.push_async_callback(model.close)
        await asyncio.gather(*(_load(model) for model in (models.stt, models.llm, models.tts)))
        log.info("models.ready", ready_s=round(time.perf_counter() - begin, 2), reason=chosen.reason)
        yield models


async def _load(model: SpeechToText | ChatModel | TextToSpeech) -> None:
    await model.load()
    await model.warm_up()
    description = model.describe()
    log.info("model.loaded", model=description.name, device=description.device, **description.details)


@asynccontextmanager
async def open_pipeline(settings: Settings, models: Models) -> AsyncIterator[VoicePipeline]:
    """A pipeline over loaded models."""
    cores = hardware.cpu_cores()
    pipeline = VoicePipeline(settings, models.stt, models.llm, models.tts, cores=cores)
    try:
        yield pipeline
    finally:
        await pipeline.close()
