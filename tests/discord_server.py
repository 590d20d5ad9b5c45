"""A small Discord on loopback: REST, gateway and CDN, as far as june uses them.

    async with DiscordServer(token="abc") as server:
        settings = DiscordSettings(token="abc", api_base=server.api_base, gateway=server.gateway)
        ...
        channel = server.open_dm("77")
        await server.say(channel, "77", "hello")
        answer = await server.sent_where(lambda sent: sent.channel_id == channel)

It checks what it is sent as Discord does: the token, the length of a text, the rules of voice messages.
Answers are JSON without a charset, since discord.py compares the whole header.
"""

import asyncio
import itertools
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web

Json = dict[str, Any]

BOT_ID = "4000"
APPLICATION_ID = "4001"
GUILD_ID = "5000"
OWNER_ID = "1"
DISCORD_EPOCH_MS = 1_420_070_400_000
VOICE = 1 << 13
GUILDS, GUILD_MESSAGES, MESSAGE_CONTENT = 1 << 0, 1 << 9, 1 << 15
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Failure:
    """A failure that a route answers with; without a status, the connection is dropped."""

    status: int = 0
    body: Json | str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    after_work: bool = False
    """Whether the request is carried out first, so that only its answer is lost."""


def too_many_requests(retry_after_s: float, *, via: bool) -> Failure:
    """Return 429 from Discord itself, which discord.py obeys, or, without `Via`, from a proxy before it."""
    headers = {"Retry-After": str(retry_after_s)} | ({"Via": "1.1 google"} if via else {})
    body = {"message": "You are being rate limited.", "retry_after": retry_after_s, "global": False}
    return Failure(429, body, headers)


def refusal(status: int, code: int, message: str = "refused") -> Failure:
    """Return an error of Discord's API, such as (403, 50013)."""
    return Failure(status, {"message": message, "code": code})


@dataclass(frozen=True)
class Sent:
    """A message that the bot sent."""

    channel_id: str
    message_id: str
    content: str
    flags: int
    reply_to: str
    """The message it refers to; "" when that does not exist."""
    payload: Json
    """As it was posted."""
    files: tuple[bytes, ...]
    through: Literal["channel", "interaction", "followup"]


@dataclass
class _Session:
    events: list[Json]
    request: web.Request
    socket: web.WebSocketResponse | None


@dataclass
class _Interaction:
    channel_id: str
    token: str
    is_answered: bool = False


