"""`/v1/messages/claim`, and extending, answering and failing a claimed message."""

from aiohttp import web

from june.api.requests import ONE_MESSAGE, Claim, Extend, Fail, Respond, path_id, read_body, read_key
from june.api.services import Services, answer


class Claims:
    """Handlers of `/v1/messages/claim` and of the actions on a claimed message."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the handlers."""
        return [
            web.post("/v1/messages/claim", self._claim),
            web.post(f"{ONE_MESSAGE}/extend", self._extend),
            web.post(f"{ONE_MESSAGE}/respond", self._respond),
            web.post(f"{ONE_MESSAGE}/fail", self._fail),
        ]

    async def _claim(self, request: web.Request) -> web.Response:
        body = await read_body(request, Claim)
        claimed = await self._store.queue.claim(
            body.filter(id=body.id),
            lease_s=body.lease_s or self._services.queue.lease_s,
            once=read_key(request, body),
        )
        return web.Response(status=204) if claimed is None else answer(claimed)

    async def _extend(self, request: web.Request) -> web.Response:
        body = await read_body(request, Extend)
        extended = await self._store.queue.extend(
            path_id(request),
            lease_s=body.lease_s or self._services.queue.lease_s,
            attempts=body.attempts,
            once=read_key(request, body),
        )
        return answer(extended)

    async def _respond(self, request: web.Request) -> web.Response:
        body = await read_body(request, Respond)
        responded = await self._store.queue.respond(
            path_id(request),
            body.text,
            is_spoken=body.voice,
            attempts=body.attempts,
            once=read_key(request, body),
        )
        self._services.wake_delivery()
        return answer(responded)

    async def _fail(self, request: web.Request) -> web.Response:
        body = await read_body(request, Fail)
        once = read_key(request, body)
        failed = await self._store.queue.fail(
            path_id(request),
            error=body.error,
            retry=body.retry,
            max_attempts=self._services.queue.max_attempts,
            explain=await self._services.explanation(),
            attempts=body.attempts,
            once=once,
        )
        self._services.wake_delivery()
        return answer(failed)
