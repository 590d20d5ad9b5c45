"""The composition root: builds every part from the settings and owns how long it lives."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from june import __version__, hardware
from june.api.server import serving
from june.api.services import Services
from june.chat import Adapter
from june.chat.addresses import AddressBook
from june.chat.apps import ChatApps
from june.chat.commands import COMMANDS, Commands
from june.chat.delivery import Delivery
from june.chat.intake import Gate
from june.chat.status import HOUR_S, Details, Status, errors_since_start, status_text
from june.conversation.dispatch import Dispatcher
from june.conversation.leases import Leases
from june.conversation.reply import Desk
from june.conversation.speaking import Speaker
from june.errors import SENTENCES, JuneError, ModelLoadError, SettingsError
from june.lineup import Models, open_models, open_pipeline, present_llms, pull_models
from june.llm import states
from june.messages import ModelDescription, Outbound, Platform
from june.settings import Settings
from june.store import Received, Store, open_store
from june.store.retention import keep_tidy
from june.telemetry import (
    adapter_up,
    close_traces,
    disk_free_bytes,
    errors_total,
    finish_trace,
    following,
    log,
    open_traces,
    queue_messages,
    queue_oldest_new_age_seconds,
    report_repeats,
)
from june.workers import ModelThread, settled, short_collections, try_for, watched_loop

STEADY_S = 60.0
"""An adapter that ran for so long begins its pauses anew."""
MAX_RESTART_PAUSE_S = 60.0
SHUTDOWN_DELIVERY_S = 3.0
"""Time for sending what is due, even when the turns took all the time there was."""
SHUTDOWN_TRACES_S = 2.0
SAMPLE_S = 5.0


def create_adapters(settings: Settings) -> dict[Platform, Adapter]:
    """An adapter for each chat app whose token is set.

    Raises:
        SettingsError: no token is set.
    """
    adapters: dict[Platform, Adapter] = {}
    if settings.telegram.token.get_secret_value():
        telegram = import_module("june.chat.telegram")
        adapters["telegram"] = telegram.Telegram(settings.telegram, settings.delivery)
    if settings.discord.token.get_secret_value():
        discord = import_module("june.chat.discord")
        adapters["discord"] = discord.Discord(settings.discord, settings.delivery)
    if not adapters:
        raise SettingsError(
            "june is on no chat app: set telegram.token or discord.token, in settings.toml, as a secret file "
            "or as the variable JUNE_TELEGRAM__TOKEN or JUNE_DISCORD__TOKEN."
        )
    return adapters


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve the chat apps until `stop` is set; then end in order, with nothing lost.

    Raises:
        SettingsError: no chat app is set.
        StoreError: the store cannot be opened, or failed.
        ModelFileError, ModelLoadError: a model cannot be loaded.
    """
    adapters = create_adapters(settings)
    if not settings.access.owners:
        log.warning("access.no_owner", detail="nobody is served: set access.owners, see README.md")
    keep_turns = settings.chat.history_messages // 2
    async with (
        _observed(settings),
        open_store(settings.store.path) as store,
        _beside(_sample(store, settings.store.path.parent)),
    ):
        june = June(settings, store, adapters)
        async with _beside(
            keep_tidy(store.upkeep, settings.store, keep_turns=keep_turns, forget=june.forget_pruned)
        ):
            await store.upkeep.recover(max_attempts=settings.chat.max_attempts, explain=_explain_attempts)
            await june.run(stop)


@asynccontextmanager
async def _observed(settings: Settings) -> AsyncIterator[None]:
    """Send traces and watch the event loop; a receiver that hangs keeps june no longer than it may."""
    open_traces(settings.telemetry)
    try:
        async with watched_loop(settings.telemetry.watchdog_s):
            yield
    finally:
        report_repeats(is_last=True)
        if not await try_for(SHUTDOWN_TRACES_S, close_traces):
            log.warning("traces.lost", detail="the receiver at telemetry.otlp_endpoint did not take the last")


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let something go on for as long as the block does."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await _end(task)


