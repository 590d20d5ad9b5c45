"""Discord: direct messages, guild channels and threads, through discord.py.

`listening` hands over what arrives, which `reading` makes of a message or a command; `sending` sends, in the
markup of `formatting`; `errors` translates what the library raises.
"""

import base64
import binascii
import re
from collections.abc import Sequence

from june.chat.descriptor import ChatApp, Server
from june.chat.discord.formatting import validate_discord, visible_discord
from june.chat.discord.settings import DiscordSettings

TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""Number of the bot in base64, time of making, signature."""

TOKEN_SHAPE = re.compile(r"(?<![\w-])[\w-]{23,28}\.[\w-]{6}\.[\w-]{27,}")


def _is_token(token: str) -> bool:
    if (parts := TOKEN.fullmatch(token)) is None:
        return False
    try:
        return base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)).isdigit()
    except binascii.Error:
        return False


def _servers(settings: DiscordSettings) -> Sequence[Server]:
    base = settings.api_base.rstrip("/")
    headers = {"Authorization": f"Bot {settings.token.get_secret_value()}"}
    gateway = settings.gateway.replace("ws", "http", 1)  # any answer will do
    return [
        Server(base, "discord.api_base", f"{base}/users/@me", headers=headers),
        Server(settings.gateway, "discord.gateway", gateway, takes_token=False),
    ]


APP = ChatApp(
    name="discord",
    title="Discord",
    settings=DiscordSettings,
    adapter="june.chat.discord.adapter:Discord",
    is_token=_is_token,
    token_shape=TOKEN_SHAPE,
    remedy="Take it from the page Bot of the application in the developer portal; it has three parts.",
    visible=visible_discord,
    faults=validate_discord,
    reads_plain_text_as_markup=True,
    servers=_servers,
)
