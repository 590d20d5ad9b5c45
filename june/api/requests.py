"""Models of bodies and queries, and functions that read and validate them."""

import hashlib
import json
import re
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from june.api.problems import ProblemError
from june.chat.apps import APPS, is_person
from june.store import MAX_TEXT, Filter, Once, Status

M = TypeVar("M", bound=BaseModel)

ONE_MESSAGE = "/v1/messages/{id:[1-9][0-9]{0,17}}"
"""The path of a message; `path_id` reads its id."""
MAX_BODY_BYTES = 256 * 1024
"""Fits 20,000 characters beyond the Basic Multilingual Plane, each escaped as two \\uXXXX of JSON."""
NUL_FREE = r"^[^\x00]*$"
KEY = re.compile("[!-~]{1,200}")
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _seconds(value: object) -> object:
    """Return a time of RFC 3339 as seconds since 1970."""
    if isinstance(value, str) and RFC_3339.fullmatch(value):
        try:
            return datetime.fromisoformat(value.upper()).timestamp()
        except ValueError:
            pass
    if value is None:
        return None
    raise PydanticCustomError("time", "Input should be a time such as 2026-11-25T18:00:00Z")


def _whole(value: object) -> object:
    """Return 3.0 as 3: JSON Schema counts it as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _known_app(name: str) -> str:
    if name not in APPS:
        names = " or ".join(f"'{app}'" for app in APPS)
        raise PydanticCustomError("platform", "Input should be {names}", {"names": names})
    return name


def _person(to: str) -> str:
    if to != "owner" and not is_person(to):
        raise PydanticCustomError("person", "Input should be 'owner' or a person such as telegram:123456789")
    return to


Time = Annotated[float, BeforeValidator(_seconds)]
Address = Annotated[str, Field(min_length=1, max_length=200, pattern=NUL_FREE)]
Text = Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$")]
Id = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=10**18 - 1)]
LeaseS = Annotated[float, Field(ge=1, le=86_400)]
Attempts = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1_000_000)]
Platform = Annotated[str, AfterValidator(_known_app)]
To = Annotated[str, AfterValidator(_person)]
SendKind = Literal["message", "clarification", "help_request", "progress", "feedback_request"]
Kind = Literal["text", "voice", "audio", "video_note", "command"] | SendKind


class Checked(BaseModel):
    """A body or a query; unknown fields are refused."""

    model_config = ConfigDict(
        allow_inf_nan=False, extra="forbid", frozen=True, hide_input_in_errors=True, strict=True
    )


class Wanted(Checked):
    """The filters that a list and a claim have in common."""

    platform: Platform | None = None
    chat: Address | None = None
    user: Address | None = None
    kind: Kind | None = None
    since: Time | None = None
    until: Time | None = None

    def filter(self, **more: Any) -> Filter:
        """Return the store's filter for these fields."""
        return Filter(
            platform=self.platform,
            chat=self.chat,
            user=self.user,
            kind=self.kind,
            since_s=self.since,
            until_s=self.until,
            **more,
        )


class ListQuery(Wanted):
    """`GET /v1/messages`."""

    model_config = ConfigDict(strict=False)  # every value of a query is text

    direction: Literal["in", "out"] | None = None
    status: Status | None = None
    order: Literal["desc", "asc"] = "desc"
    limit: int = Field(default=50, ge=1, le=200)
    cursor: Annotated[str, Field(pattern="^[0-9]{1,18}$")] | None = None


class ReplyQuery(Checked):
    """`GET /v1/messages/{id}/reply`."""

    model_config = ConfigDict(strict=False)

    wait_s: float = Field(default=0.0, ge=0, le=300)


class NoQuery(Checked):
    """No query at all."""


class NoFields(Checked):
    """A body without fields: `{}`."""


class ModelName(Checked):
    """`POST /v1/models/load` and `switch`."""

    name: Annotated[str, Field(min_length=1, max_length=1000, pattern=NUL_FREE)]


