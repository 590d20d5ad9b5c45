"""The library's errors as june's, without its text, which may hold a token or what was to be sent."""

import re
from http import HTTPStatus

import discord

from june.errors import AdapterError, Refusal

UNKNOWN_INTERACTION, ALREADY_ACKNOWLEDGED = 10062, 40060
CANNOT_REPLY = 160002
"""june may not read the channel's history."""
_TOO_LARGE = 40005
_NO_VOICE_MESSAGES = {50013, 50173}
"""Missing permissions; no voice messages in this channel."""
_AUTHENTICATION_FAILED = 4004


def explained(error: Exception) -> AdapterError:
    """Return what went wrong, in one sentence that holds neither a token nor what was to be sent."""
    if isinstance(error, discord.PrivilegedIntentsRequired):
        return AdapterError(
            "Discord does not give june the text of messages: switch on Message Content Intent, under Bot, "
            "in Discord's developer portal."
        )
    code = error.code if isinstance(error, discord.ConnectionClosed) else None
    if isinstance(error, discord.LoginFailure) or code == _AUTHENTICATION_FAILED:
        return AdapterError("Discord does not know the token in discord.token.")
    if code is not None:
        return AdapterError(f"Discord closed the gateway with code {code}.")
    if isinstance(error, discord.RateLimited):
        return AdapterError("Discord asks to wait.", retry_after_s=error.retry_after)
    if isinstance(error, discord.HTTPException):
        wait = error.response.headers.get("Retry-After", "")
        return AdapterError(
            f"Discord answered {error.status} (code {error.code}).",
            retry_after_s=float(wait) if re.fullmatch(r"\d+(\.\d+)?", wait) else None,
        )
    return AdapterError(f"Discord is out of reach: {type(error).__name__}.")


def may_pass(status: int) -> bool:
    """Return whether another try may succeed; after a 401 the owner may renew the token."""
    return (
        status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}
        or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    )


def reason_of(error: Exception, *, is_voice: bool) -> Refusal:
    """Return what kind of refusal it is."""
    if not isinstance(error, discord.HTTPException) or may_pass(error.status):
        return "try_again"
    if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or error.code == _TOO_LARGE:
        return "too_large"
    if is_voice and error.code in _NO_VOICE_MESSAGES:
        return "voice_forbidden"
    return "gone" if error.status == HTTPStatus.NOT_FOUND else "refused"
