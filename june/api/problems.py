"""Failures as `application/problem+json` (RFC 9457) with one sentence each."""

import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from aiohttp import web

from june.errors import DeliveryError, ModelChangeError, QueueError, QueueRefusal, StageError, StoreError
from june.telemetry import count_error, log, where

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATUSES: Mapping[QueueRefusal, HTTPStatus] = {
    "unknown": HTTPStatus.NOT_FOUND,
    "conflict": HTTPStatus.CONFLICT,
    "no_access": HTTPStatus.FORBIDDEN,
}
SENTENCES = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not know that method.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than june accepts.",
}
"""Sentences for the statuses that aiohttp itself answers with."""


class ProblemError(Exception):
    """Ends a request with a status and one sentence, which never quotes the request."""

    def __init__(self, status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return the response for a failure."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return web.Response(
        status=status,
        body=json.dumps(body).encode(),
        content_type="application/problem+json",
        headers=headers,
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn any exception of a handler into a problem response."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return problem(error.status, SENTENCES.get(HTTPStatus(error.status), f"{error.reason}."), kept)
    except ProblemError as error:
        return problem(error.status, str(error), error.headers)
    except Exception as error:  # a failed request must not end june
        return problem(*_explained(request, error))


def _explained(request: web.Request, error: Exception) -> tuple[HTTPStatus, str]:
    match error:
        case QueueError():
            return STATUSES[error.code], str(error)
        case ModelChangeError():
            return HTTPStatus.CONFLICT, str(error)
        case DeliveryError():
            return HTTPStatus.SERVICE_UNAVAILABLE, "The chat app is out of reach: please try again."
        case StoreError() | StageError():  # a StageError: too many requests wait for the store
            _report(request, error)
            return HTTPStatus.SERVICE_UNAVAILABLE, "The store does not answer: please try again."
        case _:
            _report(request, error)
            return HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong inside june."


def _report(request: web.Request, error: Exception) -> None:
    count_error("api", type(error).__name__)
    route = request.match_info.route.resource
    log.error(
        "request.failed",
        type=type(error).__name__,
        where=where(error),
        method=request.method,
        route=route.canonical if route is not None else "",
    )
