"""Telegram's adapter against a Bot API server on loopback, through aiogram and real HTTP."""

import asyncio
import json
import logging
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramBadRequest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from teremok import MockedSession
from teremok.validation import validate_html

from june.backoff import BackOff
from june.chat import Adapter, CommandInfo
from june.chat.telegram import receiving
from june.chat.telegram.adapter import Telegram
from june.chat.telegram.formatting import visible_telegram
from june.chat.telegram.reading import Me, Update, read
from june.chat.telegram.settings import TelegramSettings
from june.errors import AdapterError, DeliveryError, Refusal, SettingsError, StoreError
from june.messages import Attachment, Delivered, Inbound, Voice
from june.sections import DeliverySettings
from tests import telegram_server as api
from tests.telegram_server import ALICE, BOT, GROUP, TOKEN, Call, Failure, TelegramServer

COMMANDS = (
    CommandInfo("help", "What I can do"),
    CommandInfo("voice", "How I answer", argument="on | off | both"),
    CommandInfo("pair", "A code for a newcomer", owners_only=True),
)
VOICE = Voice(ogg_opus=b"OggS and the rest", duration_s=2.6, waveform=b"\x10\x20")
SECRET = "a-secret-of-the-webhook"  # noqa: S105


class Inbox:
    """An inbox in memory, which can fail or take its time."""

    def __init__(self) -> None:
        self.messages: list[Inbound] = []
        self.cursors: dict[str, str] = {}
        self.moves: list[tuple[str, str, int]] = []
        self.error: StoreError | None = None
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        self.asked = asyncio.Event()
        self._changed = asyncio.Event()

    async def receive(self, batch: Sequence[Inbound], *, cursor: tuple[str, str] | None = None) -> None:
        """Keep it all, or fail with `error`."""
        self.asked.set()
        await self.may_commit.wait()
        if self.error is not None:
            raise self.error
        self.messages += batch
        self.cursors |= [cursor] if cursor else []
        self._changed.set()

    async def moved(self, old: str, new: str) -> None:
        """Note it, in the order of what arrives."""
        self.moves.append((old, new, len(self.messages)))
        self._changed.set()

    async def cursor(self, name: str) -> str:
        """Return the last one."""
        return self.cursors.get(name, "")

    async def count(self, number: int) -> list[Inbound]:
        """All messages, once there are so many."""
        async with asyncio.timeout(10):
            while len(self.messages) < number:
                self._changed.clear()
                await self._changed.wait()
        return self.messages


class Events:
    """What june logs, as it happens."""

    def __init__(self) -> None:
        self.seen: list[MutableMapping[str, Any]] = []
        self._changed = asyncio.Event()

    def __call__(self, _: object, __: str, event: MutableMapping[str, Any]) -> str:
        """Keep the event, as a processor of structlog's."""
        self.seen.append(dict(event))
        self._changed.set()
        raise structlog.DropEvent

    async def wait_for(self, name: str) -> MutableMapping[str, Any]:
        """Return the first event of that name."""
        async with asyncio.timeout(10):
            while not (found := [event for event in self.seen if event["event"] == name]):
                self._changed.clear()
                await self._changed.wait()
        return found[0]


@pytest.fixture
def events() -> Iterator[Events]:
    seen = Events()
    structlog.configure(processors=[seen])
    yield seen
    structlog.reset_defaults()


@pytest.fixture
async def server() -> AsyncIterator[TelegramServer]:
    async with TelegramServer() as server:
        yield server


@pytest.fixture
def settings(server: TelegramServer) -> TelegramSettings:
    return TelegramSettings(token=SecretStr(TOKEN), api_base=server.base_url)


@pytest.fixture(scope="module")
async def adapters() -> AsyncIterator[list[Telegram]]:
    """Those of all tests, closed together: aiohttp takes a quarter of a second to close one."""
    made: list[Telegram] = []
    yield made
    await asyncio.gather(*[adapter.close() for adapter in made])


@pytest.fixture
def telegram(settings: TelegramSettings, adapters: list[Telegram]) -> Telegram:
    adapters.append(Telegram(settings, DeliverySettings(timeout_s=5)))
    return adapters[-1]


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@asynccontextmanager
async def running(telegram: Telegram, inbox: Inbox) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(telegram.run(inbox, COMMANDS))
    yield task
    task.cancel()
    await asyncio.wait([task])


def polls(call: Call) -> bool:
    return call.ok and call.method == "getUpdates"


def errors_counted(kind: str) -> float:
    return REGISTRY.get_sample_value("june_errors_total", {"stage": "adapter", "type": kind}) or 0.0


def is_up() -> float | None:
    return REGISTRY.get_sample_value("june_adapter_up", {"platform": "telegram"})


async def received(telegram: Telegram, inbox: Inbox, server: TelegramServer) -> list[Inbound]:
    """Return what june accepts of what was pushed; one more message marks the end."""
    server.push("the last one")
    async with running(telegram, inbox):
        async with asyncio.timeout(10):
            while not inbox.messages or inbox.messages[-1].text != "the last one":
                await inbox.count(len(inbox.messages) + 1)
        return inbox.messages[:-1]


# What arrives


