"""What june has to do with others: tokens, ports, and (online) whether the configured endpoints answer."""

import asyncio
import base64
import binascii
import errno
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Literal

import aiohttp

from june.api.access import check_exposure
from june.checks import Finding
from june.errors import JuneError
from june.settings import Settings

TIMEOUT_S = 10.0
ANSWER_S = 2.0
"""For june on this machine, if it is june."""
LONGEST_ANSWER_BYTES = 1000
DRIFT_S = 30.0
"""A Date header is exact to one second, and the way from a server takes less than ten."""
TELEGRAM_TOKEN = re.compile(r"\d{5,}:[A-Za-z0-9_-]{20,}")
"""Number of the bot, colon, 35 characters; fewer are let through, since Telegram promises no length."""
DISCORD_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""Number of the bot in base64, time of making, signature."""


def tokens(settings: Settings) -> Iterator[Finding]:
    """Whether each token that is set looks like one."""
    telegram = settings.telegram.token.get_secret_value()
    discord = settings.discord.token.get_secret_value()
    if telegram:
        is_right = TELEGRAM_TOKEN.fullmatch(telegram) is not None
        yield _formed("telegram", "Take it from @BotFather; it looks like 123456789:AAH….", is_right=is_right)
    if discord:
        remedy = "Take it from the page Bot of the application in the developer portal; it has three parts."
        yield _formed("discord", remedy, is_right=_is_discord_token(discord))
    if not (telegram or discord):
        remedy = "Set telegram.token or discord.token; the commands ask and bench need none."
        yield Finding("chat apps", "warning", "no token is set, so june run would not start", remedy)


def _is_discord_token(token: str) -> bool:
    if (parts := DISCORD_TOKEN.fullmatch(token)) is None:
        return False
    try:
        return base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)).isdigit()
    except binascii.Error:
        return False


def _formed(app: str, remedy: str, *, is_right: bool) -> Finding:
    if is_right:
        return Finding(app, "ok", f"{app}.token is formed rightly")
    return Finding(app, "failed", f"{app}.token is not formed like a token", remedy)


def ports(settings: Settings) -> Iterator[Finding]:
    """Whether june can listen where its settings tell it to, or listens there already."""
    api, telegram = settings.api, settings.telegram
    if api.host:
        try:
            check_exposure(api)
        except JuneError as error:
            remedy = "Make one, such as by openssl rand -hex 32, and set it as a secret file."
            yield Finding("api", "failed", str(error), remedy)
        token = api.token.get_secret_value()
        yield _port("api", "api.port", api.host, api.port, token=token)
    if telegram.token.get_secret_value() and telegram.mode == "webhook":
        yield _port("webhook", "telegram.webhook_port", telegram.webhook_host, telegram.webhook_port)


def _port(name: str, key: str, host: str, port: int, *, token: str | None = None) -> Finding:
    """Whether the port is free. A `token` is there for the endpoint that can say whether it is june's own."""
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
    """Whether what listens there answers as june's /ready does."""
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
    """What a server said; `fault` says why there is no answer."""

    status: int = 0
    body: Any = None
    ahead_s: float | None = None
    """How far this machine's clock is ahead of the server's, which tells whole seconds."""
    fault: str = ""


def online(settings: Settings) -> Iterator[Finding]:
    """What the configured servers say: the tokens are accepted, the endpoints answer, the clocks agree."""
    endpoints = _endpoints(settings)
    answers = asyncio.run(_ask_all(endpoints))
    for endpoint, answer in zip(endpoints, answers, strict=True):
        yield endpoint.judge(answer)
    drifts_s = [answer.ahead_s for answer in answers if answer.ahead_s is not None]
    if drifts_s:
        yield _drift(min(drifts_s, key=abs))


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """An address that june uses. `address` is what is shown of it: never a token."""

    name: str
    address: str
    key: str
    url: str
    method: Literal["GET", "POST"] = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    is_platform: bool = True
    """Whether it takes a token, and says whose it is."""

    def judge(self, answer: _Answer) -> Finding:
        """The finding for what this endpoint answered."""
        if answer.fault:
            remedy = f"Look at the network, the proxy and {self.key}; june tries again by itself."
            return Finding(self.name, "warning", f"{self.address} does not answer: {answer.fault}", remedy)
        if not self.is_platform:
            return Finding(self.name, "ok", f"{self.address} answers")
        if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
            section = self.key.partition(".")[0]
            remedy = f"Make a new token and set {section}.token; see whether {self.key} is right."
            return Finding(self.name, "failed", f"{self.address} does not accept the token", remedy)
        if answer.status != HTTPStatus.OK:
            remedy = f"Try again later; if it stays so, see whether {self.key} is right."
            return Finding(self.name, "warning", f"{self.address} answered {answer.status}", remedy)
        return Finding(self.name, "ok", f"{self.address} accepts the token of {_account(answer.body)}")


def _account(body: Any) -> str:
    """Whose token it is; Telegram wraps what Discord says plainly."""
    account = body.get("result", body) if isinstance(body, dict) else None
    name = account.get("username") if isinstance(account, dict) else None
    return f"@{name}" if isinstance(name, str) else "an account without a name"


def _endpoints(settings: Settings) -> list[_Endpoint]:
    found = []
    if token := settings.telegram.token.get_secret_value():
        base = settings.telegram.api_base.rstrip("/")
        found.append(_Endpoint("telegram", base, "telegram.api_base", f"{base}/bot{token}/getMe", "POST"))
    if token := settings.discord.token.get_secret_value():
        base = settings.discord.api_base.rstrip("/")
        headers = {"Authorization": f"Bot {token}"}
        found.append(_Endpoint("discord", base, "discord.api_base", f"{base}/users/@me", headers=headers))
        gateway = settings.discord.gateway
        url = gateway.replace("ws", "http", 1)  # any answer will do: it is a web server that is asked
        found.append(_Endpoint("discord", gateway, "discord.gateway", url, is_platform=False))
    if traces := settings.telemetry.otlp_endpoint:
        found.append(_Endpoint("traces", traces, "telemetry.otlp_endpoint", traces, is_platform=False))
    return found


async def _ask_all(endpoints: Sequence[_Endpoint]) -> list[_Answer]:
    limit = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=limit) as session:
        return await asyncio.gather(*(_ask(session, endpoint) for endpoint in endpoints))


async def _ask(session: aiohttp.ClientSession, endpoint: _Endpoint) -> _Answer:
    """The endpoint's answer, without aiohttp's words: they quote the address, which may hold a token."""
    try:
        async with session.request(endpoint.method, endpoint.url, headers=endpoint.headers) as response:
            is_json = endpoint.is_platform and response.content_type == "application/json"
            body = await response.json() if is_json else None
            return _Answer(response.status, body, _ahead_s(response.headers.get("Date", "")))
    except TimeoutError:
        return _Answer(fault=f"nothing came within {TIMEOUT_S:g} s")
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
        return Finding("clock, online", "warning", found, "Let NTP keep it: timedatectl set-ntp true.")
    return Finding("clock, online", "ok", f"within {DRIFT_S:.0f} s of the servers that were asked")
