"""june's API on a real port over a real store, and a client for it."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import ClientSession, ClientTimeout

from june.api.server import serving
from june.api.services import Services
from june.chat.addresses import AddressBook
from june.conversation.failing import FailingStage, TurnRecord
from june.conversation.leases import Leases
from june.messages import ModelDescription
from june.sections import AccessSettings, ApiSettings, QueueSettings
from june.store import Received, Role, Store, open_store
from tests.fakes import FakeAdapter
from tests.stored import Clock, inbound, place_in_queue

OWNER = "telegram:1"
BERT = "telegram:2"
STRANGER = "telegram:3"
LOOPBACK, QUEUE = ApiSettings(port=0), QueueSettings()
ACCESS = AccessSettings(owners=[OWNER, "discord:9"], allowed=[BERT])


@dataclass(frozen=True)
class Answer:
    """A response that was read to its end."""

    status: int
    body: Any
    content_type: str
    headers: dict[str, str]

    @property
    def detail(self) -> str:
        """Check that the response is a well-formed problem and return its sentence."""
        assert self.content_type == "application/problem+json"
        assert self.body.keys() == {"type", "title", "status", "detail"}
        assert self.body["status"] == self.status
        assert self.body["detail"].endswith(".")
        return str(self.body["detail"])


class Client:
    """A client of one API."""

    def __init__(self, session: ClientSession, base_url: str) -> None:
        self.session = session
        self.base_url = base_url

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """Send one request, with `body` as JSON, and return the response."""
        if body is not None:
            options["data"] = json.dumps(body)
            options["headers"] = {"Content-Type": "application/json", **options.get("headers", {})}
        async with self.session.request(method, self.base_url + path, **options) as response:
            data = await response.read()
            is_json = response.content_type.endswith("json")
            return Answer(
                response.status,
                json.loads(data) if is_json else data,
                response.content_type,
                dict(response.headers),
            )

    async def get(self, path: str, **options: Any) -> Answer:
        """Send a GET request."""
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: Any, **options: Any) -> Answer:
        """Send a POST request with JSON."""
        return await self.call("POST", path, body, **options)


@asynccontextmanager
async def talking_to(port: int, *, token: str = "") -> AsyncIterator[Client]:
    """Open a client of the API on a port."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with ClientSession(headers=headers, timeout=ClientTimeout(60)) as session:
        yield Client(session, f"http://127.0.0.1:{port}")


@dataclass
class Office:
    """A queue, its API and a client."""

    path: Path
    api: ApiSettings = LOOPBACK
    queue: QueueSettings = QUEUE
    access: AccessSettings = ACCESS
    clock: Clock = field(default_factory=Clock)
    app: FakeAdapter = field(default_factory=FakeAdapter)
    models: tuple[ModelDescription, ...] = ()
    is_ready: bool = False
    record: TurnRecord = field(default_factory=TurnRecord)
    wakes: int = 0
    looking_threads: set[int] = field(default_factory=set)
    """Those that looked which language models are present."""

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        self.store: Store = await self._stack.enter_async_context(
            open_store(self.path / "june.db", clock=self.clock)
        )
        addresses = AddressBook(self.store, self.access, {"telegram": self.app})
        self.leases = Leases(self.store, self.queue, addresses, self._wake)
        self.services = Services(
            store=self.store,
            queue=self.queue,
            addresses=addresses,
            adapters={"telegram": self.app},
            explanation=self.leases.explanation,
            wake_delivery=self._wake,
            models=lambda: self.models,
            is_ready=lambda: self.is_ready,
            present_llms=self._present_llms,
            failing_stages=self._failing,
        )
        self.port = await self._stack.enter_async_context(serving(self.api, self.services))
        token = self.api.token.get_secret_value()
        self.client = await self._stack.enter_async_context(talking_to(self.port, token=token))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _wake(self) -> None:
        self.wakes += 1

    def _present_llms(self) -> dict[str, str]:
        self.looking_threads.add(threading.get_ident())
        return {}

    def _failing(self) -> list[FailingStage]:
        return self.record.failing()

    async def expire(self) -> int:
        """End the leases and questions that have run out."""
        explain = await self.leases.explanation()
        return await self.store.queue.expire(max_attempts=self.queue.max_attempts, explain=explain)

    async def arrive(self, *texts: str, user: str = OWNER, **fields: Any) -> list[Received]:
        """Receive messages for the queue."""
        number = len(await self.store.history.entries(limit=10**6)) + 100
        batch = [inbound(number + index, user, text, **fields) for index, text in enumerate(texts)]
        role: Role = "owner" if user in self.access.owners else "allowed"
        return await self.store.inbox.receive([(one, role) for one in batch], place=place_in_queue)

    async def deliver(self) -> list[str]:
        """Send all messages that are due and return their texts."""
        sent = []
        while rows := await self.store.outbox.take_due(exclude_chats=(), group_window_s=0):
            for row in rows:
                delivered = await self.app.send_text(row.message.chat, row.message.text)
                await self.store.outbox.note_delivered(row.id, delivered)
                await self.store.outbox.mark_sent([row.id])
                sent.append(row.message.text)
        return sent


async def read_events(
    client: Client, count: int, *, last: str = "", opened: asyncio.Event | None = None
) -> list[tuple[str, str, Any]]:
    """Return the next events, with id, name and data; fewer if the stream ends."""
    events: list[tuple[str, str, Any]] = []
    headers = {"Last-Event-ID": last} if last else {}
    async with client.session.get(f"{client.base_url}/v1/events", headers=headers) as response:
        assert response.content_type == "text/event-stream"
        fields: dict[str, str] = {}
        async for line in response.content:
            if opened is not None:
                opened.set()
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name and value:
                fields[name] = value
            elif "data" in fields:
                events.append((fields["id"], fields["event"], json.loads(fields["data"])))
                fields = {}
                if len(events) == count:
                    break
    return events
