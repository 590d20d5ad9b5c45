"""What june's two clients of discord.py have in common."""

import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from june.chat.discord.settings import DiscordSettings

MAX_RATE_LIMIT_S = 30.0
"""A longer wait is the delivery's; it is also the shortest that discord.py knows."""


def point_at(settings: DiscordSettings) -> None:
    """Have discord.py use these addresses, which it keeps in its classes."""
    Route.BASE = settings.api_base.rstrip("/")
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(settings.gateway)