async def test_a_text_arrives_with_all_that_is_known_of_it(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    message_id = server.push("How tall is the Eiffel tower?", date=1_700_000_000)
    assert await received(telegram, inbox, server) == [
        Inbound(
            platform="telegram",
            message_id=str(message_id),
            chat=f"telegram:{ALICE}",
            user=f"telegram:{ALICE}",
            user_name="Person 1001",
            kind="text",
            text="How tall is the Eiffel tower?",
            sent_at_s=1_700_000_000,
        )
    ]


@pytest.mark.parametrize(
    ("sent_as", "file", "kind", "duration_s"),
    [
        ("voice", {"duration": 3, "mime_type": "audio/ogg"}, "voice", 3.0),
        ("audio", {"duration": 200, "mime_type": "audio/mpeg"}, "audio", 200.0),
        ("video_note", {"duration": 7}, "video_note", 7.0),
        ("document", {"mime_type": "audio/flac"}, "audio", 0.0),
    ],
)
async def test_every_kind_of_recording_arrives_with_its_caption(
    *,
    sent_as: Literal["voice", "audio", "video_note", "document"],
    file: dict[str, Any],
    kind: str,
    duration_s: float,
    telegram: Telegram,
    inbox: Inbox,
    server: TelegramServer,
) -> None:
    server.push_file(sent_as, b"x" * 321, caption="Listen", file=file)
    (message,) = await received(telegram, inbox, server)
    assert (message.kind, message.text) == (kind, "Listen")
    assert message.attachment is not None
    assert (message.attachment.size_bytes, message.attachment.duration_s) == (321, duration_s)
    assert await telegram.download(message, max_bytes=1000) == b"x" * 321


async def test_of_what_june_cannot_hear_only_the_caption_arrives(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    server.push_file("document", b"%PDF", caption="Read this", file={"mime_type": "application/pdf"})
    server.push_file("document", b"%PDF", file={"mime_type": "application/pdf"})
    server.push(new_chat_title="A service message")
    server.push_update({"edited_message": {"message_id": 1}})
    (message,) = await received(telegram, inbox, server)
    assert (message.kind, message.text, message.attachment) == ("text", "Read this", None)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ("/help", "/help"),
        ("/voice on", "/voice on"),
        ("/voice@june_test_bot  on", "/voice on"),
        ("/voice@June_Test_Bot on", "/voice on"),
        ("/start a1b2 c3", "/start a1b2 c3"),
        ("/nonsense", "/nonsense"),
    ],
)
async def test_a_command_arrives_without_junes_name(
    sent: str, text: str, telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    server.push(sent)
    (message,) = await received(telegram, inbox, server)
    assert (message.kind, message.text) == ("command", text)


async def test_a_command_of_another_bot_does_not_arrive(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    server.push("/help@other_bot")
    server.push("/help@other_bot", chat=GROUP)
    server.push("/unknown", chat=GROUP)
    assert await received(telegram, inbox, server) == []


@pytest.mark.parametrize(
    ("sent", "text", "is_addressed"),
    [
        ("Who comes tonight?", "Who comes tonight?", False),
        ("@june_test_bot, who comes tonight?", "who comes tonight?", True),
        ("🎉🎉 @June_Test_Bot who comes? 🎉", "🎉🎉  who comes? 🎉", True),
        ("Hello @june_test_bot_2", "Hello @june_test_bot_2", False),
        ("/help", "/help", True),
        ("/unknown@june_test_bot", "/unknown", True),
    ],
)
async def test_in_a_group_june_knows_whether_she_is_addressed(
    *, sent: str, text: str, is_addressed: bool, telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    server.push(sent, chat=GROUP)
    (message,) = await received(telegram, inbox, server)
    assert (message.text, message.is_addressed, message.is_group) == (text, is_addressed, True)
    assert (message.chat, message.user) == (f"telegram:{GROUP}", f"telegram:{ALICE}")


async def test_a_mention_without_a_user_name_counts(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    def mention(user: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"type": "text_mention", "offset": 0, "length": 4, "user": user}]

    other = {"id": 5, "is_bot": False, "first_name": "June"}
    server.push("June what is up?", chat=GROUP, entities=mention(BOT))
    server.push("June what is up?", chat=GROUP, entities=mention(other))
    mine, other_june = await received(telegram, inbox, server)
    assert (mine.text, mine.is_addressed) == ("what is up?", True)
    assert (other_june.text, other_june.is_addressed) == ("June what is up?", False)


async def test_a_recording_is_addressed_by_its_caption(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    server.push_file("voice", b"OggS", caption="@june_test_bot please", chat=GROUP)
    server.push_file("voice", b"OggS", chat=GROUP)
    first, second = await received(telegram, inbox, server)
    assert (first.kind, first.text, first.is_addressed) == ("voice", "please", True)
    assert (second.kind, second.text, second.is_addressed) == ("voice", "", False)


async def test_a_reply_to_june_is_for_her_and_one_to_somebody_else_is_not(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    mine = await telegram.send_text(f"telegram:{GROUP}", "Hello.")
    theirs = server.push("Hello", chat=GROUP, user=2002)
    server.push("And then?", chat=GROUP, reply_to=int(mine.message_id))
    server.push("And then?", chat=GROUP, reply_to=theirs)
    _, to_june, to_other = await received(telegram, inbox, server)
    assert (to_june.is_addressed, to_june.reply_to) == (True, mine.message_id)
    assert (to_other.is_addressed, to_other.reply_to) == (False, str(theirs))


async def test_a_topic_is_a_chat_and_its_beginning_is_no_message_to_reply_to(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    created: dict[str, Any] = {"forum_topic_created": {"name": "Music", "icon_color": 0}, "from": BOT}
    root = server.push(chat=GROUP, **created)
    server.push("In a topic", chat=GROUP, topic=root, reply_to=root)
    server.push("In a thread of replies", chat=GROUP, message_thread_id=root)
    in_topic, in_thread = await received(telegram, inbox, server)
    assert (in_topic.chat, in_topic.reply_to, in_topic.is_addressed) == (
        f"telegram:{GROUP}/{root}",
        "",
        False,
    )
    assert in_thread.chat == f"telegram:{GROUP}"


async def test_nobody_is_heard_whose_access_cannot_be_checked(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    bot: dict[str, Any] = {"from": {"id": 7, "is_bot": True, "first_name": "Other"}}
    nobody: dict[str, Any] = {"from": None}
    server.push("from a bot", **bot)
    server.push("for a channel", chat=GROUP, sender_chat={"id": -1009, "type": "channel"})
    server.push("as an anonymous admin", chat=GROUP, sender_chat={"id": GROUP, "type": "supergroup"})
    server.push("from nobody", **nobody)
    assert await received(telegram, inbox, server) == []


async def test_a_forwarded_message_is_its_forwarders(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    owner = {"id": 42, "is_bot": False, "first_name": "The owner"}
    server.push("Hi", user=666, forward_origin={"type": "user", "date": 1, "sender_user": owner})
    (message,) = await received(telegram, inbox, server)
    assert (message.user, message.user_name) == ("telegram:666", "Person 666")


ALICES: dict[str, Any] = {
    "chat": {"id": 1, "type": "private"},
    "from": {"id": 1, "is_bot": False, "first_name": "A"},
}


@pytest.mark.parametrize(
    "message",
    [
        {"message_id": "none"},
        "no object",
        {"message_id": 1, "date": 1, "text": "lone \ud800", **ALICES},
        {"message_id": 1, "date": 10**30, "text": "late", **ALICES},
    ],
)
async def test_an_update_that_cannot_be_read_does_not_hold_up_the_others(
    message: Any, telegram: Telegram, inbox: Inbox, server: TelegramServer, events: Events
) -> None:
    before = errors_counted("ValidationError") + errors_counted("UnicodeEncodeError")
    server.push("before")
    server.push_update({"message": message})
    server.push("after")
    assert [it.text for it in await received(telegram, inbox, server)] == ["before", "after"]
    assert errors_counted("ValidationError") + errors_counted("UnicodeEncodeError") == before + 1
    assert (await events.wait_for("update.skipped"))["update_id"] == server.next_update_id - 3


# Asking for updates


async def test_june_presents_herself_and_asks_for_messages_only(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    async with running(telegram, inbox):
        await server.wait_for(polls)
        server.push("hello")
        poll = await server.wait_for(polls, count=2)
    (commands,) = server.sent("setMyCommands")
    assert json.loads(commands.params["commands"]) == [
        {"command": "help", "description": "What I can do"},
        {"command": "voice", "description": "How I answer (on | off | both)"},
        {"command": "pair", "description": "A code for a newcomer"},
    ]
    assert json.loads(poll.params["allowed_updates"]) == ["message"]
    assert poll.params["timeout"] == "25"


async def test_an_update_is_acknowledged_only_when_the_inbox_has_it(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    inbox.may_commit.clear()
    update_id = server.next_update_id
    server.push("hello")
    async with running(telegram, inbox):
        await inbox.asked.wait()
        assert (server.pending, inbox.cursors) == (1, {})
        inbox.may_commit.set()
        await inbox.count(1)
        server.push("again")
        first, second = await server.wait_for(polls), await server.wait_for(polls, count=2)
        await inbox.count(2)
    assert (first.params["offset"], second.params["offset"]) == ("0", str(update_id + 1))
    assert inbox.cursors == {"telegram": str(update_id + 2)}


async def test_what_the_inbox_does_not_take_is_handed_out_again(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    server.push("hello")
    inbox.error = StoreError("The disk is full.")
    with pytest.raises(StoreError):
        await asyncio.wait_for(telegram.run(inbox, COMMANDS), 10)
    assert (telegram.health().state, is_up(), server.pending) == ("down", 0, 1)
    inbox.error = None
    async with running(telegram, inbox):
        assert [message.text for message in await inbox.count(1)] == ["hello"]


async def test_after_a_restart_june_goes_on_where_the_inbox_stands(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    inbox.cursors["telegram"] = str(server.next_update_id + 1)
    server.push("committed before the crash")
    server.push("sent while june was away")
    async with running(telegram, inbox):
        assert [message.text for message in await inbox.count(1)] == ["sent while june was away"]


async def test_many_updates_arrive_all_and_in_order(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    for number in range(250):
        server.push(str(number), user=2000 + number % 7)
    async with running(telegram, inbox):
        messages = await inbox.count(250)
    assert [message.text for message in messages] == [str(number) for number in range(250)]


async def test_update_ids_may_begin_anew_lower(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    inbox.cursors["telegram"] = str(server.next_update_id + 10**6)
    server.push("one")
    async with running(telegram, inbox):
        await inbox.count(1)
        server.push("two")
        await inbox.count(2)
    assert [message.text for message in inbox.messages] == ["one", "two"]


async def test_a_webhook_in_the_way_is_removed_and_its_updates_are_kept(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    server.webhook = {"url": "https://elsewhere.example/hook"}
    server.push("hello")
    async with running(telegram, inbox):
        await inbox.count(1)
    (call,) = server.sent("deleteWebhook")
    assert call.params["drop_pending_updates"] == "false"


async def test_no_webhook_is_removed_where_there_is_none(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    async with running(telegram, inbox):
        await server.wait_for(polls)
    assert server.sent("deleteWebhook") == []


TRANSIENT = [
    (api.CONFLICT, "TelegramConflictError", "Conflict"),
    (api.too_many_requests(1), "TelegramRetryAfter", "wait for 1 s"),
    (api.BAD_GATEWAY, "ClientDecodeError", "cannot be read"),
    (Failure(500, "Internal Server Error"), "TelegramServerError", "Internal Server Error"),
    (api.DROPPED, "TelegramNetworkError", "ServerDisconnectedError"),
    (api.ANSWER_LOST, "TelegramNetworkError", "ServerDisconnectedError"),
]


@pytest.mark.parametrize("method", ["getMe", "getUpdates"])
@pytest.mark.parametrize(("failure", "kind", "sentence"), TRANSIENT)
async def test_a_passing_failure_is_survived_counted_and_shown(
    *,
    method: str,
    failure: Failure,
    kind: str,
    sentence: str,
    telegram: Telegram,
    inbox: Inbox,
    server: TelegramServer,
    events: Events,
) -> None:
    before = errors_counted(kind)
    server.fail(method, failure)
    server.push("hello")
    async with running(telegram, inbox):
        await events.wait_for("adapter.delayed")
        assert (telegram.health().state, is_up()) == ("down", 0)
        assert sentence in telegram.health().detail
        await inbox.count(1)
        assert (telegram.health().state, telegram.health().detail, is_up()) == ("up", "", 1)
    assert errors_counted(kind) == before + 1
    assert [message.text for message in inbox.messages] == ["hello"]


async def test_june_waits_as_long_as_telegram_asks(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    server.fail("getUpdates", api.too_many_requests(1))
    async with running(telegram, inbox):
        refused = await server.wait_for(lambda call: call.method == "getUpdates")
        answered = await server.wait_for(polls)
    assert answered.arrived_s - refused.finished_s >= 1


@pytest.mark.parametrize("failure", [api.UNAUTHORIZED, api.NOT_FOUND, api.bad_request("nonsense")])
async def test_june_does_not_insist_where_it_is_of_no_use(
    failure: Failure, telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    server.fail("getMe", failure)
    with pytest.raises(AdapterError, match="Telegram says: ") as raised:
        await asyncio.wait_for(telegram.run(inbox, COMMANDS), 10)
    assert len(server.calls) == 1
    assert telegram.health().detail == str(raised.value)
    assert TOKEN not in everything_in(raised.value)


async def test_june_gives_up_when_telegram_stays_away(
    telegram: Telegram, inbox: Inbox, server: TelegramServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "BACK_OFF", BackOff(0.01, 0.01))
    monkeypatch.setattr(receiving, "MAX_TRIES", 3)
    server.fail("getUpdates", *[api.DROPPED] * 3)
    with pytest.raises(AdapterError, match="cannot be reached") as raised:
        await asyncio.wait_for(telegram.run(inbox, COMMANDS), 10)
    assert len([call for call in server.calls if call.method == "getUpdates"]) == 3
    assert (telegram.health().state, TOKEN in everything_in(raised.value)) == ("down", False)


async def test_cancelling_ends_the_intake_and_sending_still_works(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    async with running(telegram, inbox) as task:
        await server.wait_for(polls)
    assert task.cancelled()
    assert (telegram.health().state, is_up()) == ("down", 0)
    await telegram.send_text(f"telegram:{ALICE}", "Good night.")


# The webhook


@pytest.fixture
def webhook(server: TelegramServer, adapters: list[Telegram]) -> tuple[Telegram, str]:
    """Return an adapter that is called, and the address behind the public one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = TelegramSettings.model_validate(
        {
            "token": TOKEN,
            "api_base": server.base_url,
            "mode": "webhook",
            "webhook_url": "https://june.example/telegram/hook",
            "webhook_secret": SECRET,
            "webhook_port": port,
        }
    )
    adapters.append(Telegram(settings, DeliverySettings(timeout_s=5)))
    return adapters[-1], f"http://127.0.0.1:{port}/telegram/hook"


def sets_webhook(call: Call) -> bool:
    return call.ok and call.method == "setWebhook"


async def test_what_the_webhook_brings_is_committed_before_telegram_hears_so(
    webhook: tuple[Telegram, str], inbox: Inbox, server: TelegramServer
) -> None:
    telegram, url = webhook
    server.push("hello")
    inbox.may_commit.clear()
    async with running(telegram, inbox):
        call = await server.wait_for(sets_webhook)
        assert (call.params["url"], call.params["secret_token"]) == (
            "https://june.example/telegram/hook",
            SECRET,
        )
        delivery = asyncio.create_task(server.call_webhook(url))
        await inbox.asked.wait()
        assert (server.pending, delivery.done()) == (1, False)
        inbox.may_commit.set()
        assert await delivery == 200
        assert (telegram.health().state, server.pending) == ("up", 0)
    assert [message.text for message in inbox.messages] == ["hello"]


@pytest.mark.parametrize(
    ("header", "body", "status"),
    [
        ("wrong", b"{}", 401),
        ("", b"{}", 401),
        ("ungültig", b"{}", 401),
        (SECRET, b"{}", 400),
        (SECRET, b"not JSON", 400),
        (SECRET, b"[" * 100_000, 400),
        (SECRET, b"\xff\xfe", 400),
        (SECRET, b" " * 1_000_001, 413),
        (SECRET, b'{"update_id": 1, "message": {"nonsense": true}}', 200),
    ],
)
async def test_the_webhook_takes_nothing_but_updates_of_telegrams(
    *,
    header: str,
    body: bytes,
    status: int,
    webhook: tuple[Telegram, str],
    inbox: Inbox,
    server: TelegramServer,
) -> None:
    telegram, url = webhook
    async with running(telegram, inbox):
        await server.wait_for(sets_webhook)
        headers = {"X-Telegram-Bot-Api-Secret-Token": header}
        assert await server.call_webhook(url, headers=headers, body=body) == status
    assert inbox.messages == []


async def test_a_secret_that_is_no_text_is_a_wrong_one(
    webhook: tuple[Telegram, str], inbox: Inbox, server: TelegramServer
) -> None:
    telegram, url = webhook
    async with running(telegram, inbox):
        await server.wait_for(sets_webhook)
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        header = b"X-Telegram-Bot-Api-Secret-Token: \xff\xfe\r\n"
        writer.write(
            b"POST /telegram/hook HTTP/1.1\r\nHost: june\r\n" + header + b"Content-Length: 0\r\n\r\n"
        )
        assert (await reader.readline()).split()[1] == b"401"
        writer.close()
        await writer.wait_closed()


async def test_a_webhook_that_cannot_commit_ends_and_telegram_sends_again(
    webhook: tuple[Telegram, str], inbox: Inbox, server: TelegramServer
) -> None:
    telegram, url = webhook
    server.push("hello")
    inbox.error = StoreError("The disk is full.")
    async with running(telegram, inbox) as task:
        await server.wait_for(sets_webhook)
        assert await server.call_webhook(url) == 503
        with pytest.raises(StoreError):
            await task
    assert server.pending == 1


async def test_a_port_that_is_taken_is_an_error_of_the_adapter(
    webhook: tuple[Telegram, str], inbox: Inbox
) -> None:
    telegram, url = webhook
    with (
        socket.create_server(("127.0.0.1", urlsplit(url).port or 0)),
        pytest.raises(AdapterError, match="cannot listen for the webhook"),
    ):
        await asyncio.wait_for(telegram.run(inbox, COMMANDS), 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": "no-token"},
        {"token": "12 3:x"},
        {"token": TOKEN, "mode": "webhook", "webhook_url": "https://june.example"},
        {"token": TOKEN, "mode": "webhook", "webhook_secret": SECRET},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^telegram\.(token|mode): ") as raised:
        Telegram(TelegramSettings.model_validate(wrong), DeliverySettings())
    assert wrong["token"] not in everything_in(raised.value)


# Downloads


def note(server: TelegramServer, data: bytes = b"OggS" * 1000, **file: Any) -> Inbound:
    """Return a voice message as it arrived."""
    message_id = server.push_file("voice", data, file=file)
    voice = server.messages[ALICE, message_id]["voice"]
    attachment = Attachment(voice["file_id"], voice["file_size"], 3.0)
    chat = f"telegram:{ALICE}"
    return Inbound("telegram", str(message_id), chat, chat, "Alice", "voice", attachment=attachment)


async def test_an_expired_link_is_renewed_once(telegram: Telegram, server: TelegramServer) -> None:
    server.fail("file", api.NOT_FOUND)
    assert await telegram.download(note(server), max_bytes=10_000) == b"OggS" * 1000
    assert len(server.sent("getFile")) == 2


@pytest.mark.parametrize(
    ("method", "failures", "reason"),
    [
        ("file", [api.NOT_FOUND, api.NOT_FOUND], "gone"),
        ("file", [api.BAD_GATEWAY], "try_again"),
        ("file", [Failure(500, "Internal Server Error")], "try_again"),
        ("file", [api.DROPPED] * 2, "try_again"),  # aiohttp asks again once by itself
        ("getFile", [api.bad_request("file is too big")], "too_large"),
        ("getFile", [api.too_many_requests(4)], "try_again"),
        ("getFile", [api.BAD_GATEWAY], "try_again"),
        ("getFile", [api.DROPPED], "try_again"),
        ("getFile", [api.UNAUTHORIZED], "try_again"),
        ("getFile", [api.bad_request("wrong file_id or the file is temporarily unavailable")] * 2, "gone"),
        ("getFile", [api.bad_request("something else")], "refused"),
    ],
)
async def test_a_download_fails_with_its_reason_and_without_the_token(
    *,
    method: str,
    failures: list[Failure],
    reason: Refusal,
    telegram: Telegram,
    server: TelegramServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.fail(method, *failures)
    with caplog.at_level(logging.DEBUG), pytest.raises(DeliveryError) as raised:
        await telegram.download(note(server), max_bytes=10_000)
    assert raised.value.reason == reason
    assert TOKEN not in everything_in(raised.value) + caplog.text


async def test_a_recording_that_is_too_large_is_not_fetched(
    telegram: Telegram, server: TelegramServer
) -> None:
    with pytest.raises(DeliveryError) as raised:
        await telegram.download(note(server, file_size=2001), max_bytes=2000)
    assert (raised.value.reason, server.calls) == ("too_large", [])


async def test_a_recording_is_not_larger_than_it_is_said_to_be(
    telegram: Telegram, server: TelegramServer
) -> None:
    message = note(server, b"x" * 5_000_000, file_size=100)
    with pytest.raises(DeliveryError) as raised:
        await telegram.download(message, max_bytes=2000)
    assert raised.value.reason == "too_large"
    message = note(server, b"x" * 2000, file_size=100)
    assert len(await telegram.download(message, max_bytes=2000)) == 2000


async def test_telegram_hands_out_no_more_than_20_mb(telegram: Telegram, server: TelegramServer) -> None:
    message = note(server, bytes(api.MAX_DOWNLOAD_BYTES + 1), file_size=0)
    with pytest.raises(DeliveryError) as raised:
        await telegram.download(message, max_bytes=10**9)
    assert raised.value.reason == "too_large"


# Sending

PRIVATE = f"telegram:{ALICE}"
TOPIC = f"telegram:{GROUP}/77"


async def test_text_is_sent_as_html_to_its_chat_as_a_reply(
    telegram: Telegram, server: TelegramServer
) -> None:
    asked = server.push("hello")
    sent = await telegram.send_text(PRIVATE, "<b>Hello</b> &amp; https://june.example", reply_to=str(asked))
    (call,) = server.sent("sendMessage")
    assert sent == Delivered(str(call.message_id), "text", "<b>Hello</b> &amp; https://june.example", "html")
    assert (call.chat, call.text, call.reply_to) == (ALICE, sent.text, asked)
    assert call.params["parse_mode"] == "HTML"
    assert json.loads(call.params["link_preview_options"]) == {"is_disabled": True}
    assert "message_thread_id" not in call.params


async def test_a_reply_to_a_deleted_message_is_sent_all_the_same(
    telegram: Telegram, server: TelegramServer
) -> None:
    await telegram.send_text(PRIVATE, "Hello", reply_to="4711")
    await telegram.send_voice(PRIVATE, VOICE, reply_to="4711")
    assert len(server.sent("sendMessage") + server.sent("sendVoice")) == 2


async def test_a_voice_message_is_ogg_with_whole_seconds_as_a_reply(
    telegram: Telegram, server: TelegramServer
) -> None:
    asked = server.push("hello", chat=GROUP)
    sent = await telegram.send_voice(TOPIC, VOICE, reply_to=str(asked))
    (call,) = server.sent("sendVoice", GROUP)
    assert sent == Delivered(str(call.message_id), "voice")
    assert (call.voice, call.params["duration"], call.reply_to) == (VOICE.ogg_opus, "3", asked)
    assert call.params["message_thread_id"] == "77"


async def test_plain_text_is_cut_at_telegrams_limit(telegram: Telegram, server: TelegramServer) -> None:
    sent = await telegram.send_plain(PRIVATE, "x" + "🎉" * 3000 + "\ud800")
    assert (sent.text, sent.parse_mode) == ("x" + "🎉" * 2047, "")
    await telegram.send_plain(PRIVATE, "<b> & \ud800")
    assert [call.text for call in server.sent("sendMessage")] == ["x" + "🎉" * 2047, "<b> & ?"]


async def test_an_edit_replaces_the_text_and_may_change_nothing(
    telegram: Telegram, server: TelegramServer
) -> None:
    sent = await telegram.send_text(PRIVATE, "One")
    expected = Delivered(sent.message_id, "text", "<i>Two</i>", "html", edited=True)
    assert await telegram.edit_text(PRIVATE, sent.message_id, "<i>Two</i>") == expected
    assert await telegram.edit_text(PRIVATE, sent.message_id, "<i>Two</i>") == expected
    assert server.messages[ALICE, int(sent.message_id)]["text"] == "<i>Two</i>"


async def test_an_edit_of_what_is_not_there_says_so(telegram: Telegram, server: TelegramServer) -> None:
    for message_id in ("4711", str(server.push("hers"))):
        with pytest.raises(DeliveryError) as raised:
            await telegram.edit_text(PRIVATE, message_id, "Two")
        assert raised.value.reason == "gone"


async def test_deleting_twice_is_no_error(telegram: Telegram, server: TelegramServer) -> None:
    sent = await telegram.send_text(PRIVATE, "One")
    await telegram.delete(PRIVATE, sent.message_id)
    await telegram.delete(PRIVATE, sent.message_id)
    assert server.messages == {}
    server.fail("deleteMessage", api.bad_request("message can't be deleted"))
    with pytest.raises(DeliveryError):
        await telegram.delete(PRIVATE, sent.message_id)


async def test_drafts_are_shown_in_private_chats_only(telegram: Telegram, server: TelegramServer) -> None:
    assert await telegram.show_draft(PRIVATE, 7, "<b>He</b>")
    assert not await telegram.show_draft(TOPIC, 7, "<b>He</b>")
    (call,) = server.sent("sendMessageDraft")
    assert (call.chat, call.text, call.params["draft_id"], call.params["parse_mode"]) == (
        ALICE,
        "<b>He</b>",
        "7",
        "HTML",
    )


@pytest.mark.parametrize("failure", [api.NOT_FOUND, api.bad_request("TEXTDRAFT_PEER_INVALID")])
async def test_a_server_without_drafts_is_asked_once(
    failure: Failure, telegram: Telegram, server: TelegramServer
) -> None:
    server.fail("sendMessageDraft", failure)
    assert not await telegram.show_draft(PRIVATE, 7, "He")
    assert not await telegram.show_draft(PRIVATE, 7, "Hello")
    assert len(server.calls) == 1


async def test_a_draft_that_fails_in_passing_is_an_error_and_the_next_is_shown(
    telegram: Telegram, server: TelegramServer
) -> None:
    server.fail("sendMessageDraft", api.too_many_requests(2))
    with pytest.raises(DeliveryError) as raised:
        await telegram.show_draft(PRIVATE, 7, "He")
    assert (raised.value.reason, raised.value.retry_after_s) == ("try_again", 2)
    assert await telegram.show_draft(PRIVATE, 7, "Hello")


async def test_june_shows_what_she_is_doing(telegram: Telegram, server: TelegramServer) -> None:
    assert await telegram.show_working(PRIVATE, "recording") == 5
    assert await telegram.show_working(TOPIC, "typing") == 5
    recording, typing = server.sent("sendChatAction")
    assert (recording.chat, recording.params["action"]) == (ALICE, "record_voice")
    assert (typing.params["action"], typing.params["message_thread_id"]) == ("typing", "77")


SENDS: dict[str, Callable[[Telegram], Awaitable[object]]] = {
    "sendMessage": lambda telegram: telegram.send_text(TOPIC, "Hello"),
    "sendVoice": lambda telegram: telegram.send_voice(TOPIC, VOICE),
    "sendChatAction": lambda telegram: telegram.show_working(TOPIC, "typing"),
    "editMessageText": lambda telegram: telegram.edit_text(TOPIC, "1", "Hello"),
    "deleteMessage": lambda telegram: telegram.delete(TOPIC, "1"),
    "sendMessageDraft": lambda telegram: telegram.show_draft(PRIVATE, 7, "Hello"),
}


@pytest.mark.parametrize("method", ["sendMessage", "sendVoice", "sendChatAction"])
async def test_what_was_for_a_topic_that_is_gone_goes_to_the_chat(
    method: str, telegram: Telegram, server: TelegramServer
) -> None:
    server.fail(method, api.bad_request("message thread not found"))
    await SENDS[method](telegram)
    (call,) = server.sent(method, GROUP)
    assert "message_thread_id" not in call.params


REFUSALS: list[tuple[Failure, Refusal]] = [
    (api.too_many_requests(3), "try_again"),
    (api.BAD_GATEWAY, "try_again"),
    (Failure(500, "Internal Server Error"), "try_again"),
    (api.DROPPED, "try_again"),
    (api.ANSWER_LOST, "try_again"),
    (api.UNAUTHORIZED, "try_again"),
    (api.BLOCKED, "gone"),
    (api.bad_request("chat not found"), "gone"),
    (Failure(400, "Bad Request: group chat was upgraded", {"migrate_to_chat_id": -100_900}), "moved"),
    (api.TOO_LARGE, "too_large"),
    (api.bad_request("VOICE_MESSAGES_FORBIDDEN"), "voice_forbidden"),
    (api.bad_request("not enough rights to send voice messages to the chat"), "voice_forbidden"),
    (api.bad_request('can\'t parse entities: Unsupported start tag "my diary"'), "markup"),
    (api.bad_request("CHAT_WRITE_FORBIDDEN"), "refused"),
]


SUPERGROUP = -100_900


async def test_a_group_that_becomes_a_supergroup_is_told_with_its_new_name(
    telegram: Telegram, inbox: Inbox, server: TelegramServer
) -> None:
    group = -77
    server.push("before", chat=group)
    server.upgrade(group, SUPERGROUP)
    server.push("after", chat=SUPERGROUP)
    async with running(telegram, inbox):
        messages = await inbox.count(2)
    assert inbox.moves[0] == ("telegram:-77", f"telegram:{SUPERGROUP}", 0)
    assert {move[:2] for move in inbox.moves} == {("telegram:-77", f"telegram:{SUPERGROUP}")}
    assert [(message.text, message.chat) for message in messages] == [
        ("before", f"telegram:{SUPERGROUP}"),
        ("after", f"telegram:{SUPERGROUP}"),
    ]


def test_a_groups_messages_are_not_mistaken_for_the_supergroups() -> None:
    group, date = {"id": -77, "type": "group", "title": "Tea"}, {"date": 1}
    alice = {"id": ALICE, "is_bot": False, "first_name": "Alice"}
    answered = date | {"message_id": 6, "chat": group, "from": alice, "text": "first"}
    old = date | {"message_id": 7, "chat": group, "from": alice, "text": "old", "reply_to_message": answered}
    move = date | {"message_id": 8, "chat": group, "migrate_to_chat_id": SUPERGROUP}
    new = old | {"chat": group | {"id": SUPERGROUP, "type": "supergroup"}, "text": "new"}
    updates = [
        Update(update_id=number, message=each) for number, each in enumerate((answered, old, move, new))
    ]
    messages, _ = read(updates, Me(99, "june", frozenset()))
    assert [(each.text, each.message_id, each.reply_to) for each in messages] == [
        ("first", "telegram:-77 6", ""),
        ("old", "telegram:-77 7", "telegram:-77 6"),
        ("new", "7", "6"),
    ]
    assert {each.chat for each in messages} == {f"telegram:{SUPERGROUP}"}


async def test_a_refusal_by_a_group_that_became_a_supergroup_names_it(
    telegram: Telegram, server: TelegramServer
) -> None:
    server.upgrade(-77, SUPERGROUP)
    for send in (telegram.send_text, telegram.send_plain):
        with pytest.raises(DeliveryError) as raised:
            await send("telegram:-77", "Hello")
        assert (raised.value.reason, raised.value.moved_to) == ("moved", f"telegram:{SUPERGROUP}")


async def test_what_a_group_left_behind_is_neither_answered_nor_edited_nor_deleted(
    telegram: Telegram, server: TelegramServer
) -> None:
    chat, left = f"telegram:{SUPERGROUP}", "telegram:-77 5"
    await telegram.send_text(chat, "Hello", reply_to=left)
    assert server.sent("sendMessage", SUPERGROUP)[0].reply_to == 0
    with pytest.raises(DeliveryError) as raised:
        await telegram.edit_text(chat, left, "Hello again")
    assert raised.value.reason == "gone"
    await telegram.delete(chat, left)
    assert [call.method for call in server.calls] == ["sendMessage"]


@pytest.mark.parametrize("method", ["sendMessage", "sendVoice"])
async def test_a_refusal_is_told_with_its_reason(
    method: str, telegram: Telegram, server: TelegramServer
) -> None:
    told = []
    for failure, _ in REFUSALS:
        server.fail(method, failure)
        with pytest.raises(DeliveryError) as raised:
            await SENDS[method](telegram)
        told.append((failure, raised.value.reason))
        assert raised.value.retry_after_s == failure.parameters.get("retry_after")
        assert "diary" not in everything_in(raised.value)
    assert told == REFUSALS


async def test_a_server_that_does_not_answer_is_tried_again(server: TelegramServer) -> None:
    settings = TelegramSettings.model_validate({"token": TOKEN, "api_base": "http://127.0.0.1:1"})
    absent = Telegram(settings, DeliverySettings(timeout_s=2))
    for ask in (
        absent.send_text(PRIVATE, "Hello"),
        absent.download(note(server), max_bytes=10_000),
    ):
        with pytest.raises(DeliveryError) as raised:
            await ask
        assert raised.value.reason == "try_again"
        assert TOKEN not in everything_in(raised.value)
    await absent.close()


@pytest.mark.parametrize("method", SENDS)
async def test_the_token_is_in_no_error_and_no_log_line(
    method: str,
    telegram: Telegram,
    server: TelegramServer,
    caplog: pytest.LogCaptureFixture,
    events: Events,
) -> None:
    said = ""
    with caplog.at_level(logging.DEBUG):
        for failure, _ in REFUSALS:
            server.fail(method, failure)
            try:
                await SENDS[method](telegram)  # some failures are none for a draft or a deletion
            except DeliveryError as error:
                said += everything_in(error)
    assert len(said) > 1000
    assert TOKEN not in said + caplog.text + str(events.seen)


def everything_in(error: BaseException | None) -> str:
    """All that could be printed of an error and of every one behind it, hidden ones too."""
    text = ""
    while error is not None:
        text += "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
        text += everything_in(error.__cause__)
        error = error.__context__
    return text


# The markup

MARKDOWN = "\n\n".join(
    f"## Chapter {number}\n\n**Bold** _text_ & <b>tags</b>, `code`, [a link](https://june.example/?a=1&b=2) "
    f"and 🎉🎉.\n\n```python\nif 1 < 2 & 3 > {number}:\n    pass\n```\n\n> A quote.\n\n* One\n* Two"
    for number in range(60)
)


async def test_what_the_model_wrote_is_taken_by_the_server_and_by_teremok(
    telegram: Telegram, server: TelegramServer
) -> None:
    parts = telegram.parts(MARKDOWN)
    assert len(parts) > 1
    for part in parts:
        await telegram.send_text(PRIVATE, part)
    calls = server.sent("sendMessage")
    seen = "\n".join(api.visible_text(call.text) for call in calls)
    assert [f"Chapter {number}" in seen for number in range(60)] == [True] * 60
    for call in calls:
        assert api.visible_text(call.text) == visible_telegram(call.text).strip()
        validate_html(call.text)


async def test_teremok_takes_plain_text_of_the_length_that_june_cuts_it_to(telegram: Telegram) -> None:
    sent = await telegram.send_plain(PRIVATE, "🎉" * 5000)
    bot = Bot(TOKEN, MockedSession())
    await bot.send_message(ALICE, sent.text)
    with pytest.raises(TelegramBadRequest, match="too long"):
        await bot.send_message(ALICE, sent.text + "x")


async def test_markup_that_is_wrong_is_refused_as_such(telegram: Telegram) -> None:
    for wrong in ("<b>Hello", "1 < 2", "<marquee>Hello</marquee>", "<b><i>Hello</b></i>"):
        with pytest.raises(DeliveryError) as raised:
            await telegram.send_text(PRIVATE, wrong)
        assert raised.value.reason == "markup"


def test_telegram_is_an_adapter(telegram: Telegram) -> None:
    adapter: Adapter = telegram
    assert adapter.platform == "telegram"
