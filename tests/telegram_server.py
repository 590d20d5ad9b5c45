"""A small Bot API server on loopback: what june relies on of Telegram, as code.

Behaviour and wording follow Telegram's own server (tdlib/telegram-bot-api, Client.cpp), as far as june
uses it.

    async with TelegramServer() as server:
        server.push("hello")                                    # a person writes; june polls server.base_url
        server.push_file("voice", ogg, duration=3)
        call = await server.wait_for(lambda call: call.method == "sendVoice" and call.ok)
        server.fail("sendVoice", too_many_requests(1))          # what becomes of the next sendVoice
"""

import asyncio
import html
import itertools
import json
import re
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import ClientSession, ClientTimeout, web

TOKEN = "123456789:AAH-a-token-that-nobody-may-see"  # noqa: S105 (of this server only)
BOT = {"id": 123456789, "is_bot": True, "first_name": "June", "username": "june_test_bot"}
ALICE = 1001
"""A person, and the private chat with her."""
GROUP = -100_500
MAX_DOWNLOAD_BYTES = 20 * 2**20
MAX_UPLOAD_BYTES = 50 * 2**20
MAX_TEXT_UTF16 = 4096
TAGS = re.compile("a|b|blockquote|code|del|em|i|ins|pre|s|span|strike|strong|tg-emoji|tg-spoiler|u")


@dataclass(frozen=True)
class Failure:
    """A failure that a request gets instead of its answer. Status 0: the connection is dropped."""

    status: int = 0
    description: str = ""
    parameters: dict[str, int] = field(default_factory=dict)
    page: str = ""
    """Whether the body is HTML, as from a proxy in between."""
    is_obeyed: bool = False
    """Whether the request is carried out, so that only its answer is lost."""


class RefusedError(Exception):
    """Ends a request with a failure."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


DROPPED = Failure()
ANSWER_LOST = Failure(is_obeyed=True)
BAD_GATEWAY = Failure(502, page="<html><head><title>502 Bad Gateway</title></head></html>")
UNAUTHORIZED = Failure(401, "Unauthorized")
NOT_FOUND = Failure(404, "Not Found")
CONFLICT = Failure(
    409, "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
)
WEBHOOK_IS_ACTIVE = Failure(
    409,
    "Conflict: can't use getUpdates method while webhook is active; "
    "use deleteWebhook to delete the webhook first",
)
BLOCKED = Failure(403, "Forbidden: bot was blocked by the user")
TOO_LARGE = Failure(413, "Request Entity Too Large")


def bad_request(description: str) -> Failure:
    return Failure(400, f"Bad Request: {description}")


def refuse(description: str) -> RefusedError:
    return RefusedError(bad_request(description))


def too_many_requests(retry_after_s: int) -> Failure:
    text = f"Too Many Requests: retry after {retry_after_s}"
    return Failure(429, text, {"retry_after": retry_after_s})


@dataclass(eq=False, slots=True)
class Call:
    """One request that june made; times by `time.monotonic`."""

    method: str
    params: dict[str, str]
    files: dict[str, bytes]
    arrived_s: float
    finished_s: float
    """When its body had been read to its end."""
    ok: bool = False
    message_id: int = 0
    """Of the message that it sent, edited or deleted."""

    @property
    def chat(self) -> int:
        """The chat of the request; 0 if it concerns none."""
        return int(self.params.get("chat_id", 0))

    @property
    def text(self) -> str:
        """The text as it was sent, with its markup."""
        return self.params.get("text", "")

    @property
    def reply_to(self) -> int:
        """The id of the message that it answers."""
        return int(json.loads(self.params.get("reply_parameters", "{}")).get("message_id", 0))

    @property
    def voice(self) -> bytes:
        """The bytes of a voice message."""
        return self.files[self.params["voice"].removeprefix("attach://")]


def utf16_units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def visible_text(markup: str) -> str:
    """Return the text that a reader sees of Telegram's HTML."""
    seen, opened = "", list[str]()
    for piece in re.findall(r"<[^>]*>?|[^<]+", markup):
        tag = re.fullmatch(r"<(/?)([a-z][a-z-]*)(\s[^>]*)?>", piece)
        if not piece.startswith("<"):
            seen += re.sub(r"&(lt|gt|amp|quot|#\d+|#x[0-9a-f]+);", lambda it: html.unescape(it[0]), piece)
        elif tag is None or not TAGS.fullmatch(tag[2]):
            raise refuse(f'can\'t parse entities: Unsupported start tag "{piece[1:-1]}"')
        elif not tag[1]:
            opened.append(tag[2])
        elif not opened or opened.pop() != tag[2]:
            raise refuse(f'can\'t parse entities: Unmatched end tag "{tag[2]}"')
    if opened:
        raise refuse(f"can't parse entities: Can't find end tag corresponding to start tag \"{opened[-1]}\"")
    return seen.strip()


