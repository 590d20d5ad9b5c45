"""The composition root: builds every part from the settings and owns how long it lives."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

from june import llm
from june.api.server import serving
from june.api.services import Services
from june.app.gauges import keep_gauges
from june.app.ready import ReadyJune, open_ready
from june.app.reporting import Reporter
from june.app.supervision import beside, end, keep_running, observed
from june.chat import Adapter
from june.chat.addresses import AddressBook
from june.chat.apps import APPS, chat_apps
from june.chat.commands import Commands
from june.chat.delivery import Delivery
from june.chat.intake import Gate
from june.conversation.deciding import Rules, place
from june.conversation.leases import Leases
from june.errors import SENTENCES, GenerationError, SettingsError
from june.lineup import find_llms
from june.messages import ModelDescription, Outbound, Platform
from june.settings import Settings
from june.store import Received, Store, open_store
from june.store.retention import keep_tidy
from june.telemetry import count_error, finish_trace, following, log

SHUTDOWN_DELIVERY_S = 3.0
"""Time for sending what is due, even when the turns took all the time there was."""


def create_adapters(settings: Settings) -> dict[Platform, Adapter]:
    """Return an adapter for each chat app whose token is set, in the order of their table.

    Raises:
        SettingsError: no token is set.
    """
    apps = [app for app in chat_apps() if settings.section_of(app).token.get_secret_value()]
    if not apps:
        keys = " or ".join(f"{name}.token" for name in APPS)
        variables = " or ".join(f"JUNE_{name.upper()}__TOKEN" for name in APPS)
        raise SettingsError(
            f"june is on no chat app: set {keys}, in settings.toml, as a secret file or as the variable"
            f" {variables}."
        )
    return {app.name: app.create(settings.section_of(app), settings.delivery) for app in apps}


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve the chat apps until `stop` is set; then end in order, with nothing lost.

    Raises:
        SettingsError: no chat app is set.
        StoreError: the store cannot be opened, or failed.
        ModelFileError, ModelLoadError: a model cannot be loaded.
    """
    adapters = create_adapters(settings)
    if not settings.access.owners:
        log.warning("access.closed", detail="nobody is served: set access.owners, see README.md")
    keep_turns = settings.chat.history_messages // 2
    async with (
        observed(settings.telemetry),
        open_store(settings.store.path) as store,
        beside(keep_gauges(store, settings.store.path.parent)),
    ):
        june = June(settings, store, adapters)
        async with beside(
            keep_tidy(store.upkeep, settings.store, keep_turns=keep_turns, forget=june.forget_pruned)
        ):
            await store.upkeep.recover(max_attempts=settings.chat.max_attempts, explain=_explain_attempts)
            await june.run(stop)


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

    What arrives is stored from the first moment, and answered when the models are ready. At the end the
    intake stops first, then the turns, then the delivery.
    """

    def __init__(self, settings: Settings, store: Store, adapters: Mapping[Platform, Adapter]) -> None:
        self._settings = settings
        self._store = store
        self._adapters = adapters
        self._ready: ReadyJune | None = None
        self._reporter = Reporter(store, adapters)
        self._delivery = Delivery(store, adapters, settings.delivery, move=self._move)
        self._addresses = AddressBook(store, settings.access, adapters)
        self._leases = Leases(store, settings.queue, self._addresses, self._delivery.wake)
        self._rules = Rules(settings.routes, settings.chat.names)
        self._gate = Gate(
            store,
            settings.access,
            partial(place, rules=self._rules),
            on_received=self._notice,
            wake_delivery=self._delivery.wake,
            move=self._move,
        )
        self._commands = Commands(
            store,
            self._gate,
            access=settings.access,
            reply=settings.reply,
            stt=settings.stt,
            was_stopped=self._was_stopped,
            forget=self._forget,
            status=self._status,
        )

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
            intakes = [
                asyncio.create_task(keep_running(adapter, self._gate)) for adapter in self._adapters.values()
            ]
            delivering = asyncio.create_task(self._delivery.run())
            answering = asyncio.create_task(self._answer())
            keeping = asyncio.create_task(self._leases.run())
            stopping = asyncio.create_task(stop.wait())
            try:
                parts = (delivering, answering, keeping, stopping)
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                log.info("shutdown.begun")
            finally:
                begin = time.monotonic()
                await end(*intakes, stopping, keeping)
                await serving_api.aclose()
                await end(answering)
                rest_s = self._settings.chat.shutdown_s - (time.monotonic() - begin)
                await self._delivery.drain(max(rest_s, SHUTDOWN_DELIVERY_S))
                await end(delivering)
            for task in (answering, delivering, keeping):
                if not task.cancelled():
                    task.result()

    async def forget_pruned(self, age_s: float, chats: Iterable[str]) -> None:
        """Have the language model keep nothing of chats that lost a message, or were idle for so long.

        Raises:
            GenerationError: something cannot be deleted.
        """
        await llm.unloaded(self._settings.llm).forget(older_than_s=age_s)
        for chat in chats:
            await self._forget(chat)

    async def _answer(self) -> None:
        """Load the models and answer what was received, until cancelled."""
        try:
            async with open_ready(
                self._settings,
                store=self._store,
                adapters=self._adapters,
                addresses=self._addresses,
                rules=self._rules,
                run_command=self._commands.run,
                wake_delivery=self._delivery.wake,
            ) as ready:
                self._ready = ready
                log.info("june.started")
                await ready.run()
        finally:
            self._ready = None

    def _services(self) -> Services:
        """Return the parts of june that the API uses."""
        return Services(
            store=self._store,
            queue=self._settings.queue,
            addresses=self._addresses,
            adapters=self._adapters,
            explanation=self._leases.explanation,
            wake_delivery=self._delivery.wake,
            models=self._descriptions,
            is_ready=lambda: self._ready is not None and self._ready.models.llm.is_loaded,
            llm=lambda: self._ready.models.llm if self._ready is not None else None,
            present_llms=partial(find_llms, self._settings),
            failing_stages=lambda: self._ready.record.failing() if self._ready is not None else (),
        )

    def _descriptions(self) -> Sequence[ModelDescription]:
        return self._ready.descriptions() if self._ready is not None else ()

    def _notice(self, arrived: Sequence[Received]) -> None:
        if self._ready is not None:
            self._ready.dispatcher.notice(arrived)

    def _was_stopped(self, chat: str) -> bool:
        return self._ready is not None and self._ready.dispatcher.was_stopped(chat)

    async def _status(self, for_owner: bool) -> str:
        return await self._reporter.status(self._ready, for_owner=for_owner)

    async def _move(self, old: str, new: str) -> None:
        """Keep a chat under its new name; the language model evaluates its conversation anew."""
        if not await self._store.conversations.move(old, new):
            return  # an app tells more than once
        log.info("chat.moved", platform=new.partition(":")[0], chat=new)
        if self._ready is not None:
            self._ready.dispatcher.move(old, new)
        try:
            await self._forget(old)
        except GenerationError as error:  # what was said is kept, and the rest is deleted in time
            count_error("llm", error.code)
            log.warning("state.kept", detail=str(error))

    async def _forget(self, chat: str) -> None:
        """Have the language model keep nothing of a chat."""
        if self._ready is not None:
            await self._ready.models.llm.forget(chat)
        else:
            await llm.unloaded(self._settings.llm).forget(conversations=(chat,))
