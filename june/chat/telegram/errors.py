"""The library's errors as june's; of their text only what Telegram itself says.

The bot's token is part of every address of the Bot API, and aiohttp quotes addresses in its errors. So what
is translated here must be raised outside of the `except` block, where Python links no exception to it.
"""

import re

from aiogram import exceptions

from june.errors import DeliveryError, Refusal

TOKEN_REFUSED = exceptions.TelegramUnauthorizedError
_MAY_PASS = (TOKEN_REFUSED, exceptions.TelegramConflictError, exceptions.TelegramServerError)

_REASONS: tuple[tuple[str, Refusal], ...] = (
    ("VOICE_MESSAGES_FORBIDDEN|rights to send voice", "voice_forbidden"),
    ("too big|too large", "too_large"),
    ("can't parse entities", "markup"),
    ("message is not modified", "not_modified"),
    (
        "^Forbidden|chat not found|message to .* not found|message can't be edited|(wrong|invalid) file_id",
        "gone",
    ),
)
"""By what Telegram says. Source: Client.cpp in tdlib/telegram-bot-api."""


class RequestError(DeliveryError):
    """A request that failed.

    Args:
        kind: the name of the library's exception.
        reason: see `DeliveryError`.
        detail: see `DeliveryError`.
        retry_after_s: see `DeliveryError`.
        moved_to: see `DeliveryError`.
    """

    def __init__(
        self,
        kind: str,
        reason: Refusal,
        detail: str,
        *,
        retry_after_s: float | None = None,
        moved_to: str = "",
    ) -> None:
        super().__init__(reason, detail, retry_after_s=retry_after_s, moved_to=moved_to)
        self.kind = kind


def translated(error: exceptions.AiogramError | UnicodeError) -> RequestError:
    """Return the library's error as one of june's."""
    reason: Refusal = "try_again"
    retry_after_s = None
    moved_to = ""
    match error:
        case exceptions.TelegramRetryAfter():
            retry_after_s = float(error.retry_after)
            detail = f"Telegram asks june to wait for {error.retry_after} s."
        case exceptions.TelegramMigrateToChat():
            reason, moved_to = "moved", f"telegram:{error.migrate_to_chat_id}"
            detail = "The group has become a supergroup, which has another id."
        case exceptions.TelegramEntityTooLarge():
            reason, detail = "too_large", "The file is larger than Telegram accepts."
        case exceptions.TelegramNetworkError():
            detail = f"Telegram cannot be reached: {type(error.__cause__).__name__}."
        case exceptions.TelegramAPIError():
            quoted = r'"[^"]*"'  # a piece of what was sent
            detail = f"Telegram says: {re.sub(quoted, '…', error.message)}."
            if not isinstance(error, _MAY_PASS):
                found = (reason for pattern, reason in _REASONS if re.search(pattern, error.message))
                reason = next(found, "refused")
        case _:
            detail = "Telegram's answer cannot be read."
    return RequestError(type(error).__name__, reason, detail, retry_after_s=retry_after_s, moved_to=moved_to)
