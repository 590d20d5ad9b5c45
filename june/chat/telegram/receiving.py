"""What arrives from Telegram is handed to the intake, by polling or by a webhook.

june asks for updates herself: aiogram's own polling acknowledges them before anything is stored. A batch is
acknowledged by the offset of the next request, which moves only when the inbox has committed the batch.
"""

import asyncio
import hmac
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

from aiogram import methods
from aiogram.types import BotCommand
from aiohttp import web
from pydantic import ValidationError

from june.backoff import BackOff
from june.chat import AdapterHealth, CommandInfo, Intake
from june.chat.telegram.connection import Connection
from june.chat.telegram.errors import TOKEN_REFUSED, RequestError
from june.chat.telegram.reading import Me, Update, read
from june.chat.telegram.settings import TelegramSettings
from june.errors import AdapterError, StoreError
from june.messages import PlatformState
from june.telemetry import adapter_up, count_error, log

T = TypeVar("T")

PLATFORM = "telegram"
BACK_OFF = BackOff(first_s=0.25, longest_s=30)
"""Pauses between the tries of one request."""
MAX_TRIES = 9
_LONG_POLL_S = 25
_WEBHOOK_BYTES = 1_000_000
_UPDATES = ["message"]


class _GetUpdates(methods.TelegramMethod[list[Update]]):
    __returning__ = list[Update]
    __api_method__ = "getUpdates"

    offset: int
    timeout: int
    allowed_updates: list[str]


class Receiving:
    """The half of the `Adapter` that receives.

    Args:
        connection: the bot, which it does not own.
        settings: the section of Telegram.
        timeout_s: the time limit of a request, in seconds.

    Attributes:
        health: whether Telegram answers the requests for messages.
    """

    def __init__(self, connection: Connection, settings: TelegramSettings, *, timeout_s: float) -> None:
        self._connection = connection
        self._settings = settings
        self._timeout_s = math.ceil(timeout_s)
        self._me = Me(connection.bot_id, "", frozenset())
        self.health = AdapterHealth("starting")

    def _report(self, state: PlatformState, detail: str = "") -> None:
        self.health = AdapterHealth(state, detail)
        adapter_up.labels(PLATFORM).set(state == "up")

    async def run(self, intake: Intake, commands: Sequence[CommandInfo]) -> None:
        """Hand over what arrives, until cancelled, as `Adapter.run` says."""
        self._report("starting")
        try:
            self._me = await self._retried(partial(self._introduce, commands))
            if self._settings.mode == "webhook":
                await self._serve_webhook(intake)
            else:
                await self._serve_polling(intake)
        finally:
            self._report("down", self.health.detail or "june does not receive messages from Telegram.")

    async def _retried(self, request: Callable[[], Awaitable[T]]) -> T:
        failures = 0
        while True:
            try:
                return await request()
            except RequestError as error:
                count_error("adapter", error.kind)
                self._report("down", str(error))
                failures += 1
                is_final = error.reason != "try_again" or error.kind == TOKEN_REFUSED.__name__
                if failures == MAX_TRIES or is_final:
                    raise AdapterError(str(error), retry_after_s=error.retry_after_s) from None
                wait_s = BACK_OFF.pause_s(failures, error.retry_after_s)
                log.warning("adapter.delayed", platform=PLATFORM, detail=str(error), wait_s=wait_s)
                await asyncio.sleep(wait_s)

    async def _introduce(self, commands: Sequence[CommandInfo]) -> Me:
        """List the commands, and return who june is."""
        me = await self._connection.call(methods.GetMe())
        listed = [
            BotCommand(
                command=each.name,
                description=f"{each.description} ({each.argument})" if each.argument else each.description,
            )
            for each in commands
        ]
        await self._connection.call(methods.SetMyCommands(commands=listed))
        return Me(self._connection.bot_id, me.username or "", {each.name for each in commands})

    async def _serve_polling(self, intake: Intake) -> NoReturn:
        if (await self._retried(partial(self._connection.call, methods.GetWebhookInfo()))).url:
            end = methods.DeleteWebhook(drop_pending_updates=False)
            await self._retried(partial(self._connection.call, end))
        offset = int(await intake.cursor(PLATFORM) or 0)
        while True:
            offset = await self._retried(partial(self._poll, intake, offset))

    async def _poll(self, intake: Intake, offset: int) -> int:
        """Return the offset after the updates that this request brought, which are committed then."""
        # Until it is known whether Telegram answers, it is asked without waiting for a message.
        wait_s = _LONG_POLL_S if self.health.state == "up" else 0
        request = _GetUpdates(offset=offset, timeout=wait_s, allowed_updates=_UPDATES)
        updates = await self._connection.call(request, timeout_s=wait_s + self._timeout_s)
        self._report("up")
        if updates:
            # The last of the batch, not the highest so far: after a quiet week ids begin anew, lower.
            offset = updates[-1].update_id + 1
            await self._hand_over(intake, updates, cursor=(PLATFORM, str(offset)))
        return offset

    async def _hand_over(
        self, intake: Intake, updates: Sequence[Update], *, cursor: tuple[str, str] | None = None
    ) -> None:
        messages, moves = read(updates, self._me)
        for old, new in moves.items():
            await intake.moved(old, new)
        await intake.receive(messages, cursor=cursor)

    async def _serve_webhook(self, intake: Intake) -> None:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        secret = self._settings.webhook_secret.get_secret_value()

        async def receive(request: web.Request) -> web.Response:
            sent = request.headers.get("X-Telegram-Bot-Api-Secret-Token", "")
            if not hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), secret.encode()):
                return web.Response(status=401)
            try:
                update = Update.model_validate_json(await request.read())
            except ValidationError:
                return web.Response(status=400)
            try:
                await self._hand_over(intake, [update])
            except StoreError as error:
                if not failed.done():
                    failed.set_exception(error)
                return web.Response(status=503)  # Telegram sends it again
            return web.Response()

        url = self._settings.webhook_url
        app = web.Application(client_max_size=_WEBHOOK_BYTES)
        app.router.add_post(urlsplit(url).path or "/", receive)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._settings.webhook_host, self._settings.webhook_port).start()
            call = methods.SetWebhook(url=url, secret_token=secret, allowed_updates=_UPDATES)
            await self._retried(partial(self._connection.call, call))
            self._report("up")
            await failed
        except OSError as error:
            raise AdapterError(f"june cannot listen for the webhook: {error.strerror}.") from None
        finally:
            await runner.cleanup()
