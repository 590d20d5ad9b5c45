"""The client of june's API (`openapi.yaml`), which `june messages` uses, on this machine or from another.

The token is sent only to the address that was given: the client does not follow redirects.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from aiohttp import ClientConnectorError, ClientError, ClientResponse, ClientSession, ClientTimeout

from june.backoff import BackOff
from june.errors import ApiError, SettingsError
from june.sections import ApiSettings

TRIES = 2
"""Tries of a request whose connection broke; its idempotency key makes june carry it out once."""
REQUEST_TIMEOUT_S = 30.0
LONGEST_POLL_S = 60.0
SILENCE_S = 45.0
"""june sends a comment on a stream every 15 s (`june.api.events`); after three missed ones it is down."""
MAX_LINE_BYTES = 2**20
BACK_OFF = BackOff(first_s=0.25, longest_s=5, spread=1)
"""Pauses between tries: 0.25 to 0.5 s at first, 5 to 10 s at last."""
GIVE_UP_S = 600.0
PASSING = (0, HTTPStatus.SERVICE_UNAVAILABLE)
"""Statuses of a june that is restarting or overloaded; 0: it cannot be reached."""
MESSAGES, MODELS = "/v1/messages", "/v1/models"
FINAL = ("RESPONDED", "TIMEOUT", "ERROR")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the stream.

    Attributes:
        id: the id after which the stream can be resumed.
        name: "open" (the stream begins or resumes), "message", or "reset" (events were missed).
        message: the changed message in its current state.
    """

    id: int
    name: str
    message: Json | None = None


