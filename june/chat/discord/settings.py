"""The section of Discord in the settings."""

from pydantic import Field, SecretStr

from june.sections import AppSettings


class DiscordSettings(AppSettings):
    """Discord."""

    token: SecretStr = SecretStr("")
    """Secret. The bot's token, from the developer portal; empty: june is not on Discord."""
    api_base: str = Field(default="https://discord.com/api/v10", pattern="^https?://")
    """Address of Discord's API."""
    gateway: str = Field(default="wss://gateway.discord.gg/", pattern="^wss?://")
    """Address of Discord's gateway."""
