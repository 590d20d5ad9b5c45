"""june's bot at the Bot API: one request, and one download.

What these raise holds no token: see `june.chat.telegram.errors`.
"""

import math
from contextlib import aclosing
from typing import TypeVar

from aiogram import Bot, exceptions, methods
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.utils.token import TokenValidationError
from aiohttp import ClientError, ClientResponseError, web

from june.chat.telegram.errors import translated
from june.chat.telegram.settings import TelegramSettings
from june.errors import DeliveryError, Refusal, SettingsError

T = TypeVar("T")


class Connection:
    """The bot that the token stands for.

    Args:
        settings: the section of Telegram.
        timeout_s: the time limit of a request, in seconds.

    Raises:
        SettingsError: the token does not have the form of one.
    """

    def __init__(self, settings: TelegramSettings, *, timeout_s: float) -> None:
        api = TelegramAPIServer.from_base(settings.api_base)
        self._token = settings.token.get_secret_value()
        self._timeout_s = math.ceil(timeout_s)
        try:
            self._bot = Bot(self._token, AiohttpSession(api=api, timeout=timeout_s))
        except TokenValidationError:
            raise SettingsError("telegram.token: expected a token as @BotFather gives it.") from None

    @property
    def bot_id(self) -> int:
        """The bot's id as a user."""
        return self._bot.id

    async def close(self) -> None:
        """Close every connection."""
        await self._bot.session.close()

    async def call(self, method: methods.TelegramMethod[T], *, timeout_s: int | None = None) -> T:
        """Call a method of the Bot API, and return what it answers.

        Args:
            method: with its parameters.
            timeout_s: the time limit, in seconds; None: the connection's.

        Raises:
            RequestError: it failed.
        """
        try:
            return await self._bot(method, request_timeout=timeout_s)
        except (exceptions.AiogramError, UnicodeError) as error:
            failure = translated(error)
        raise failure

    async def fetch(self, file_id: str, max_bytes: int) -> bytes:
        """Return a file, downloaded by a new link.

        Raises:
            DeliveryError: "too_large", "gone", "try_again" or "refused".
        """
        file = await self.call(methods.GetFile(file_id=file_id))
        url = self._bot.session.api.file_url(self._token, file.file_path or "")
        data = bytearray()
        try:
            async with aclosing(self._bot.session.stream_content(url, timeout=self._timeout_s)) as chunks:
                async for chunk in chunks:
                    data += chunk
                    if len(data) > max_bytes:
                        break
        except ClientResponseError as error:
            reason: Refusal = "gone" if error.status == web.HTTPNotFound.status_code else "try_again"
            failure = DeliveryError(reason, f"Telegram answers a download with {error.status}.")
        except (ClientError, TimeoutError) as error:
            failure = DeliveryError("try_again", f"The download failed: {type(error).__name__}.")
        else:
            if len(data) > max_bytes:
                raise DeliveryError("too_large", f"The recording has more than {max_bytes} bytes.")
            return bytes(data)
        raise failure
