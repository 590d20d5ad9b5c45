"""The section of Telegram in the settings."""

from typing import Literal

from pydantic import Field, SecretStr

from june.sections import AppSettings


class TelegramSettings(AppSettings):
    """Telegram."""

    token: SecretStr = SecretStr("")
    """Secret. The bot's token, from @BotFather; empty: june is not on Telegram."""
    api_base: str = Field(default="https://api.telegram.org", pattern="^https?://")
    """Address of the Bot API, Telegram's or one's own server's."""
    mode: Literal["polling", "webhook"] = "polling"
    """Whether june asks for messages, or is called at webhook_url."""
    webhook_url: str = Field(default="", pattern="^(https://.*)?$")
    """Public address that Telegram calls."""
    webhook_secret: SecretStr = SecretStr("")
    """Secret. What Telegram sends in the header X-Telegram-Bot-Api-Secret-Token."""
    webhook_host: str = "127.0.0.1"
    """Address that june listens on for the webhook."""
    webhook_port: int = Field(default=8443, ge=0, le=65_535)
    """Port that june listens on for the webhook."""
