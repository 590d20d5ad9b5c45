"""Telegram: private chats, groups and topics, through aiogram.

`receiving` hands over what arrives, which `reading` makes of an update; `sending` sends, in the markup of
`formatting`; `errors` translates what the library raises.
"""

import re
from collections.abc import Sequence

from june.chat.descriptor import ChatApp, Port, Server
from june.chat.telegram.formatting import validate_telegram, visible_telegram
from june.chat.telegram.settings import TelegramSettings

TOKEN = re.compile(r"\d{5,}:[A-Za-z0-9_-]{20,}")
"""Number of the bot, colon, 35 characters; fewer are let through, since Telegram promises no length."""

TOKEN_SHAPE = re.compile(r"(?<!\d)\d{6,12}(?::|%3A)[\w-]{30,}")


def _is_token(token: str) -> bool:
    return TOKEN.fullmatch(token) is not None


def _servers(settings: TelegramSettings) -> Sequence[Server]:
    base = settings.api_base.rstrip("/")
    url = f"{base}/bot{settings.token.get_secret_value()}/getMe"
    return [Server(base, "telegram.api_base", url, "POST")]


def _ports(settings: TelegramSettings) -> Sequence[Port]:
    if settings.mode != "webhook":
        return ()
    return [Port("webhook", "telegram.webhook_port", settings.webhook_host, settings.webhook_port)]


APP = ChatApp(
    name="telegram",
    title="Telegram",
    settings=TelegramSettings,
    adapter="june.chat.telegram.adapter:Telegram",
    is_token=_is_token,
    token_shape=TOKEN_SHAPE,
    remedy="Take it from @BotFather; it looks like 123456789:AAH….",
    visible=visible_telegram,
    faults=validate_telegram,
    servers=_servers,
    ports=_ports,
)