class TelegramServer:
    """The server, and everything that people do in their chats."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        self.base_url = ""
        self.calls: list[Call] = []
        """Every request, refused ones too, in the order in which they were answered."""
        self.messages: dict[tuple[int, int], dict[str, Any]] = {}
        """What stands in the chats, by chat and message id."""
        self.pushed_s: dict[int, float] = {}
        """When a person's message was sent, by its id."""
        self.next_update_id = 700_000_001
        self.webhook: dict[str, str] = {}
        self.upgraded: dict[int, int] = {}
        """Groups that became supergroups, with the supergroups' ids."""
        self._updates: deque[dict[str, Any]] = deque()
        self._files: dict[str, bytes] = {}
        self._links: dict[str, bytes] = {}
        self._failures: dict[str, deque[Failure]] = {}
        self._ids = itertools.count(1)
        self._changed = asyncio.Event()
        self._poll: Call | None = None
        self._methods: dict[str, Callable[[Call], Any]] = {
            "getMe": lambda _: BOT,
            "getFile": self._get_file,
            "getWebhookInfo": lambda _: {
                "url": self.webhook.get("url", ""),
                "has_custom_certificate": False,
                "pending_update_count": len(self._updates),
            },
            "setWebhook": self._set_webhook,
            "deleteWebhook": self._delete_webhook,
            "setMyCommands": lambda _: True,
            "sendMessage": self._send_message,
            "sendVoice": self._send_voice,
            "sendChatAction": lambda _: True,
            "sendMessageDraft": self._send_draft,
            "editMessageText": self._edit,
            "deleteMessage": self._delete,
        }

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2 * MAX_UPLOAD_BYTES)
        app.router.add_post("/bot{token}/{method}", self._answer)
        app.router.add_get("/file/bot{token}/{path:.+}", self._hand_out_file)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    # What people do

    def push(
        self,
        text: str = "",
        *,
        user: int = ALICE,
        chat: int = 0,
        topic: int = 0,
        reply_to: int = 0,
        **fields: Any,
    ) -> int:
        """Send a message, by default to june in private, and return its id.

        Args:
            text: of which commands and mentions become entities, as in the apps.
            user: who sends it.
            chat: negative for a group; 0: the private chat with `user`.
            topic: the forum topic's id.
            reply_to: the id of the message that it answers.
            fields: any others of Telegram's Message, or in place of these.
        """
        chat = chat or user
        message: dict[str, Any] = {
            "message_id": next(self._ids),
            "date": int(time.time()),
            "from": {"id": user, "is_bot": False, "first_name": f"Person {user}"},
            "chat": {"id": chat, "type": "private" if chat > 0 else "supergroup"},
        }
        if text:
            message |= {"text": text, "entities": entities(text)}
        if topic:
            message |= {"message_thread_id": topic, "is_topic_message": True}
        if reply_to:
            message["reply_to_message"] = self.messages[chat, reply_to]
        message |= fields
        self.messages[chat, message["message_id"]] = message
        self.pushed_s[message["message_id"]] = time.monotonic()
        self.push_update({"message": message})
        return int(message["message_id"])

    def push_file(
        self,
        kind: Literal["voice", "audio", "video_note", "document"],
        data: bytes,
        *,
        caption: str = "",
        file: dict[str, Any] | None = None,
        **message: Any,
    ) -> int:
        """Send a recording and return the id of its message.

        Args:
            kind: what it is sent as.
            data: what a download gives.
            caption: the text below it.
            file: fields of the recording, such as `duration`, `mime_type`, or a `file_size` that is not true.
            message: as for `push`.
        """
        file_id = f"{kind}-{next(self._ids)}"
        self._files[file_id] = data
        about = {"file_id": file_id, "file_unique_id": f"u-{file_id}", "file_size": len(data)}
        if kind != "document":
            about["duration"] = 1
        if kind == "video_note":
            about["length"] = 240
        message[kind] = about | (file or {})
        if caption:
            message |= {"caption": caption, "caption_entities": entities(caption)}
        return self.push(**message)

    def upgrade(self, group: int, supergroup: int) -> None:
        """Turn a group into a supergroup: both chats are told, and the group accepts nothing any more."""
        self.upgraded[group] = supergroup
        self.push(chat=group, migrate_to_chat_id=supergroup)
        self.push(chat=supergroup, migrate_from_chat_id=group)

    def push_update(self, update: dict[str, Any]) -> None:
        """Queue an update as it is; one without a message, or with one that no program understands."""
        self._updates.append({"update_id": self.next_update_id, **update})
        self.next_update_id += 1
        self._pulse()

    # What tests ask and decide

    @property
    def pending(self) -> int:
        """The number of updates that june has not acknowledged."""
        return len(self._updates)

    def sent(self, method: str, chat: int | None = None) -> list[Call]:
        """Return the requests that were carried out."""
        return [it for it in self.calls if it.ok and it.method == method and chat in {None, it.chat}]

    async def wait_for(
        self, predicate: Callable[[Call], bool], *, count: int = 1, timeout_s: float = 20
    ) -> Call:
        """Return the `count`th request for which the predicate holds, as soon as it is answered."""
        async with asyncio.timeout(timeout_s):
            while len(found := [it for it in self.calls if predicate(it)]) < count:
                await self._changed.wait()
        return found[count - 1]

    async def acknowledged(self) -> None:
        """Wait until june has acknowledged every update."""
        async with asyncio.timeout(20):
            while self._updates:
                await self._changed.wait()

    def fail(self, method: str, *failures: Failure) -> None:
        """Let the next requests for a method fail in this order; "file" is the download of a file."""
        self._failures.setdefault(method, deque()).extend(failures)

    def expire_links(self) -> None:
        """Forget every link to a file that getFile gave."""
        self._links.clear()

    async def call_webhook(
        self, url: str, *, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> int:
        """POST the oldest update to june as Telegram does; forget it if june took it; return the status."""
        headers = headers or {"X-Telegram-Bot-Api-Secret-Token": self.webhook["secret_token"]}
        data = body or json.dumps(self._updates[0]).encode()
        async with (
            ClientSession(timeout=ClientTimeout(10)) as session,
            session.post(url, data=data, headers={"Content-Type": "application/json", **headers}) as response,
        ):
            if response.ok and not body:
                self._updates.popleft()
            return response.status

    # What june asks for

    def _pulse(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _answer(self, request: web.Request) -> web.Response:
        arrived_s = time.monotonic()
        form = await request.post()
        call = Call(
            method=request.match_info["method"],
            params={name: value for name, value in form.items() if isinstance(value, str)},
            files={name: it.file.read() for name, it in form.items() if isinstance(it, web.FileField)},
            arrived_s=arrived_s,
            finished_s=time.monotonic(),
        )
        failure = self._next_failure(call.method)
        result: Any = None
        try:
            if failure is None or failure.is_obeyed:
                result = await self._carry_out(call, request.match_info["token"])
                call.ok = True
        except RefusedError as refused:
            failure = refused.failure
        self.calls.append(call)
        self._pulse()
        if failure is not None:
            return self._refuse(request, failure)
        return web.json_response({"ok": True, "result": result})

    async def _carry_out(self, call: Call, token: str) -> Any:
        if token != self.token:
            raise RefusedError(UNAUTHORIZED)
        if call.method == "getUpdates":
            return await self._get_updates(call)
        if call.method not in self._methods:
            raise RefusedError(NOT_FOUND)
        if call.chat in self.upgraded:
            description = "Bad Request: group chat was upgraded to a supergroup chat"
            raise RefusedError(Failure(400, description, {"migrate_to_chat_id": self.upgraded[call.chat]}))
        return self._methods[call.method](call)

    def _next_failure(self, method: str) -> Failure | None:
        failures = self._failures.get(method)
        return failures.popleft() if failures else None

    @staticmethod
    def _refuse(request: web.Request, failure: Failure) -> web.Response:
        if failure.status == 0:
            assert request.transport is not None
            request.transport.abort()
        if failure.page:
            return web.Response(status=failure.status, text=failure.page, content_type="text/html")
        answer = {"ok": False, "error_code": failure.status, "description": failure.description}
        if failure.parameters:
            answer["parameters"] = failure.parameters
        return web.json_response(answer, status=failure.status or 500)

    async def _get_updates(self, call: Call) -> list[dict[str, Any]]:
        """Return the updates from the offset on, again if asked again, and forget those before it."""
        if self.webhook:
            raise RefusedError(WEBHOOK_IS_ACTIVE)
        self._poll = call
        offset = int(call.params.get("offset", 0))
        if offset <= self.next_update_id + 10:  # one from the future counts for nothing
            while self._updates and self._updates[0]["update_id"] < offset:
                self._updates.popleft()
        self._pulse()
        with suppress(TimeoutError):
            async with asyncio.timeout(int(call.params.get("timeout", 0))):
                while not self._updates and self._poll is call:
                    await self._changed.wait()
        if self._poll is not call:
            raise RefusedError(CONFLICT)
        return list(self._updates)[: min(int(call.params.get("limit", 100)), 100)]

    def _get_file(self, call: Call) -> dict[str, Any]:
        file_id = call.params["file_id"]
        if file_id not in self._files:
            raise refuse("wrong file_id or the file is temporarily unavailable")
        data = self._files[file_id]
        if len(data) > MAX_DOWNLOAD_BYTES:
            raise refuse("file is too big")
        path = f"voice/file_{next(self._ids)}.oga"
        self._links[path] = data
        return {
            "file_id": file_id,
            "file_unique_id": f"u-{file_id}",
            "file_size": len(data),
            "file_path": path,
        }

    async def _hand_out_file(self, request: web.Request) -> web.Response:
        failure = self._next_failure("file")
        if failure is None and request.match_info["path"] not in self._links:
            failure = NOT_FOUND
        if failure is not None:
            return self._refuse(request, failure)
        return web.Response(body=self._links[request.match_info["path"]])

    def _set_webhook(self, call: Call) -> bool:
        if not call.params["url"].startswith("https://"):
            raise refuse("bad webhook: An HTTPS URL must be provided for webhook")
        self.webhook = call.params
        return True

    def _delete_webhook(self, _: Call) -> bool:
        self.webhook = {}
        return True

    def _check_text(self, call: Call) -> None:
        text = (
            visible_text(call.text)
            if call.params.get("parse_mode", "").lower() == "html"
            else call.text.strip()
        )
        if not text:
            raise refuse("message text is empty")
        if utf16_units(text) > MAX_TEXT_UTF16:
            raise refuse("message is too long")

    def _send(self, call: Call, **content: Any) -> dict[str, Any]:
        reply = json.loads(call.params.get("reply_parameters", "{}"))
        answered = self.messages.get((call.chat, reply.get("message_id", 0)))
        if reply and answered is None and not reply.get("allow_sending_without_reply"):
            raise refuse("message to be replied not found")
        call.message_id = next(self._ids)
        message: dict[str, Any] = {
            "message_id": call.message_id,
            "date": int(time.time()),
            "from": BOT,
            "chat": {"id": call.chat, "type": "private" if call.chat > 0 else "supergroup"},
            **content,
        }
        if answered is not None:
            message["reply_to_message"] = {**answered, "reply_to_message": None}
        self.messages[call.chat, call.message_id] = message
        return message

    def _send_message(self, call: Call) -> dict[str, Any]:
        self._check_text(call)
        return self._send(call, text=call.text)

    def _send_voice(self, call: Call) -> dict[str, Any]:
        if len(call.voice) > MAX_UPLOAD_BYTES:
            raise RefusedError(TOO_LARGE)
        about = {"file_id": f"sent-{len(self.calls)}", "file_unique_id": f"u-sent-{len(self.calls)}"}
        return self._send(call, voice=about | {"duration": int(call.params["duration"])})

    def _send_draft(self, call: Call) -> bool:
        if call.chat < 0 or int(call.params["draft_id"]) == 0:
            raise refuse("TEXTDRAFT_PEER_INVALID")
        if call.text:  # without one, "Thinking…" is shown
            self._check_text(call)
        return True

    def _edit(self, call: Call) -> dict[str, Any]:
        call.message_id = int(call.params["message_id"])
        message = self.messages.get((call.chat, call.message_id))
        if message is None or message["from"] != BOT:
            raise refuse("message to edit not found" if message is None else "message can't be edited")
        self._check_text(call)
        if message.get("text") == call.text:
            raise refuse(
                "message is not modified: specified new message content and reply markup are exactly the "
                "same as a current content and reply markup of the message"
            )
        message["text"] = call.text
        return message

    def _delete(self, call: Call) -> bool:
        call.message_id = int(call.params["message_id"])
        if self.messages.pop((call.chat, call.message_id), None) is None:
            raise refuse("message to delete not found")
        return True


def entities(text: str) -> list[dict[str, Any]]:
    """Return commands at the beginning and mentions anywhere, with offsets in UTF-16 units."""
    found = [("bot_command", it) for it in re.finditer(r"^/\w+(@\w+)?", text)]
    found += [("mention", it) for it in re.finditer(r"(?<![\w/])@\w+", text)]
    return [
        {"type": kind, "offset": utf16_units(text[: it.start()]), "length": utf16_units(it[0])}
        for kind, it in found
    ]
