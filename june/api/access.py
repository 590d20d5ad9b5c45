"""Who is served: whoever has the token; without one, this machine only.

Monitoring and the description are guarded as everything else (ASVS 5.0, 13.4.5); only the files of the
owner's page, which hold nothing, are not. Without a token a request is
this machine's if its peer is on loopback, it came through no proxy, and it names june by a loopback address:
a web page elsewhere, whose name was made to mean 127.0.0.1, names june by its own (DNS rebinding). A page
cannot write either: every body must be `application/json`, which browsers ask about first.

What this does not cover: other people's programs on the same machine, and a proxy that says nothing of
itself. For both set `api.token`.
"""

import hmac
from collections.abc import Collection
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from june.api.problems import Handler, ProblemError
from june.errors import SettingsError
from june.sections import ApiSettings

PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and cannot be reached from another."""
    if host.casefold() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: ApiSettings) -> None:
    """Let june listen beyond this machine with a token only.

    Raises:
        SettingsError: `api.host` is no loopback address, and there is no token.
    """
    if not settings.token.get_secret_value() and not is_loopback(settings.host):
        raise SettingsError(
            "api.token: expected a token, since api.host lets other machines reach june; "
            "or set api.host to 127.0.0.1."
        )


def guard(settings: ApiSettings, public: Collection[str] = ()) -> Middleware:
    """A middleware that serves only whom the settings allow, but for the paths that are public."""
    token = settings.token.get_secret_value().encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_allowed = request.path in public or (_has_token(request, token) if token else _is_local(request))
        if not is_allowed:
            raise ProblemError(
                HTTPStatus.UNAUTHORIZED,
                "This request is not authorized.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return await handler(request)

    return check


def _has_token(request: web.Request, token: bytes) -> bool:
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    is_same = hmac.compare_digest(sent.strip().encode("utf-8", "surrogateescape"), token)
    return is_same and scheme.casefold() == "bearer"


def _is_local(request: web.Request) -> bool:
    host = urlsplit(f"//{request.host}").hostname or ""
    return (
        is_loopback(request.remote or "")
        and is_loopback(host)
        and not any(name in request.headers for name in PROXY_HEADERS)
    )
