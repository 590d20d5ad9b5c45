"""What of a conversation the model is shown."""

from june.messages import ChatMessage
from june.sections import LlmSettings

BYTES_PER_TOKEN = 3
"""UTF-8 bytes of a token, at the least: English has some 4.5, Chinese 3 for its one character (Qwen3's and
SmolLM2's vocabularies). An estimate that is too small shows less of the past, and never fails."""
TEMPLATE_TOKENS = 8
"""What a chat template adds to a message."""


def fit(history: tuple[ChatMessage, ...], question: str, settings: LlmSettings) -> tuple[ChatMessage, ...]:
    """Return the newest part of the history that leaves room for the question and the answer.

    A history that is too long loses its older half, in whole turns. Its beginning then stays the same for
    several turns, so that the model finds it in its cache.

    Args:
        history: a user's message and june's answer in turn, the oldest first.
        question: what is asked now.
        settings: its `context_tokens` hold system prompt, history, question and `max_tokens` of answer.
    """
    asked = (ChatMessage("system", settings.system_prompt), ChatMessage("user", question))
    room = settings.context_tokens - settings.max_tokens - sum(map(_tokens, asked))
    while history and sum(map(_tokens, history)) > room:
        history = newer_half(history)
    return history


def newer_half(history: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Return the history without its older half, in whole turns; of a single turn, nothing is left."""
    return history[len(history) - len(history) // 4 * 2 :]


def _tokens(message: ChatMessage) -> int:
    return len(message.content.encode("utf-8", "replace")) // BYTES_PER_TOKEN + TEMPLATE_TOKENS
