"""Access control: june serves clients that send the token; without a token, only clients on this machine.

The token also guards monitoring and `/openapi.json` (ASVS 5.0, 13.4.5). Only the files of the owner's page,
which hold no data, are public. Without a token, june accepts a request as local if its peer is on loopback,
no proxy forwarded it, and its Host header is a loopback address. The Host check stops DNS rebinding: a web
page whose host name resolves to 127.0.0.1 still sends its own host name. A web page cannot write either:
every body must be `application/json`, for which a browser first sends a preflight request.

Two cases are not covered: programs of other people on the same machine, and a proxy that does not set a
forwarding header. Set `api.token` for both.
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
    """Return whether a host is a loopback address, which other machines cannot reach."""
    if host.casefold() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: ApiSettings) -> None:
    """Check that june has a token if it listens beyond this machine.

    Raises:
        SettingsError: `api.host` is not a loopback address, and there is no token.
    """
    if not settings.token.get_secret_value() and not is_loopback(settings.host):
        raise SettingsError(
            "api.token: expected a token, since api.host lets other machines reach june; "
            "or set api.host to 127.0.0.1."
        )


def guard(settings: ApiSettings, public: Collection[str] = ()) -> Middleware:
    """Return a middleware that admits only the clients that the settings allow, except to `public` paths."""
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
