"""What exists only once the models are loaded: the pipeline, the dispatcher and the speaker."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from june.app.supervision import end
from june.chat import Adapter
from june.chat.connected import ConnectedApps
from june.conversation.apps import Addresses
from june.conversation.attending import CommandRunner, Desk
from june.conversation.deciding import Rules
from june.conversation.dispatch import Dispatcher
from june.conversation.failing import TurnRecord
from june.conversation.speaking import Speaker
from june.lineup import Models, open_models, open_pipeline, pull_models
from june.messages import ModelDescription, Platform
from june.settings import Settings
from june.store import Store
from june.workers import short_collections


@dataclass(frozen=True, slots=True)
class ReadyJune:
    """june with warm models: it answers what was received.

    Attributes:
        models: the three models, warm.
        dispatcher: answers messages in their order.
        speaker: speaks what programs send.
        record: what became of the newest turns.
    """

    models: Models
    dispatcher: Dispatcher
    speaker: Speaker
    record: TurnRecord

    async def run(self) -> None:
        """Answer and speak, until cancelled.

        Raises:
            StoreError: the store failed.
        """
        parts = [asyncio.create_task(part.run()) for part in (self.dispatcher, self.speaker)]
        try:
            with short_collections():
                ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in ended:
                part.result()
        finally:
            await end(*parts)

    def descriptions(self) -> Sequence[ModelDescription]:
        """Return the models that are warm; the language model may be unloaded at the moment."""
        language_model = (self.models.llm,) if self.models.llm.is_loaded else ()
        return [model.describe() for model in (self.models.stt, *language_model, self.models.tts)]


@asynccontextmanager
async def open_ready(
    settings: Settings,
    *,
    store: Store,
    adapters: Mapping[Platform, Adapter],
    addresses: Addresses,
    rules: Rules,
    run_command: CommandRunner,
    wake_delivery: Callable[[], None],
) -> AsyncIterator[ReadyJune]:
    """Load the models, and let turns that are in the making end when the block is left.

    Raises:
        ModelFileError, ModelLoadError: a model cannot be loaded.
    """
    if settings.models.pull_at_start:
        await pull_models(settings)
    async with open_models(settings) as models, open_pipeline(settings, models) as pipeline:
        apps = ConnectedApps(store, adapters, max_bytes=settings.audio.max_bytes)
        desk = Desk(
            settings.chat,
            settings.reply,
            settings.llm,
            rules,
            store,
            pipeline,
            apps,
            addresses,
            run_command,
            wake_delivery,
        )
        speaker = Speaker(store, pipeline.voicer, wake_delivery)
        ready = ReadyJune(models, Dispatcher(desk), speaker, desk.record)
        try:
            yield ready
        finally:
            await ready.dispatcher.close(settings.chat.shutdown_s)
