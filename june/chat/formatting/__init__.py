"""The model's Markdown as each chat app shows it, in messages that the app takes.

`telegram_parts` and `discord_parts` are total: whatever the model wrote, and however much of it is there
already, every part is valid by itself, within the limit, and shows something; all parts together show the
words of `visible`, in order. Only a word longer than a message is cut.
"""

import re

from june.chat.formatting.discord import discord_parts, validate_discord, visible_discord
from june.chat.formatting.markdown import read
from june.chat.formatting.telegram import telegram_parts, validate_telegram, visible_telegram

__all__ = [
    "discord_parts",
    "escape",
    "telegram_parts",
    "validate_discord",
    "validate_telegram",
    "visible",
    "visible_discord",
    "visible_telegram",
]


def visible(markdown: str) -> str:
    """The plain text that a reader should see, with "• " or a number before each list item."""
    return read(markdown).text


def escape(text: str) -> str:
    """Markdown that shows one line of text literally.

    Every ASCII punctuation character may be escaped: https://spec.commonmark.org/0.31.2/#backslash-escapes.
    """
    return re.sub(r"[!-/:-@\[-`{-~]", r"\\\g<0>", text)
