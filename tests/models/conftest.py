"""What the tests of models share: a server on loopback in the place of Hugging Face and the package index."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from june.models import Catalogue, load_catalogue


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def noise(seed: str, size_bytes: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size_bytes)


CONTENT = noise("a file", 300_000)


def model_toml(source: str, **files: bytes | tuple[bytes, list[str]]) -> str:
    """Return a catalogue of one speech to text model; a file is its content, or content and members."""
    rows = []
    for name, value in files.items():
        data, members = value if isinstance(value, tuple) else (value, [])
        rows.append(
            f'{{ name = "{name.replace("_", ".")}", size_bytes = {len(data)}, sha256 = "{sha256(data)}", '
            f"members = {members} }}"
        )
    return (
        '[small]\nrole = "stt"\nformat = "ctranslate2"\nlicence = "MIT"\nlanguages = ["en"]\n'
        f"parameters_b = 0.001\n{source}\nfiles = [{', '.join(rows)}]\n"
    )


HUGGING_FACE = f'huggingface = {{ repo = "some/model", revision = "{"a" * 40}" }}'


def catalogue_of(text: str, tmp_path: Path) -> Catalogue:
    file = tmp_path / "catalogue.toml"
    file.write_text(text)
    return load_catalogue(file)


def _kind(path: str) -> str:
    if path.startswith("/api/"):
        return "application/json"
    return "text/html" if path.endswith("/") else "application/zip"


@dataclass
class Server:
    """A loopback server of `pages` by path; counts what it was asked for."""

    pages: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Path, Range and Authorization of each request."""
    drop_after: list[int] = field(default_factory=list)
    """The next responses end after so many bytes, one entry each."""
    ranges: bool = True
    hold: threading.Event | None = None
    """Responses stop in their middle until this is set."""
    holds_at_once: bool = False
    """They stop before their first byte instead."""
    is_holding: threading.Event = field(default_factory=threading.Event)
    """Set when a response has come to its middle and stops there."""
    url: str = ""

    def asked(self, path: str) -> int:
        """How often `path` was asked for."""
        return sum(asked == path for asked, _, _ in self.requests)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.requests.append((self.path, wanted, self.headers.get("Authorization", "")))
            if (path := self.path.partition("?")[0]) not in state.pages:
                self.send_error(404)
                return
            data = state.pages[path]
            if state.hold and state.holds_at_once:
                state.is_holding.set()
                state.hold.wait(30)
            begin = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and state.ranges else 0
            self.send_response(206 if wanted and state.ranges else 200)
            if wanted and state.ranges:
                self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Type", _kind(path))
            self.send_header("Content-Length", str(len(data) - begin))
            self.end_headers()
            body = data[begin:]
            if state.drop_after:
                body = body[: state.drop_after.pop(0)]
            half = len(body) // 2
            self.wfile.write(body[:half])
            if state.hold:
                self.wfile.flush()
                state.is_holding.set()
                state.hold.wait(30)
            self.wfile.write(body[half:])

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:  # a client that was killed
            pass

    with Quiet(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield state
        if state.hold:
            state.hold.set()
        http.shutdown()
        thread.join()


@pytest.fixture
def hugging_face(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Put the server in the place of Hugging Face, for a pull in this process."""
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return server
