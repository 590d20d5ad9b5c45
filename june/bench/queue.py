"""`bench queue`: the owner's queue over HTTP with a real server and a real file of many messages."""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from june.api.server import serving
from june.api.services import Services
from june.bench.report import percentiles
from june.chat.addresses import AddressBook
from june.conversation.deciding import Rules, place
from june.errors import JuneError
from june.messages import Inbound
from june.sections import AccessSettings, ApiSettings, QueueSettings, RoutesSettings
from june.store import Explain, Store, open_store

BATCH = 500
CHATS = 10
JSON = {"Content-Type": "application/json"}
LISTS = {
    "list": "/v1/messages?limit=50",
    "list NEW": "/v1/messages?status=NEW&direction=in&limit=50&order=asc",
    "list a chat": "/v1/messages?chat=telegram:3&limit=50",
    "list since": "/v1/messages?since=2000-01-01T00:00:00Z&kind=text&limit=50",
}
"""The lists to time; each is read page after page through the whole queue."""
CLAIMS: dict[str, dict[str, str]] = {"claim": {}, "claim of a user": {"user": "telegram:3"}}


async def _no_explanation() -> Explain:
    return lambda _: None


@asynccontextmanager
async def _served(store: Store) -> AsyncIterator[ClientSession]:
    services = Services(
        store=store,
        queue=QueueSettings(),
        addresses=AddressBook(store, AccessSettings(), {}),
        adapters={},
        explanation=_no_explanation,
        wake_delivery=lambda: None,
        models=lambda: (),
    )
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(ApiSettings(port=0), services))
        yield await stack.enter_async_context(ClientSession(f"http://127.0.0.1:{port}"))


async def run(messages: int, requests: int) -> dict[str, Any]:
    """Measure listing and claiming in a queue of many messages and return the figures.

    Args:
        messages: how many NEW messages the queue holds at the beginning.
        requests: how many requests of each kind are timed.

    Raises:
        JuneError: two clients got the same message.
    """
    with tempfile.TemporaryDirectory(prefix="june-bench-") as folder:
        async with open_store(Path(folder) / "june.db") as store:
            await _fill(store, messages)
            async with _served(store) as session:
                seconds = {name: await _time_lists(session, path, requests) for name, path in LISTS.items()}
                await session.post("/v1/messages/claim", data="{}", headers=JSON)  # warm-up
                for name, wanted in CLAIMS.items():
                    claims = [await _claim(session, wanted) for _ in range(requests // len(CLAIMS))]
                    seconds[name] = [taken_s for _, taken_s in claims]
                racing = await _race(session, requests)
    return {
        "messages": messages,
        "requests": requests,
        "stages": {name: percentiles(taken) for name, taken in seconds.items()},
        "claimed_by_two_clients": racing,
        "claimed_twice": 0,
    }


async def _fill(store: Store, messages: int) -> None:
    to_queue = partial(place, rules=Rules(RoutesSettings(owner="queue"), ()))
    for begin in range(0, messages, BATCH):
        batch = [
            Inbound(
                "telegram",
                str(number),
                f"telegram:{number % CHATS}",
                f"telegram:{number % CHATS}",
                "Someone",
                "text",
                f"Message {number}: please look at the heating, and tell me what it needs.",
            )
            for number in range(begin, min(begin + BATCH, messages))
        ]
        await store.inbox.receive([(message, "owner") for message in batch], place=to_queue)


async def _time_lists(session: ClientSession, path: str, requests: int) -> list[float]:
    """Return the seconds of each of `requests` pages, read one after another."""
    taken_s = []
    cursor = ""
    for _ in range(requests):
        begin = time.perf_counter()
        async with session.get(path + cursor) as response:
            page = await response.json()
        taken_s.append(time.perf_counter() - begin)
        cursor = f"&cursor={page['next']}" if page["next"] else ""
    return taken_s


async def _claim(session: ClientSession, wanted: dict[str, str]) -> tuple[int, float]:
    """Claim a message and return its id and the seconds that the claim took."""
    begin = time.perf_counter()
    async with session.post("/v1/messages/claim", data=json.dumps(wanted), headers=JSON) as response:
        if response.status != 200:  # noqa: PLR2004 - HTTP's OK
            raise JuneError(f"A claim was answered with {response.status}: too few messages for the bench.")
        claimed = await response.json()
    return claimed["id"], time.perf_counter() - begin


async def _race(session: ClientSession, claims: int) -> list[int]:
    """Let two clients claim in a loop at the same time and return how many messages each got."""

    async def claim_in_a_loop() -> list[int]:
        return [(await _claim(session, {}))[0] for _ in range(claims)]

    first, second = await asyncio.gather(claim_in_a_loop(), claim_in_a_loop())
    if set(first) & set(second):
        raise JuneError("Two clients got the same message.")
    return [len(first), len(second)]
