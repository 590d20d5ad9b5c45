"""Checks of tokens and ports and, with `--online`, of the servers that june uses."""

import asyncio
import errno
import http.client
import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import aiohttp

from june.api.access import check_exposure
from june.chat.apps import chat_apps
from june.chat.descriptor import Server
from june.checks import Finding
from june.errors import JuneError
from june.settings import Settings

TIMEOUT_S = 10.0
ANSWER_S = 2.0
"""Time limit for the answer of a program on this machine that may be june."""
LONGEST_ANSWER_BYTES = 1000
DRIFT_S = 30.0
"""A Date header is exact to one second, and a response takes less than ten."""


def tokens(settings: Settings) -> Iterator[Finding]:
    """Yield whether each token that is set is well-formed."""
    found = {app: settings.section_of(app).token.get_secret_value() for app in chat_apps()}
    for app, token in found.items():
        if not token:
            continue
        if app.is_token(token):
            yield Finding(app.name, "ok", f"{app.name}.token is well-formed")
        else:
            told = f"{app.name}.token is not well-formed"
            yield Finding(app.name, "failed", told, app.remedy)
    if not any(found.values()):
        keys = " or ".join(f"{app.name}.token" for app in found)
        remedy = f"Set {keys}; the commands ask and bench need none."
        yield Finding("chat apps", "warning", "no token is set, so june run would not start", remedy)


def ports(settings: Settings) -> Iterator[Finding]:
    """Yield whether june can listen, or already listens, on each configured port."""
    api = settings.api
    if api.host:
        try:
            check_exposure(api)
        except JuneError as error:
            remedy = "Make one, for example with openssl rand -hex 32, and set it as a secret file."
            yield Finding("api", "failed", str(error), remedy)
        token = api.token.get_secret_value()
        yield _port("api", "api.port", api.host, api.port, token=token)
    for app in chat_apps():
        section = settings.section_of(app)
        if section.token.get_secret_value():
            for port in app.ports(section):
                yield _port(port.name, port.key, port.host, port.number)


def _port(name: str, key: str, host: str, port: int, *, token: str | None = None) -> Finding:
    """Return whether the port is free; a `token` is given for the port on which june itself may listen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            if token is not None and _is_june(host, port, token):
                return Finding(name, "ok", f"june runs and listens on {host}:{port}")
            remedy = f"End the program that listens there, which may be june itself, or set {key}."
        else:
            remedy = f"Set {key} and its host to an address of this machine that june may listen on."
        return Finding(name, "failed", f"june cannot listen on {host}:{port}: {error.strerror}", remedy)
    return Finding(name, "ok", f"{host}:{port} is free for {key}" if port else f"any free port for {key}")


def _is_june(host: str, port: int, token: str) -> bool:
    """Return whether the program that listens there answers like june's /ready."""
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/ready", headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = json.loads(connection.getresponse().read(LONGEST_ANSWER_BYTES))
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    return isinstance(answer, dict) and "ready" in answer


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer of a server; `fault` says why there is none."""

    status: int = 0
    body: Any = None
    ahead_s: float | None = None
    """How far this machine's clock is ahead of the server's, which has a resolution of one second."""
    fault: str = ""


def online(settings: Settings) -> Iterator[Finding]:
    """Yield whether the configured servers answer and accept the tokens, and whether the clocks agree."""
    endpoints = _endpoints(settings)
    answers = asyncio.run(_ask_all([endpoint for _, endpoint in endpoints]))
    for (name, endpoint), answer in zip(endpoints, answers, strict=True):
        yield _judged(name, endpoint, answer)
    drifts_s = [answer.ahead_s for answer in answers if answer.ahead_s is not None]
    if drifts_s:
        yield _drift(min(drifts_s, key=abs))


def _judged(name: str, endpoint: Server, answer: _Answer) -> Finding:
    """Return the finding for an endpoint's answer."""
    if answer.fault:
        remedy = f"Check the network, the proxy and {endpoint.key}; june tries again by itself."
        return Finding(name, "warning", f"{endpoint.address} does not answer: {answer.fault}", remedy)
    if not endpoint.takes_token:
        return Finding(name, "ok", f"{endpoint.address} answers")
    if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
        section = endpoint.key.partition(".")[0]
        remedy = f"Make a new token and set {section}.token; check {endpoint.key}."
        return Finding(name, "failed", f"{endpoint.address} does not accept the token", remedy)
    if answer.status != HTTPStatus.OK:
        remedy = f"Try again later; if the failure persists, check {endpoint.key}."
        return Finding(name, "warning", f"{endpoint.address} answered {answer.status}", remedy)
    return Finding(name, "ok", f"{endpoint.address} accepts the token of {_account(answer.body)}")


def _account(body: Any) -> str:
    """Return the account of the token; an app may wrap its answer in `result`."""
    account = body.get("result", body) if isinstance(body, dict) else None
    name = account.get("username") if isinstance(account, dict) else None
    return f"@{name}" if isinstance(name, str) else "an account without a name"


def _endpoints(settings: Settings) -> list[tuple[str, Server]]:
    """Return the servers that june uses, each with a name for its finding."""
    found = []
    for app in chat_apps():
        section = settings.section_of(app)
        if section.token.get_secret_value():
            found += [(app.name, endpoint) for endpoint in app.servers(section)]
    if traces := settings.telemetry.otlp_endpoint:
        found.append(("traces", Server(traces, "telemetry.otlp_endpoint", traces, takes_token=False)))
    return found


async def _ask_all(endpoints: Sequence[Server]) -> list[_Answer]:
    limit = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=limit) as session:
        return await asyncio.gather(*(_ask(session, endpoint) for endpoint in endpoints))


async def _ask(session: aiohttp.ClientSession, endpoint: Server) -> _Answer:
    """Return the endpoint's answer without aiohttp's messages, which quote a URL that may hold a token."""
    try:
        async with session.request(endpoint.method, endpoint.url, headers=endpoint.headers) as response:
            is_json = endpoint.takes_token and response.content_type == "application/json"
            body = await response.json() if is_json else None
            return _Answer(response.status, body, _ahead_s(response.headers.get("Date", "")))
    except TimeoutError:
        return _Answer(fault=f"no answer within {TIMEOUT_S:g} s")
    except aiohttp.ClientConnectorError as error:
        return _Answer(fault=error.strerror or type(error).__name__)
    except (aiohttp.ClientError, ValueError) as error:
        return _Answer(fault=type(error).__name__)


def _ahead_s(date: str) -> float | None:
    try:
        return time.time() - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def _drift(ahead_s: float) -> Finding:
    if abs(ahead_s) > DRIFT_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        found = f"{abs(ahead_s):.0f} s {way} the servers that were asked"
        return Finding("clock, online", "warning", found, "Use NTP to set it: timedatectl set-ntp true.")
    return Finding("clock, online", "ok", f"within {DRIFT_S:.0f} s of the servers that were asked")
