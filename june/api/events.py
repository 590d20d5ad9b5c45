"""`/v1/events`: changes to messages as server-sent events, resumable with `Last-Event-ID`."""

import asyncio
import json
import re
from contextlib import suppress
from http import HTTPStatus

from aiohttp import web

from june.api.problems import ProblemError
from june.api.requests import NoQuery, read_query
from june.api.services import Services, message_json

MAX_STREAMS = 16
BATCH = 100
HEARTBEAT_S = 15.0
LAST_EVENT_ID = re.compile("[0-9]{1,18}")


class Events:
    """The handler of `/v1/events`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store
        self._streams = 0

    def routes(self) -> list[web.RouteDef]:
        """Return the route of the handler."""
        return [web.get("/v1/events", self._stream, allow_head=False)]

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        read_query(request, NoQuery)
        last = request.headers.get("Last-Event-ID", "")
        if last and not LAST_EVENT_ID.fullmatch(last):
            raise ProblemError(HTTPStatus.BAD_REQUEST, "Last-Event-ID: expected the id of an event.")
        if self._streams >= MAX_STREAMS:
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_STREAMS} streams are open already.")
        self._streams += 1
        try:
            after_id = int(last) if last else await self._store.feed.last_change()
            response = web.StreamResponse(headers={"Cache-Control": "no-store"})
            response.content_type = "text/event-stream"
            response.charset = "utf-8"
            await response.prepare(request)
            with suppress(ConnectionError):  # the client has disconnected
                await self._write(response, after_id)
            return response
        finally:
            self._streams -= 1

    async def _write(self, response: web.StreamResponse, after_id: int) -> None:
        """Write the stream's start id, so that a client can resume there, then changes until june ends."""
        await response.write(b"id: %d\n\n" % after_id)
        while not self._services.closing.is_set():
            changed = self._store.next_change()
            changes, is_whole = await self._store.feed.changes(after_id=after_id, limit=BATCH)
            if not is_whole:
                after_id = changes[0].id - 1 if changes else await self._store.feed.last_change()
                await response.write(b"id: %d\nevent: reset\ndata: {}\n\n" % after_id)
            for change in changes:
                data = json.dumps(message_json(change.message))
                await response.write(f"id: {change.id}\nevent: message\ndata: {data}\n\n".encode())
                after_id = change.id
            if not changes and not await self._changes_soon(changed):
                await response.write(b": still here\n\n")

    async def _changes_soon(self, changed: asyncio.Event) -> bool:
        """Return whether something changed, or june ends, before the next comment is due."""
        waiting = [asyncio.create_task(event.wait()) for event in (changed, self._services.closing)]
        try:
            done, _ = await asyncio.wait(waiting, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        return bool(done)