async def _sample(store: Store, folder: Path) -> None:
    """Keep the gauges of what waits and of free space up to date, until cancelled."""
    while True:
        report_repeats()
        try:
            disk_free_bytes.set(shutil.disk_usage(folder).free)
            waiting = await store.history.waiting()
        except (JuneError, OSError) as error:  # whoever needs the file says so
            errors_total.labels("sample", type(error).__name__).inc()
        else:
            for status in ("new", "processing", "unsent", "sending"):
                queue_messages.labels(status).set(getattr(waiting, status))
            queue_oldest_new_age_seconds.set(waiting.oldest_new_s)
        await asyncio.sleep(SAMPLE_S)


def _explain_attempts(received: Received) -> Outbound:
    message = received.message
    with following(received.trace_context, turn=received.id, chat=message.chat):
        finish_trace(
            received.received_at_s,
            turn_s=None,
            platform=message.platform,
            outcome="failed",
            error="attempts_spent",
            message_id=message.message_id,
            kind=message.kind,
            role=received.role,
        )
    return Outbound(message.chat, "text", SENTENCES["attempts_spent"], reply_to=message.message_id)


class June:
    """june on the chat apps.

    What arrives is stored from the first moment, and answered when the models are ready. On its way down the
    intake ends first, then the turns, then the delivery.
    """

    def __init__(self, settings: Settings, store: Store, adapters: Mapping[Platform, Adapter]) -> None:
        self._settings = settings
        self._store = store
        self._adapters = adapters
        self._started_s = time.monotonic()
        self._models: Models | None = None
        self._dispatcher: Dispatcher | None = None
        self._delivery = Delivery(store, adapters, settings.delivery)
        self._addresses = AddressBook(store, settings.access, adapters)
        self._leases = Leases(store, settings.queue, self._addresses, self._delivery.wake)
        self._gate = Gate(
            store,
            settings.access,
            settings.routes,
            on_received=self._notice,
            on_outbox=self._delivery.wake,
        )
        self._commands = Commands(
            store,
            self._gate,
            settings,
            was_stopped=self._was_stopped,
            forget=self._forget,
            status=self._status,
        )

    async def forget_pruned(self, age_s: float, chats: Iterable[str]) -> None:
        """Have the language model keep nothing of chats that lost a message, or were idle for so long.

        Raises:
            GenerationError: something cannot be deleted.
        """
        if self._settings.llm.state_dir:
            await states.delete(self._settings.llm.state_dir, older_than_s=age_s)
        for chat in chats:
            await self._forget(chat)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, or a part fails that nothing works without.

        Raises:
            StoreError: the store failed.
            ModelFileError, ModelLoadError: a model cannot be loaded.
        """
        async with AsyncExitStack() as stack:
            for adapter in self._adapters.values():
                stack.push_async_callback(adapter.close)
            serving_api = await stack.enter_async_context(AsyncExitStack())
            if self._settings.api.host:
                await serving_api.enter_async_context(serving(self._settings.api, self._services()))
            intakes = [asyncio.create_task(self._supervise(adapter)) for adapter in self._adapters.values()]
            delivering = asyncio.create_task(self._delivery.run())
            answering = asyncio.create_task(self._answer())
            keeping = asyncio.create_task(self._leases.run())
            stopping = asyncio.create_task(stop.wait())
            try:
                parts = (delivering, answering, keeping, stopping)
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                log.info("june.stopping")
            finally:
                begin = time.monotonic()
                await _end(*intakes, stopping, keeping)
                await serving_api.aclose()
                await _end(answering)
                rest_s = self._settings.chat.shutdown_s - (time.monotonic() - begin)
                await self._delivery.drain(max(rest_s, SHUTDOWN_DELIVERY_S))
                await _end(delivering)
            for task in (answering, delivering, keeping):
                if not task.cancelled():
                    task.result()

    async def _supervise(self, adapter: Adapter) -> None:
        """Run an adapter, and run it again after a pause when it fails: the others go on."""
        failures = 0
        while True:
            begin = time.monotonic()
            retry_after_s = 0.0
            try:
                await adapter.run(self._gate, COMMANDS)
            except Exception as error:  # a supervisor: whatever it was, the adapter is run again
                retry_after_s = getattr(error, "retry_after_s", None) or 0.0
                errors_total.labels(stage="adapter", type=type(error).__name__).inc()
                detail = str(error) if isinstance(error, JuneError) else type(error).__name__
                log.error("adapter.failed", platform=adapter.platform, detail=detail)
            adapter_up.labels(platform=adapter.platform).set(0)
            failures = 0 if time.monotonic() - begin > STEADY_S else failures + 1
            await asyncio.sleep(max(min(2.0**failures, MAX_RESTART_PAUSE_S), retry_after_s))

    async def _answer(self) -> None:
        """Load the models and answer what was received, until cancelled."""
        settings = self._settings
        if settings.models.pull_at_start:
            await pull_models(settings)
        async with open_models(settings) as models, open_pipeline(settings, models) as pipeline:
            apps = ChatApps(self._store, self._adapters, max_bytes=settings.audio.max_bytes)
            desk = Desk(
                settings,
                self._store,
                pipeline,
                apps,
                self._addresses,
                self._commands.run,
                self._delivery.wake,
            )
            self._dispatcher = dispatcher = Dispatcher(desk)
            self._models = models
            log.info("june.ready")
            speaker = Speaker(self._store, pipeline.voicer, self._delivery.wake)
            parts = [asyncio.create_task(part.run()) for part in (dispatcher, speaker)]
            try:
                with short_collections():
                    ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in ended:
                    part.result()
            finally:
                await _end(*parts)
                await dispatcher.close(settings.chat.shutdown_s)
                self._dispatcher = None

    def _services(self) -> Services:
        """What the API needs."""
        return Services(
            store=self._store,
            queue=self._settings.queue,
            addresses=self._addresses,
            adapters=self._adapters,
            explanation=self._leases.explanation,
            on_outbox=self._delivery.wake,
            models=self._descriptions,
            is_ready=lambda: self._models is not None and self._models.llm.is_loaded,
            llm=lambda: self._models.llm if self._models is not None else None,
            present_llms=partial(present_llms, self._settings),
        )

    def _descriptions(self) -> Sequence[ModelDescription]:
        """The models that are warm."""
        if self._models is None:
            return ()
        language_model = (self._models.llm,) if self._models.llm.is_loaded else ()
        return [model.describe() for model in (self._models.stt, *language_model, self._models.tts)]

    def _notice(self, arrived: Sequence[Received]) -> None:
        if self._dispatcher is not None:
            self._dispatcher.notice(arrived)

    async def _forget(self, chat: str) -> None:
        """Have the language model keep nothing of a chat."""
        if self._models is not None:
            await self._models.llm.forget(chat)
        elif self._settings.llm.state_dir:
            await states.delete(self._settings.llm.state_dir, conversations=(chat,))

    def _was_stopped(self, chat: str) -> bool:
        return self._dispatcher is not None and self._dispatcher.was_stopped(chat)

    async def _status(self, for_owner: bool) -> str:
        """What `/status` answers."""
        status = Status(
            __version__,
            tuple(self._descriptions()),
            await self._store.history.waiting(),
            self._dispatcher.last_timings_s if self._dispatcher is not None else {},
        )
        return status_text(status, await self._details() if for_owner else None)

    async def _details(self) -> Details:
        gpus: tuple[hardware.Gpu, ...] = ()
        gpu_problem = ""
        asking = ModelThread("load")  # a driver may take its time
        try:
            gpus = await asking.run(lambda _: hardware.find_gpus())
        except ModelLoadError as error:
            gpu_problem = str(error)
        finally:
            await asking.close()
        now = datetime.now().astimezone()
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        use = await self._store.history.use(
            day_since_s=today.timestamp(), month_since_s=(now - timedelta(days=30)).timestamp()
        )
        return Details(
            apps={platform: adapter.health() for platform, adapter in self._adapters.items()},
            last_hour=await self._store.history.stats(since_s=now.timestamp() - HOUR_S),
            up_s=time.monotonic() - self._started_s,
            errors=errors_since_start(),
            gpus=gpus,
            gpu_problem=gpu_problem,
            use=tuple(use),
        )


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they have ended; what they raised stays in them."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        await settled(task)