class Send(Checked):
    """`POST /v1/messages`."""

    to: To
    text: Text
    kind: SendKind = "message"
    voice: bool = False
    reply_to: Id | None = None
    wait_for_reply: bool = False
    expires_in_s: Annotated[float, Field(ge=1, le=31_536_000)] | None = None


class Claim(Wanted):
    """`POST /v1/messages/claim`."""

    id: Id | None = None
    lease_s: LeaseS | None = None


class Extend(Checked):
    """`POST /v1/messages/{id}/extend`."""

    lease_s: LeaseS | None = None
    attempts: Attempts | None = None


class Respond(Checked):
    """`POST /v1/messages/{id}/respond`."""

    text: Text
    voice: bool = False
    attempts: Attempts | None = None


class Fail(Checked):
    """`POST /v1/messages/{id}/fail`."""

    error: Annotated[str, Field(max_length=500, pattern=NUL_FREE)] = ""
    retry: bool = False
    attempts: Attempts | None = None


class Replace(Checked):
    """`PUT /v1/messages/{id}`."""

    text: Text


class ChangeText(Checked):
    """`PATCH /v1/messages/{id}`, with a text."""

    op: Literal["append", "prepend", "replace"]
    text: Text


class ChangeStatus(Checked):
    """`PATCH /v1/messages/{id}`, with a status."""

    status: Status
    if_status: Status


def path_id(request: web.Request) -> int:
    """Return the message id in the path."""
    return int(request.match_info["id"])


def read_query(request: web.Request, model: type[M]) -> M:
    """Return the validated query of a request.

    Raises:
        ProblemError: 400; the query does not match the model.
    """
    query = request.rel_url.query
    repeated = next((name for name in query if len(query.getall(name)) > 1), None)
    if repeated is not None:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "The query names a parameter more than once.")
    return _validated(model, dict(query), HTTPStatus.BAD_REQUEST)


async def read_json(request: web.Request) -> Any:
    """Return the parsed body of a request.

    Raises:
        ProblemError: the body is not JSON in UTF-8, is nested too deeply, or has a key twice.
        HTTPRequestEntityTooLarge: the body is larger than `MAX_BODY_BYTES`.
    """
    if request.content_type != "application/json" or (request.charset or "utf-8").casefold() != "utf-8":
        raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Expected a body of type application/json.")
    try:
        return json.loads(
            (await request.read()).decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError:
        detail = "The body is nested too deeply."
    except ValueError:  # not UTF-8, not JSON, or an integer of thousands of digits
        detail = "The body is not JSON, or names a key twice."
    raise ProblemError(HTTPStatus.BAD_REQUEST, detail)


async def read_body(request: web.Request, model: type[M]) -> M:
    """Return the validated body of a request.

    Raises:
        ProblemError: the body is not JSON, or does not match the model (422).
    """
    return checked(await read_json(request), model)


def checked(body: Any, model: type[M]) -> M:
    """Return a parsed body as the model.

    Raises:
        ProblemError: 422; the body does not match the model.
    """
    return _validated(model, body, HTTPStatus.UNPROCESSABLE_ENTITY)


def read_key(request: web.Request, body: BaseModel) -> Once | None:
    """Return the idempotency key of a request; None: it has none.

    Raises:
        ProblemError: 400; the key is empty, too long, or not visible ASCII.
    """
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    if len(keys) > 1 or not KEY.fullmatch(keys[0]):
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, "Idempotency-Key: expected one, of 1 to 200 visible ASCII characters."
        )
    said = f"{request.method} {request.path} {body.model_dump_json()}"
    return Once(keys[0], hashlib.sha256(said.encode()).hexdigest())


def timestamp(seconds: float | None) -> str | None:
    """Return seconds since 1970 as a time of RFC 3339, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _validated(model: type[M], value: Any, status: HTTPStatus) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        # An unknown key is the client's text and may be personal: it is not quoted.
        is_known = first["type"] != "extra_forbidden" and first["loc"]
        place = f"{first['loc'][0]}: " if is_known else ""
        expected = "A field of the request is unknown" if first["type"] == "extra_forbidden" else first["msg"]
        raise ProblemError(status, f"{place}{expected}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _refuse_constant(_: str) -> NoReturn:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError
