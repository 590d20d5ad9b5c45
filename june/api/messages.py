"""`/v1/messages`: reading, sending and changing messages, and waiting for an answer."""

import asyncio
from contextlib import suppress
from http import HTTPStatus

from aiohttp import web

from june.api.requests import (
    ONE_MESSAGE,
    ChangeStatus,
    ChangeText,
    ListQuery,
    NoQuery,
    Replace,
    ReplyQuery,
    Send,
    checked,
    path_id,
    read_body,
    read_json,
    read_key,
    read_query,
)
from june.api.services import Services, answer, message_json
from june.store import Letter, Message

FINAL = ("RESPONDED", "TIMEOUT", "ERROR")


class Messages:
    """Handlers of `/v1/messages`, except claims."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the handlers."""
        return [
            web.get("/v1/messages", self._list, allow_head=False),
            web.post("/v1/messages", self._send),
            web.get(ONE_MESSAGE, self._get, allow_head=False),
            web.put(ONE_MESSAGE, self._replace),
            web.patch(ONE_MESSAGE, self._change),
            web.get(f"{ONE_MESSAGE}/audio", self._audio, allow_head=False),
            web.get(f"{ONE_MESSAGE}/reply", self._reply, allow_head=False),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        query = read_query(request, ListQuery)
        found, last_id = await self._store.feed.messages(
            query.filter(direction=query.direction, status=query.status),
            limit=query.limit,
            after_id=None if query.cursor is None else int(query.cursor),
            is_oldest_first=query.order == "asc",
        )
        cursor = None if last_id is None else str(last_id)
        return web.json_response({"messages": [message_json(one) for one in found], "next": cursor})

    async def _get(self, request: web.Request) -> web.Response:
        read_query(request, NoQuery)
        return answer(await self._store.feed.message(path_id(request)))

    async def _audio(self, request: web.Request) -> web.Response:
        read_query(request, NoQuery)
        recording = await self._store.feed.recording(path_id(request))
        return web.Response(body=recording, content_type="audio/ogg")

    async def _send(self, request: web.Request) -> web.Response:
        body = await read_body(request, Send)
        once = read_key(request, body)
        address = await self._services.addresses.find(body.to)
        letter = Letter(
            address.chat,
            address.user,
            body.text,
            purpose=body.kind,
            is_spoken=body.voice,
            reply_to=body.reply_to,
            expires_in_s=(body.expires_in_s or self._services.queue.question_s)
            if body.wait_for_reply
            else None,
            other_users=address.other_users,
        )
        sent = await self._store.queue.send(letter, once=once)
        self._services.wake_delivery()
        return answer(sent, HTTPStatus.ACCEPTED)

    async def _replace(self, request: web.Request) -> web.Response:
        body = await read_body(request, Replace)
        return await self._change_text(path_id(request), ChangeText(op="replace", text=body.text))

    async def _change(self, request: web.Request) -> web.Response:
        body = await read_json(request)
        if isinstance(body, dict) and "status" in body:
            wanted = checked(body, ChangeStatus)
            changed = await self._store.queue.change_status(
                path_id(request),
                wanted.status,
                if_status=wanted.if_status,
                lease_s=self._services.queue.lease_s,
            )
            self._services.wake_delivery()
            return answer(changed)
        return await self._change_text(path_id(request), checked(body, ChangeText))

    async def _change_text(self, message_id: int, change: ChangeText) -> web.Response:
        changed = await self._store.queue.change_text(message_id, change.text, op=change.op)
        self._services.wake_delivery()
        return answer(changed)

    async def _reply(self, request: web.Request) -> web.Response:
        query = read_query(request, ReplyQuery)
        question, reply = await self._wait_for_reply(path_id(request), query.wait_s)
        return web.json_response(
            {"status": question.status, "reply": None if reply is None else message_json(reply)}
        )

    async def _wait_for_reply(self, message_id: int, wait_s: float) -> tuple[Message, Message | None]:
        """Return the question and its answer once its status is final, the time is over, or june ends."""
        closing = asyncio.create_task(self._services.closing.wait())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while not closing.done():
                        changed = self._store.next_change()
                        question, reply = await self._store.feed.reply(message_id)
                        if question.status in FINAL:
                            return question, reply
                        changing = asyncio.create_task(changed.wait())
                        try:
                            await asyncio.wait((closing, changing), return_when=asyncio.FIRST_COMPLETED)
                        finally:
                            changing.cancel()
        finally:
            closing.cancel()
        return await self._store.feed.reply(message_id)