class _RefusedError(Exception):
    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class DiscordServer:
    """The Discord of one bot; the public lists hold what the bot did, the newest last."""

    def __init__(self, *, token: str, port: int = 0) -> None:
        self.token = token
        self.port = port
        self.sent: list[Sent] = []
        self.edits: list[tuple[str, str, str]] = []
        """Channel, message, new text."""
        self.deleted: list[tuple[str, str]] = []
        self.typing: list[str] = []
        self.commands: list[Json] = []
        self.requests: list[str] = []
        """Such as "POST /channels/{channel}/messages"."""
        self.identified = 0
        self.resumed = 0
        self.is_gateway_open = True
        self.allows_message_content = True
        self._channels: dict[str, Json] = {}
        self._messages: defaultdict[str, dict[str, Json]] = defaultdict(dict)
        self._recordings: dict[str, tuple[bytes, int]] = {}
        """Attachment -> its bytes, and how often its link has expired."""
        self._interactions: dict[str, _Interaction] = {}
        self._nonces: dict[str, Json] = {}
        self._sessions: dict[str, _Session] = {}
        self._failures: defaultdict[str, deque[Failure]] = defaultdict(deque)
        self._counter = itertools.count()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20, middlewares=[self._middleware])
        app.add_routes(
            [
                web.get("/api/users/@me", self._me),
                web.get("/api/oauth2/applications/@me", self._application),
                web.put("/api/applications/{application}/commands", self._put_commands),
                web.get("/api/channels/{channel}", self._get_channel),
                web.get("/api/channels/{channel}/messages", self._history),
                web.post("/api/channels/{channel}/messages", self._post_message),
                web.get("/api/channels/{channel}/messages/{message}", self._get_message),
                web.patch("/api/channels/{channel}/messages/{message}", self._edit_message),
                web.delete("/api/channels/{channel}/messages/{message}", self._delete_message),
                web.post("/api/channels/{channel}/typing", self._type),
                web.post("/api/users/@me/channels", self._create_dm),
                web.post("/api/interactions/{interaction}/{token}/callback", self._respond),
                web.post("/api/webhooks/{application}/{token}", self._follow_up),
                web.get("/cdn/{attachment}/{expired}/{name}", self._recording),
                web.get("/gateway", self._gateway),
                web.get("/gateway/", self._gateway),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_gateway(1001)
        await self._runner.cleanup()

    @property
    def api_base(self) -> str:
        """For `discord.api_base`."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def gateway(self) -> str:
        """For `discord.gateway`."""
        return f"ws://127.0.0.1:{self.port}/gateway"

    # What people do

    def open_dm(self, user: str) -> str:
        """Open a direct channel with that user and return its id."""
        return self._add_channel({"type": 1, "recipients": [_user(user)], "last_message_id": None})

    def open_channel(self, name: str = "general") -> str:
        """Open a text channel in the guild and return its id; call this before june connects."""
        return self._add_channel(
            {"type": 0, "guild_id": GUILD_ID, "name": name, "position": 0, "permission_overwrites": []}
        )

    def open_thread(self, parent: str, *, guild: str = GUILD_ID) -> str:
        """Open a thread without telling june and return its id; june may not know its guild."""
        times = {"archived": False, "auto_archive_duration": 1440, "archive_timestamp": _now()}
        thread = {
            "type": 11,
            "guild_id": guild,
            "parent_id": parent,
            "name": "thread",
            "owner_id": OWNER_ID,
        }
        return self._add_channel({**thread, "thread_metadata": times, "message_count": 0, "member_count": 1})

    async def say(
        self,
        channel: str,
        author: str,
        content: str = "",
        *,
        voice: bytes | None = None,
        audio: bytes | None = None,
        duration_s: float = 2.0,
        reply_to: str = "",
        **extra: Any,
    ) -> str:
        """Send a text, a voice message or an audio file and return its id; `<@BOT_ID>` mentions june.

        While june is not connected it stands in the channel's history only.
        """
        message = self._message(channel, _user(author), content)
        if voice is not None:
            message["flags"] = VOICE
            sound = {"duration_secs": duration_s, "waveform": "AAAA"}
            message["attachments"] = [self._attach("voice-message.ogg", "audio/ogg", voice) | sound]
        if audio is not None:
            message["attachments"] = [self._attach("tune.mp3", "audio/mpeg", audio)]
        if f"<@{BOT_ID}>" in content:
            message["mentions"] = [_user(BOT_ID)]
        if reply_to:
            self._refer(message, channel, reply_to)
        message |= extra
        self._messages[channel][message["id"]] = message
        where = self._channels[channel]
        guild = {"guild_id": where["guild_id"], "member": _member()} if "guild_id" in where else {}
        await self._dispatch("MESSAGE_CREATE", message | guild)
        return str(message["id"])

    async def use_command(self, channel: str, user: str, name: str, argument: str = "") -> str:
        """Choose a slash command for a user and return the id of the interaction."""
        identifier = self._snowflake()
        self._interactions[identifier] = _Interaction(channel, f"token-of-{identifier}")
        options = [{"name": "argument", "type": 3, "value": argument}] if argument else []
        interaction = {
            "id": identifier,
            "application_id": APPLICATION_ID,
            "type": 2,
            "token": f"token-of-{identifier}",
            "version": 1,
            "channel_id": channel,
            "channel": self._channels[channel],
            "data": {"id": self._snowflake(), "name": name, "type": 1, "options": options},
            "entitlements": [],
            "authorizing_integration_owners": {},
            "app_permissions": "0",
            "attachment_size_limit": 10 << 20,
            "locale": "en-US",
        }
        if "guild_id" in self._channels[channel]:
            interaction |= {"guild_id": GUILD_ID, "member": _member() | {"user": _user(user)}}
        else:
            interaction["user"] = _user(user)
        await self._dispatch("INTERACTION_CREATE", interaction)
        return identifier

    def expire_links(self) -> None:
        """Make all links to recordings that were handed out until now expire."""
        self._recordings = {key: (data, expired + 1) for key, (data, expired) in self._recordings.items()}

    def forget_message(self, channel: str, message: str) -> None:
        """Delete a message, as its author does."""
        del self._messages[channel][message]

    def expire_interaction(self, interaction: str) -> None:
        """Let an interaction expire, as it does after three seconds without an answer."""
        del self._interactions[interaction]

    # What goes wrong

    def fail(self, route: str, *failures: Failure) -> None:
        """Let the next requests of a route, such as "POST /channels/{channel}/messages", fail in order."""
        self._failures[route].extend(failures)

    async def drop_gateway(self) -> None:
        """Cut the websocket without a close frame; the session can be resumed."""
        for session in self._sessions.values():
            if session.socket is not None and session.request.transport is not None:
                session.socket = None
                session.request.transport.abort()

    async def invalidate_session(self) -> None:
        """End the session with opcode 9; events that it missed are lost to the gateway."""
        sockets = [session.socket for session in self._sessions.values() if session.socket is not None]
        self._sessions.clear()
        for socket in sockets:
            await socket.send_json({"op": 9, "d": False})

    async def close_gateway(self, code: int) -> None:
        """Close every websocket with this code; the sessions can be resumed."""
        for session in self._sessions.values():
            if session.socket is not None:
                socket, session.socket = session.socket, None
                await socket.close(code=code)

    # What the bot did

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until a condition holds; it is checked after every request and gateway message."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: bool(holds()))

    async def sent_where(self, matches: Callable[[Sent], object]) -> Sent:
        """Return the bot's first message that matches, as soon as there is one."""
        await self.until(lambda: any(map(matches, self.sent)))
        return next(filter(matches, self.sent))

    @property
    def is_connected(self) -> bool:
        """Whether a gateway session is open."""
        return any(session.socket is not None for session in self._sessions.values())

    # Gateway

    async def _gateway(self, request: web.Request) -> web.StreamResponse:
        if not self.is_gateway_open:
            return web.Response(status=503)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"op": 10, "d": {"heartbeat_interval": 41_250}})
        async for frame in socket:
            op, data = (frame.json()[key] for key in ("op", "d"))
            if op == 1:
                await socket.send_json({"op": 11})
            elif op == 2:
                await self._identify(request, socket, data)
            elif op == 6:
                await self._resume(request, socket, data)
            await self._notify()
        for session in self._sessions.values():
            if session.socket is socket:
                session.socket = None
        return socket

    async def _identify(self, request: web.Request, socket: web.WebSocketResponse, data: Json) -> None:
        if data["token"] != self.token:
            await socket.close(code=4004)
            return
        if data["intents"] & MESSAGE_CONTENT and not self.allows_message_content:
            await socket.close(code=4014)
            return
        self.identified += 1
        name = f"session-{self.identified}"
        session = self._sessions[name] = _Session([], request, socket)
        ready = {
            "v": 10,
            "user": _user(BOT_ID),
            "guilds": [{"id": GUILD_ID, "unavailable": True}],
            "session_id": name,
            "resume_gateway_url": self.gateway,
            "application": {"id": APPLICATION_ID, "flags": 0},
        }
        await self._send_event(session, "READY", ready)
        await self._send_event(session, "GUILD_CREATE", self._guild())

    async def _resume(self, request: web.Request, socket: web.WebSocketResponse, data: Json) -> None:
        session = self._sessions.get(data["session_id"] or "")
        if session is None or data["token"] != self.token:
            await socket.send_json({"op": 9, "d": False})
            return
        self.resumed += 1
        session.request, session.socket = request, socket
        for event in session.events[data["seq"] :]:
            await socket.send_json(event)
        await self._send_event(session, "RESUMED", {})

    async def _dispatch(self, name: str, data: Json) -> None:
        for session in self._sessions.values():
            await self._send_event(session, name, data)

    async def _send_event(self, session: _Session, name: str, data: Json) -> None:
        event = {"op": 0, "t": name, "s": len(session.events) + 1, "d": data}
        session.events.append(event)
        if session.socket is not None and not session.socket.closed:
            await session.socket.send_json(event)

    # REST

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = f"{request.method} {(resource.canonical if resource else '?').removeprefix('/api')}"
        self.requests.append(route)
        failure = self._failures[route].popleft() if self._failures[route] else None
        response: web.StreamResponse
        try:
            if request.path.startswith("/api/") and "{token}" not in route:
                self._check_token(request)
            if failure is None or failure.after_work:
                response = await handler(request)
        except _RefusedError as error:
            response = _json({"message": str(error), "code": error.code}, error.status)
        if failure is not None:
            response = await _failed(request, failure)
        await self._notify()
        return response

    def _check_token(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bot {self.token}":
            raise _RefusedError(401, 0, "401: Unauthorized")

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _me(self, _: web.Request) -> web.Response:
        return _json(_user(BOT_ID))

    async def _application(self, _: web.Request) -> web.Response:
        info = {"id": APPLICATION_ID, "name": "june", "icon": None, "description": "", "flags": 0}
        rights = {"bot_public": True, "bot_require_code_grant": False, "verify_key": "00"}
        return _json(info | rights | {"owner": _user(OWNER_ID), "team": None})

    async def _put_commands(self, request: web.Request) -> web.Response:
        self.commands = await request.json()
        version = {"application_id": APPLICATION_ID, "version": "1"}
        return _json([{"id": self._snowflake(), **version, **command} for command in self.commands])

    async def _create_dm(self, request: web.Request) -> web.Response:
        return _json(self._channels[self.open_dm(str((await request.json())["recipient_id"]))])

    async def _get_channel(self, request: web.Request) -> web.Response:
        return _json(self._channel(request))

    async def _history(self, request: web.Request) -> web.Response:
        messages = list(self._messages[self._channel(request)["id"]].values())
        after, before = int(request.query.get("after", 0)), int(request.query.get("before", 1 << 63))
        limit = int(request.query.get("limit", 50))
        found = [message for message in messages if after < int(message["id"]) < before]
        found = found[:limit] if "after" in request.query else found[-limit:]
        return _json([self._renewed(message) for message in reversed(found)])

    async def _get_message(self, request: web.Request) -> web.Response:
        return _json(self._renewed(self._existing(request)))

    async def _post_message(self, request: web.Request) -> web.Response:
        payload, files = await _read(request)
        return _json(self._accept(self._channel(request)["id"], payload, files, "channel"))

    async def _edit_message(self, request: web.Request) -> web.Response:
        message = self._existing(request)
        if message["author"]["id"] != BOT_ID:
            raise _RefusedError(403, 50005, "Cannot edit a message authored by another user")
        if message["flags"] & VOICE:
            raise _RefusedError(400, 50162, "Voice messages cannot be edited")
        content = (await request.json())["content"]
        _check_content(content)
        message["content"] = content
        self.edits.append((message["channel_id"], message["id"], content))
        return _json(message)

    async def _delete_message(self, request: web.Request) -> web.Response:
        message = self._existing(request)
        self.forget_message(message["channel_id"], message["id"])
        self.deleted.append((message["channel_id"], message["id"]))
        return web.Response(status=204)

    async def _type(self, request: web.Request) -> web.Response:
        self.typing.append(self._channel(request)["id"])
        return web.Response(status=204)

    async def _respond(self, request: web.Request) -> web.Response:
        identifier = request.match_info["interaction"]
        interaction = self._interactions.get(identifier)
        if interaction is None:
            raise _RefusedError(404, 10062, "Unknown interaction")
        if interaction.is_answered:
            raise _RefusedError(400, 40060, "Interaction has already been acknowledged.")
        payload, files = await _read(request)
        resource: Json = {"type": payload["type"]}
        described = {"id": identifier, "type": 2}
        if payload["type"] == 4:
            message = self._accept(interaction.channel_id, payload["data"], files, "interaction")
            resource["message"] = message
            described["response_message_id"] = message["id"]
        interaction.is_answered = True
        return _json({"interaction": described, "resource": resource})

    async def _follow_up(self, request: web.Request) -> web.Response:
        for interaction in self._interactions.values():
            if interaction.token == request.match_info["token"] and interaction.is_answered:
                payload, files = await _read(request)
                return _json(self._accept(interaction.channel_id, payload, files, "followup"))
        raise _RefusedError(404, 10015, "Unknown Webhook")

    async def _recording(self, request: web.Request) -> web.Response:
        data, expired = self._recordings.get(request.match_info["attachment"], (b"", -1))
        if expired != int(request.match_info["expired"]):
            return web.Response(status=404, text="This content is no longer available.")
        return web.Response(body=data, content_type="audio/ogg")

    # Messages

    def _accept(
        self,
        channel: str,
        payload: Json,
        files: Sequence[bytes],
        through: Literal["channel", "interaction", "followup"],
    ) -> Json:
        content, flags = payload.get("content") or "", payload.get("flags", 0)
        nonce = payload.get("nonce")
        if nonce in self._nonces and payload.get("enforce_nonce"):
            return self._nonces[nonce]
        _check_content(content, is_needed=not files)
        if flags & VOICE:
            _check_voice(payload, files)
        message = self._message(channel, _user(BOT_ID), content) | {"flags": flags}
        for described, data in zip(payload.get("attachments", []), files, strict=True):
            sound = {key: described[key] for key in ("duration_secs", "waveform") if key in described}
            attachment = self._attach(described["filename"], "audio/ogg", data)
            message["attachments"].append(attachment | sound)
        reference = payload.get("message_reference", {})
        reply_to = str(reference.get("message_id", ""))
        if reply_to in self._messages[channel]:
            self._refer(message, channel, reply_to)
        elif reply_to and reference.get("fail_if_not_exists", True):
            raise _RefusedError(400, 50035, "Unknown message")
        else:
            reply_to = ""
        self._messages[channel][message["id"]] = message
        if nonce is not None:
            self._nonces[nonce] = message
        sent = Sent(channel, message["id"], content, flags, reply_to, payload, tuple(files), through)
        self.sent.append(sent)
        return message

    def _message(self, channel: str, author: Json, content: str) -> Json:
        return {
            "id": self._snowflake(),
            "channel_id": channel,
            "type": 0,
            "author": author,
            "content": content,
            "timestamp": _now(),
            "edited_timestamp": None,
            "tts": False,
            "mention_everyone": False,
            "mentions": [],
            "mention_roles": [],
            "attachments": [],
            "embeds": [],
            "pinned": False,
            "flags": 0,
        }

    def _refer(self, message: Json, channel: str, reply_to: str) -> None:
        message["type"] = 19
        message["message_reference"] = {"type": 0, "channel_id": channel, "message_id": reply_to}
        message["referenced_message"] = self._messages[channel].get(reply_to)

    def _attach(self, name: str, content_type: str, data: bytes) -> Json:
        identifier = self._snowflake()
        self._recordings[identifier] = (data, 0)
        url = self._link(identifier, name)
        described = {"id": identifier, "filename": name, "content_type": content_type, "size": len(data)}
        return {**described, "url": url, "proxy_url": url}

    def _link(self, attachment: str, name: str) -> str:
        expired = self._recordings[attachment][1]
        return f"http://127.0.0.1:{self.port}/cdn/{attachment}/{expired}/{name}"

    def _renewed(self, message: Json) -> Json:
        attachments = [
            attachment | {"url": self._link(attachment["id"], attachment["filename"])}
            for attachment in message["attachments"]
        ]
        return message | {"attachments": attachments}

    def _channel(self, request: web.Request) -> Json:
        try:
            return self._channels[request.match_info["channel"]]
        except KeyError:
            raise _RefusedError(404, 10003, "Unknown Channel") from None

    def _existing(self, request: web.Request) -> Json:
        try:
            return self._messages[self._channel(request)["id"]][request.match_info["message"]]
        except KeyError:
            raise _RefusedError(404, 10008, "Unknown Message") from None

    def _add_channel(self, channel: Json) -> str:
        identifier = self._snowflake()
        self._channels[identifier] = {"id": identifier, **channel}
        return identifier

    def _snowflake(self) -> str:
        count = next(self._counter)
        return str((int(time.time() * 1000) - DISCORD_EPOCH_MS << 22) + count)

    def _guild(self) -> Json:
        channels = [channel for channel in self._channels.values() if channel["type"] == 0]
        everyone = {"id": GUILD_ID, "name": "@everyone", "color": 0, "hoist": False, "position": 0}
        rights = {"permissions": "0", "managed": False, "mentionable": False, "flags": 0}
        return {
            "id": GUILD_ID,
            "name": "guild",
            "owner_id": OWNER_ID,
            "roles": [everyone | rights],
            "channels": channels,
            "threads": [],
            "members": [_member() | {"user": _user(BOT_ID)}],
            "member_count": 2,
            "emojis": [],
            "features": [],
            "unavailable": False,
        }


def _user(identifier: str) -> Json:
    is_bot = identifier == BOT_ID
    name = "june" if is_bot else f"user{identifier}"
    return {"id": identifier, "username": name, "discriminator": "0", "avatar": None, "bot": is_bot}


def _member() -> Json:
    return {"roles": [], "joined_at": _now(), "deaf": False, "mute": False, "flags": 0}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())