class ApiClient:
    """Sends requests to one june."""

    def __init__(self, session: ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Json:
        """Return the JSON object at a path below `/v1/messages`.

        Raises:
            ApiError: june refuses the request or cannot be reached.
        """
        return await self._request("GET", path, query=query) or {}

    async def post(self, path: str, body: Json, *, key: str = "") -> Json | None:
        """Have june carry out a request exactly once and return its answer; None: there was nothing to do.

        Args:
            path: below `/v1/messages`.
            body: the body of the request.
            key: the idempotency key; "" makes a new one for this call.

        Raises:
            ApiError: june refuses the request or cannot be reached.
        """
        return await self._request("POST", path, body, headers={"Idempotency-Key": key or uuid4().hex})

    async def models(self) -> Json:
        """Return the models that are loaded and the language models that june could load.

        Raises:
            ApiError: june cannot be reached.
        """
        return await self._request("GET", "", below=MODELS) or {}

    async def change_model(self, change: Literal["load", "unload", "switch"], body: Json) -> Json:
        """Have june begin to change its language model and return the same as `models`.

        Raises:
            ApiError: june refuses the request or cannot be reached.
        """
        return await self._request("POST", f"/{change}", body, below=MODELS) or {}

    async def claim(self, wanted: Json, *, wait_s: float = 0.0) -> Json | None:
        """Claim the oldest NEW message that matches, waiting up to `wait_s` for one; None: none came in time.

        Raises:
            ApiError: june refuses the request or cannot be reached.
        """
        if not wait_s:
            return await self.post("/claim", wanted)
        deadline_s = time.monotonic() + wait_s
        async with aclosing(self.events()) as events:
            while True:
                try:  # the timeout covers the waiting only, so that a claim is never cancelled halfway
                    async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                        event = await anext(events)
                except TimeoutError:
                    return None
                is_new = event.message is not None and event.message["status"] == "NEW"
                if (event.name != "message" or is_new) and (found := await self.post("/claim", wanted)):
                    return found

    async def reply(self, message_id: int, *, wait_s: float) -> Json:
        """Return a question's status and answer (`reply`) once the status is final or `wait_s` has passed.

        Raises:
            ApiError: june refuses the request, or cannot be reached when the time is over.
        """
        deadline_s = time.monotonic() + wait_s
        failures = 0
        while True:
            left_s = max(0.0, deadline_s - time.monotonic())
            poll = {"wait_s": f"{min(left_s, LONGEST_POLL_S):.3f}"}
            try:
                found = await self.get(f"/{message_id}/reply", poll)
                if found["status"] in FINAL or not left_s:
                    return found
                failures = 0
            except ApiError as error:
                if error.status not in PASSING or not left_s:
                    raise
                failures += 1
                await asyncio.sleep(min(BACK_OFF.pause_s(failures), left_s))

    async def events(self, *, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Yield changes from now on, or after the event `after`; reconnect when june was down.

        Raises:
            ApiError: june refuses the request, cannot be reached at the start, or for `GIVE_UP_S` later on.
        """
        failures = 0
        was_open = False
        heard_s = time.monotonic()
        while True:
            failure = ApiError(0, f"june at {self._url} ended the stream of events.")
            try:
                async with aclosing(self._stream(after)) as stream:
                    async for event in stream:
                        after = event.id
                        was_open, failures = True, 0
                        yield event
                        heard_s = time.monotonic()
            except ApiError as error:
                failure = error
                if not was_open or error.status not in PASSING:
                    raise
            if time.monotonic() - heard_s > GIVE_UP_S:
                raise failure
            failures += 1
            await asyncio.sleep(BACK_OFF.pause_s(failures))

    async def _stream(self, after: int | None) -> AsyncGenerator[Event, None]:
        """Yield the events of one connection, in the subset of WHATWG HTML 9.2.6 that june uses."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        timeout = ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_S, sock_read=SILENCE_S)
        try:
            async with self._session.get(
                f"{self._url}/v1/events",
                headers=headers,
                timeout=timeout,
                read_bufsize=MAX_LINE_BYTES,
                allow_redirects=False,
            ) as response:
                if response.status != HTTPStatus.OK or response.content_type != "text/event-stream":
                    await self._read(response)
                    raise self._stranger(response.status)
                fields: dict[str, str] = {}
                async for line in response.content:
                    name, _, value = line.decode().rstrip("\r\n").partition(": ")
                    if name:
                        fields[name] = value
                    elif not value and "id" in fields:
                        data = json.loads(fields.get("data", "{}"))
                        yield Event(int(fields["id"]), fields.get("event", "open"), data or None)
                        fields = {}
        except (ClientError, TimeoutError):
            raise self._out_of_reach() from None
        except ValueError:
            raise self._stranger(HTTPStatus.OK) from None

    async def _request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        below: str = MESSAGES,
    ) -> Json | None:
        for _ in range(TRIES):
            try:
                async with self._session.request(
                    method,
                    f"{self._url}{below}{path}",
                    json=body,
                    params=query,
                    headers=headers,
                    allow_redirects=False,
                ) as response:
                    return await self._read(response)
            except ClientConnectorError:  # a second try would fail in the same way
                break
            except (ClientError, TimeoutError):
                continue
        raise self._out_of_reach()

    async def _read(self, response: ClientResponse) -> Json | None:
        """Return the body of a response; None: it has no body.

        Raises:
            ApiError: june refused the request (its sentence), or the server is not june.
        """
        if response.status == HTTPStatus.NO_CONTENT:
            return None
        try:
            found = json.loads(await response.read())
        except ValueError:
            raise self._stranger(response.status) from None
        if isinstance(found, dict) and response.status < HTTPStatus.MULTIPLE_CHOICES:
            return found
        if isinstance(found, dict) and isinstance(found.get("detail"), str):
            raise ApiError(response.status, _explained(response.status, found["detail"]))
        raise self._stranger(response.status)

    def _out_of_reach(self) -> ApiError:
        return ApiError(0, f"june is out of reach at {self._url}.")

    def _stranger(self, status: int) -> ApiError:
        return ApiError(status, f"The server at {self._url} is not june (status {status}).")


@asynccontextmanager
async def open_client(settings: ApiSettings, *, url: str = "") -> AsyncIterator[ApiClient]:
    """Open a client of the june at `url`, or of the one that the settings name.

    Raises:
        SettingsError: there is no address, or it is not an HTTP address.
    """
    address = _address(settings, url)
    token = settings.token.get_secret_value()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # Must be longer than the longest wait for a reply.
    timeout = ClientTimeout(total=LONGEST_POLL_S + REQUEST_TIMEOUT_S, sock_connect=REQUEST_TIMEOUT_S)
    async with ClientSession(headers=headers, timeout=timeout) as session:
        yield ApiClient(session, address)


def _address(settings: ApiSettings, url: str) -> str:
    if url:
        try:
            parts = urlsplit(url)
            is_right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            is_right = False
        # A password in the address would be visible in the list of processes and the shell's history.
        if not is_right or any(sign in url for sign in "@?#"):
            raise SettingsError("--url: expected an address such as https://june.example.org.")
        return url.rstrip("/")
    if not settings.host or not settings.port:
        raise SettingsError("api.host and api.port: expected june's address; or give it with --url.")
    return f"http://{_reachable(settings.host)}:{settings.port}"


def _reachable(host: str) -> str:
    """Return the host to connect to for a june that listens on `host`."""
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"  # noqa: PLR2004 - of IP
    return str(address) if address.version == 4 else f"[{address}]"  # noqa: PLR2004


def _explained(status: int, detail: str) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return "june does not accept the token; set api.token, or the variable JUNE_API__TOKEN."
    return detail
