"""What a chat is shown beside a text: what was heard, what it is for, why something did not arrive."""

from june.chat.formatting import escape
from june.messages import Purpose

GIVEN_UP = "One of my messages to you could not be delivered."
VOICE_REFUSED = {
    "voice_forbidden": "I may not send voice messages in this chat, so you get the text.",
    "too_large": "That voice message is too large for this app, so you get the text.",
}
HEADINGS: dict[Purpose, str] = {
    "clarification": "❓ **Question**",
    "help_request": "🆘 **Help is needed**",
    "progress": "⏳ **Progress**",
    "feedback_request": "📝 **What do you think?**",
}
"""The line above a message, by what a program sends it for."""


def with_echo(text: str, echo: str) -> str:
    """Return the Markdown of an answer: what was heard as a literal quotation, and the text below it."""
    literal = escape(" ".join(echo.split()))
    return f"> 🎤 {literal}\n\n{text}" if literal else text


def as_markdown(text: str, echo: str, purpose: Purpose) -> str:
    """Return all that a chat is shown of a message, as Markdown."""
    return "\n\n".join(filter(None, (HEADINGS.get(purpose, ""), with_echo(text, echo))))