def _json(data: object, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(data).encode(), content_type="application/json", status=status)


async def _failed(request: web.Request, failure: Failure) -> web.StreamResponse:
    if not failure.status:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()
    if isinstance(failure.body, str):
        body, content_type = failure.body.encode(), "text/html"
    else:
        body, content_type = json.dumps(failure.body).encode(), "application/json"
    return web.Response(status=failure.status, body=body, content_type=content_type, headers=failure.headers)


async def _read(request: web.Request) -> tuple[Json, list[bytes]]:
    if request.content_type == "application/json":
        return await request.json(), []
    form = await request.post()
    payload: Json = json.loads(str(form["payload_json"]))
    parts = [part for part in form.values() if isinstance(part, web.FileField)]
    for described, part in zip(payload.get("attachments", []), parts, strict=True):
        if not part.content_type.startswith("audio/"):  # discord/discord-api-docs#7161
            described.pop("duration_secs", None)
            described.pop("waveform", None)
    return payload, [part.file.read() for part in parts]


def _check_content(content: str, *, is_needed: bool = True) -> None:
    if is_needed and not content.strip():
        raise _RefusedError(400, 50006, "Cannot send an empty message")
    if len(content) > 2000:
        raise _RefusedError(400, 50035, "Invalid Form Body")


def _check_voice(payload: Json, files: Sequence[bytes]) -> None:
    attachments = payload.get("attachments", [])
    if payload.get("content") or payload.get("embeds"):
        raise _RefusedError(400, 50159, "Voice messages do not support additional content.")
    if len(attachments) != 1 or len(files) != 1 or not files[0].startswith(b"OggS"):
        raise _RefusedError(400, 50160, "Voice messages must have a single audio attachment.")
    if not attachments[0].get("duration_secs") or not attachments[0].get("waveform"):
        raise _RefusedError(400, 50161, "Voice messages must have supporting metadata.")
