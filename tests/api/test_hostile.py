"""The API against clients without a token, and against malicious bodies and queries."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from june.api.access import check_exposure, is_loopback
from june.errors import SettingsError
from june.sections import ApiSettings
from tests.api_client import Client, Office, talking_to

TOKEN = "sëcret-token"  # noqa: S105 - of this test; not ASCII, which hmac refuses in text
GUARDED = ApiSettings(port=0, token=SecretStr(TOKEN))
PATHS = [
    ("GET", "/v1/messages"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/claim"),
    ("GET", "/v1/messages/1"),
    ("GET", "/v1/messages/1/audio"),
    ("GET", "/v1/events"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
]


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    """Open an API for tests that do not change it."""
    async with Office(tmp_path_factory.mktemp("api")) as opened:
        yield opened


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with Office(tmp_path) as opened:
        yield opened


# Access


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer " + "x" * 7_000},
    ],
)
async def test_without_the_token_everything_is_401_without_a_hint(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with Office(tmp_path, GUARDED) as office, talking_to(office.port) as stranger:
        answers = [
            await stranger.call(method, f"{path}?token={TOKEN}", headers=headers) for method, path in PATHS
        ]
        assert {answer.status for answer in answers} == {401}
        assert {answer.detail for answer in answers} == {"This request is not authorized."}
        assert {answer.headers["WWW-Authenticate"] for answer in answers} == {"Bearer"}
        assert (await office.client.get("/v1/messages")).status == 200
        scheme = {"Authorization": f"bearer {TOKEN}"}
        assert (await stranger.get("/v1/messages", headers=scheme)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that was made to mean 127.0.0.1
        {"Host": "evil.example:8080"},
        {"Host": "127.0.0.1.evil.example"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 proxy"},
    ],
)
async def test_without_a_token_only_this_machine_is_served(office: Office, headers: dict[str, str]) -> None:
    for method, path in PATHS:
        assert (await office.client.call(method, path, headers=headers)).status == 401
    for host in ("localhost", "LOCALHOST:80", "[::1]:8080", "127.0.0.2"):
        assert (await office.client.get("/v1/messages", headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 - is refused
        ("::", False),
        ("192.168.1.5", False),
        ("june.example", False),
        ("", False),
    ],
)
def test_listening_beyond_this_machine_needs_a_token(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
    check_exposure(ApiSettings(host=host, token=SecretStr("x")))
    if expected:
        check_exposure(ApiSettings(host=host))
    else:
        with pytest.raises(SettingsError, match=r"^api\.token: expected a token"):
            check_exposure(ApiSettings(host=host))


async def test_a_port_that_is_taken_is_one_sentence(office: Office, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(
        SettingsError, match=rf"^api\.port: june cannot listen on 127\.0\.0\.1:{office.port}: "
    ):
        async with Office(tmp_path / "other", ApiSettings(port=office.port)):
            pass


async def test_a_page_elsewhere_cannot_write(office: Office) -> None:
    """Browsers send these types to other origins without a preflight request."""
    body = json.dumps({"to": "owner", "text": "From a page"})
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ):
        headers = {"Content-Type": content_type, "Origin": "https://evil.example"}
        assert (await office.client.call("POST", "/v1/messages", data=body, headers=headers)).status == 415
    preflight = await office.client.call(
        "OPTIONS", "/v1/messages", headers={"Origin": "https://evil.example"}
    )
    assert preflight.status == 405
    assert not [name for name in preflight.headers if name.lower().startswith("access-control")]


async def test_what_cannot_be_read_as_a_request_is_refused_and_logged_nowhere(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", office.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s\x00cret\r\n\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert "cret" not in caplog.text


# Bodies


async def send_raw(
    client: Client, data: bytes, path: str = "/v1/messages", method: str = "POST", **headers: str
) -> tuple[int, str]:
    headers = {"Content-Type": "application/json", **headers}
    answer = await client.call(method, path, data=data, headers=headers)
    return answer.status, answer.detail


def message(**changes: Any) -> bytes:
    return json.dumps({"to": "owner", "text": "Hello", **changes}).encode()


HOSTILE = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b'{"to": "owner", "text": "\xff"}', 400),
    (b'{"to": "owner", "text": "a\x00b"}', 400),
    (b'{"to": "owner", "to": "owner", "text": "a"}', 400),
    (b"[" * 50_000 + b"]" * 50_000, 400),
    (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, 400),
    (b'{"to": "owner", "text": "a", "expires_in_s": NaN}', 400),
    (b'{"to": "owner", "text": "a", "reply_to": ' + b"9" * 5_000 + b"}", 400),
    (b'{"to": "owner", "text": "a", "wait_for_reply": true, "expires_in_s": 1e999}', 422),
    (b'{"to": "owner", "text": "\\ud800"}', 422),
    (b'{"to": "owner", "text": "a", "\\ud800": 1}', 422),
    (b'{"to": "owner", "text": "a\\u0000b"}', 422),
    (b"[]", 422),
    (b"null", 422),
    (b'"owner"', 422),
    (message(text=""), 422),
    (message(text=" \n\t"), 422),
    (message(text="a" * 20_001), 422),
    (message(text=1), 422),
    (message(text=None), 422),
    (message(to="telegram:-100"), 422),
    (message(to="owner\n"), 422),
    (message(to="TELEGRAM:1"), 422),
    (message(to="telegram:\u0661"), 422),
    (message(kind="text"), 422),
    (message(voice="yes"), 422),
    (message(voice=1), 422),
    (message(reply_to=0), 422),
    (message(reply_to=-1), 422),
    (message(reply_to=10**18), 422),
    (message(reply_to=True), 422),
    (message(wait_for_reply=True, expires_in_s=0), 422),
    (message(wait_for_reply=True, expires_in_s=-5), 422),
    (message(surprise=1), 422),
    (message(reply_to=10**18 - 1), 409),
]


@pytest.mark.parametrize(("body", "status"), HOSTILE)
async def test_a_hostile_body_is_refused_with_a_sentence(shared: Office, body: bytes, status: int) -> None:
    found, sentence = await send_raw(shared.client, body)
    assert found == status
    assert len(sentence) < 200
    assert (await shared.client.get("/v1/messages")).body["messages"] == []


async def test_every_body_is_parsed_with_the_same_care(office: Office) -> None:
    deep = b"[" * 50_000
    for method, path in (
        ("POST", "/v1/messages/claim"),
        ("PUT", "/v1/messages/1"),
        ("PATCH", "/v1/messages/1"),
        ("POST", "/v1/messages/1/extend"),
        ("POST", "/v1/messages/1/respond"),
        ("POST", "/v1/messages/1/fail"),
    ):
        for body, status in ((deep, 400), (b"", 400), (b"[1]", 422), (b'{"x": "\\ud800"}', 422)):
            assert (await send_raw(office.client, body, path, method))[0] == status
        plain = {"Content-Type": "text/plain"}
        assert (await office.client.call(method, path, data=b"{}", headers=plain)).status == 415


async def test_a_body_of_ten_megabytes_is_refused(office: Office) -> None:
    huge = b'{"to": "owner", "text": "' + b"a" * 10_000_000 + b'"}'
    headers = {"Content-Type": "application/json"}
    refused = await office.client.call("POST", "/v1/messages", data=io.BytesIO(huge), headers=headers)
    assert (refused.status, refused.detail) == (413, "The body is larger than june accepts.")

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"a" * 10_000

    answer = await office.client.call("POST", "/v1/messages", data=drip(), headers=headers)
    assert answer.status == 413  # chunked: no length was announced


async def test_the_longest_text_is_accepted_however_it_is_escaped(office: Office) -> None:
    text = "\U0001f600" * 20_000
    assert len(json.dumps(text)) > 200_000
    sent = await office.client.post("/v1/messages", {"to": "owner", "text": text})
    assert (sent.status, sent.body["text"]) == (202, text)


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/json; charset=utf-16", "application/jsonp"]
)
async def test_another_content_type_is_refused(shared: Office, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    answer = await shared.client.call("POST", "/v1/messages", data=message(), headers=headers)
    assert (answer.status, answer.detail) == (415, "Expected a body of type application/json.")


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 201])
async def test_an_impossible_idempotency_key_is_refused(shared: Office, key: str) -> None:
    headers = {"Idempotency-Key": key}
    answer = await shared.client.post("/v1/messages", {"to": "owner", "text": "a"}, headers=headers)
    assert answer.status == 400
    assert answer.detail.startswith("Idempotency-Key: expected one")


# Paths and queries


@pytest.mark.parametrize(
    "query",
    [
        "cursor=-1",
        "cursor=abc",
        "cursor=1e3",
        "cursor=" + "9" * 19,
        "cursor=%00",
        "limit=0",
        "limit=-1",
        "limit=201",
        "limit=" + "9" * 5_000,
        "limit=ten",
        "order=sideways",
        "status=new",
        "direction=both",
        "platform=signal",
        "kind=shout",
        "since=yesterday",
        "since=2026-13-01T00:00:00Z",
        "since=2026-11-25T18:00:00",
        "chat=",
        "chat=%00",
        "chat=" + "x" * 201,
        "status=NEW&status=NEW",
        "nonsense=1",
    ],
)
async def test_an_impossible_query_is_refused_with_a_sentence(shared: Office, query: str) -> None:
    answer = await shared.client.get(f"/v1/messages?{query}")
    assert answer.status == 400
    assert answer.detail


@pytest.mark.parametrize("query", ["chat=%ff%fe", "user=%ed%a0%80", "chat='%20OR%201=1--", "user=%2500"])
async def test_a_strange_name_matches_nothing(office: Office, query: str) -> None:
    await office.arrive("Hello")
    answer = await office.client.get(f"/v1/messages?{query}")
    assert answer.status in (200, 400)
    if answer.status == 200:
        assert answer.body == {"messages": [], "next": None}


@pytest.mark.parametrize(
    "message_id", ["0", "-1", "01", "1e3", "1.0", "%31%00", "9" * 19, "٣", "../../etc/passwd", "claim"]
)
async def test_an_impossible_id_is_not_found(shared: Office, message_id: str) -> None:
    for path in ("", "/audio", "/reply"):
        answer = await shared.client.get(f"/v1/messages/{message_id}{path}")
        assert answer.status in ((404, 405) if message_id == "claim" else (404,))
        assert answer.detail


async def test_another_method_is_refused_with_those_that_are_known(office: Office) -> None:
    answer = await office.client.call("DELETE", "/v1/messages/1")
    assert (answer.status, answer.detail) == (405, "This address does not know that method.")
    assert answer.headers["Allow"] == "GET,PATCH,PUT"


async def test_the_seventeenth_stream_is_refused(office: Office) -> None:
    url = f"{office.client.base_url}/v1/events"
    streams = [await office.client.session.get(url) for _ in range(16)]
    refused = await office.client.get("/v1/events")
    assert (refused.status, refused.detail) == (503, "16 streams are open already.")
    for stream in streams:
        stream.close()
    async with asyncio.timeout(20):
        while True:
            async with office.client.session.get(url) as stream:
                if stream.status == 200:
                    break
            await office.arrive("a change, which shows that the readers are gone")
