"""The real discord.py against a server of the tests' own, by HTTP and websocket."""

import asyncio
import base64
import logging
import threading
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import discord as library
import pytest
import simcord
from discord.backoff import ExponentialBackoff
from discord.gateway import KeepAliveHandler
from discord.http import Route
from pydantic import SecretStr

from june.chat import Adapter, CommandInfo
from june.chat.discord import listening as module
from june.chat.discord.adapter import Discord
from june.chat.discord.sending import MAX_VOICE_BYTES
from june.chat.discord.settings import DiscordSettings
from june.errors import AdapterError, DeliveryError, Refusal, StoreError
from june.messages import Attachment, Inbound, PlatformState, Voice
from june.sections import DeliverySettings
from tests.discord_server import (
    BOT_ID,
    GUILD_ID,
    OWNER_ID,
    DiscordServer,
    Failure,
    refusal,
    too_many_requests,
)

TOKEN = "MTIzNDU2.secret.token"  # noqa: S105 - of the fake
ALICE, BOB = "71", "72"
MENTION = f"<@{BOT_ID}>"
OGG = b"OggS" + bytes(range(200))
VOICE = Voice(ogg_opus=OGG, duration_s=1.5, waveform=bytes([0, 90, 255]))
COMMANDS = (
    CommandInfo("reset", "Forget this conversation."),
    CommandInfo("voice", "How to answer.", argument="on | off | both"),
)
POST = "POST /channels/{channel}/messages"
HISTORY = "GET /channels/{channel}/messages"
DOWNLOAD = "GET /cdn/{attachment}/{expired}/{name}"
CALLBACK = "POST /interactions/{interaction}/{token}/callback"


class MemoryIntake:
    """An inbox in memory: each message once, and the cursors."""

    def __init__(self) -> None:
        self.accepted: list[Inbound] = []
        self.cursors: dict[str, str] = {}
        self.fails = False
        self._changed = asyncio.Condition()

    async def receive(self, batch: Sequence[Inbound], *, cursor: tuple[str, str] | None = None) -> None:
        """See `Intake.receive`."""
        if self.fails:
            raise StoreError("The file of messages is on a full disk.")
        known = {(each.chat, each.message_id) for each in self.accepted}
        self.accepted += [each for each in batch if (each.chat, each.message_id) not in known]
        if cursor is not None:
            self.cursors[cursor[0]] = cursor[1]
        async with self._changed:
            self._changed.notify_all()

    async def moved(self, old: str, new: str) -> None:
        """Discord's channels keep their ids."""
        raise NotImplementedError

    async def cursor(self, name: str) -> str:
        """See `Intake.cursor`."""
        return self.cursors.get(name, "")

    async def has(self, count: int) -> list[Inbound]:
        """Return what was accepted, as soon as it is so many messages."""
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: len(self.accepted) >= count)
        return self.accepted

    @property
    def texts(self) -> list[str]:
        """What was said in the accepted messages."""
        return [each.text for each in self.accepted]


class WatchedDiscord(Discord):
    """The adapter, with what its health went through."""

    def __init__(self, server: DiscordServer, *, timeout_s: float = 10.0, token: str = TOKEN) -> None:
        settings = DiscordSettings(token=SecretStr(token), api_base=server.api_base, gateway=server.gateway)
        super().__init__(settings, DeliverySettings(timeout_s=timeout_s))
        self.states: list[PlatformState] = []
        self._reported = asyncio.Event()

    def report(self, state: PlatformState, detail: str = "") -> None:
        """Note the state."""
        super().report(state, detail)
        self.states.append(state)
        self._reported.set()

    async def went(self, *states: PlatformState) -> None:
        """Wait until these states came last."""
        async with asyncio.timeout(20):
            while tuple(self.states[-len(states) :]) != states:
                self._reported.clear()
                await self._reported.wait()


@pytest.fixture
async def server() -> AsyncIterator[DiscordServer]:
    async with DiscordServer(token=TOKEN) as server:
        yield server


@pytest.fixture
async def adapter(server: DiscordServer) -> AsyncIterator[WatchedDiscord]:
    adapter = WatchedDiscord(server)
    yield adapter
    await adapter.close()


@pytest.fixture
def intake() -> MemoryIntake:
    return MemoryIntake()


@pytest.fixture
def fast_reconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    """discord.py waits up to seconds before it reconnects, and five before it identifies again."""

    async def at_once(*_: object, **__: object) -> None:
        pass

    monkeypatch.setattr(ExponentialBackoff, "delay", lambda _: 0.01)
    monkeypatch.setattr(library.Client, "before_identify_hook", at_once)


@asynccontextmanager
async def running(
    adapter: WatchedDiscord, intake: MemoryIntake, commands: Sequence[CommandInfo] = COMMANDS
) -> AsyncIterator[asyncio.Task[None]]:
    """Run the adapter, connected, until the block ends."""
    task = asyncio.create_task(adapter.run(intake, commands))
    connected = asyncio.create_task(adapter.went("up"))
    await asyncio.wait((task, connected), return_when=asyncio.FIRST_COMPLETED)
    assert adapter.health().state == "up"
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


# Receiving


async def test_a_direct_message_is_handed_over_with_its_sender(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat = server.open_dm(ALICE)
    async with running(adapter, intake):
        message = await server.say(chat, ALICE, "what time is it?")
        [inbound] = await intake.has(1)
    assert inbound == Inbound(
        platform="discord",
        message_id=message,
        chat=f"discord:{chat}",
        user=f"discord:{ALICE}",
        user_name=f"user{ALICE}",
        kind="text",
        text="what time is it?",
        sent_at_s=inbound.sent_at_s,
    )
    assert inbound.sent_at_s > 1.7e9


async def test_in_a_group_only_a_mention_a_reply_or_a_command_is_for_june(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    channel = server.open_channel()
    said = await adapter.send_text(f"discord:{channel}", "hello")
    async with running(adapter, intake):
        await server.say(channel, ALICE, "nobody in particular")
        await server.say(channel, ALICE, f"hey {MENTION} how are you?")
        answer = await server.say(channel, ALICE, "and you?", reply_to=said.message_id)
        await server.say(channel, BOB, "to Alice", reply_to=answer)
        await server.say(channel, BOB, "/reset")
        await server.say(channel, BOB, "/shrug")
        await server.say(channel, BOB, "/")
        accepted = await intake.has(7)
    assert [(each.text, each.is_addressed, each.kind) for each in accepted] == [
        ("nobody in particular", False, "text"),
        ("hey how are you?", True, "text"),
        ("and you?", True, "text"),
        ("to Alice", False, "text"),
        ("/reset", True, "command"),
        ("/shrug", False, "command"),
        ("/", False, "command"),
    ]
    assert all(each.is_group for each in accepted)
    assert [each.reply_to for each in accepted[2:4]] == [said.message_id, answer]


@pytest.mark.parametrize("guild", [GUILD_ID, "5999"])
async def test_a_message_in_a_thread_or_guild_that_discord_did_not_announce_is_from_a_group(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake, guild: str
) -> None:
    async with running(adapter, intake):
        thread = server.open_thread(server.open_channel(), guild=guild)
        await server.say(thread, ALICE, "hello")
        [inbound] = await intake.has(1)
    assert (inbound.chat, inbound.is_group, inbound.is_addressed) == (f"discord:{thread}", True, False)


async def test_bots_webhooks_system_messages_and_empty_ones_are_passed_over(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat = server.open_dm(ALICE)
    async with running(adapter, intake):
        await server.say(chat, BOT_ID, "from a bot")
        await server.say(chat, ALICE, "from a webhook", webhook_id="9")
        await server.say(chat, ALICE, "joined", type=7)
        await server.say(chat, ALICE)
        await server.say(chat, ALICE, "hello")
        await intake.has(1)
    assert intake.texts == ["hello"]


async def test_a_voice_message_has_its_length_and_is_downloaded(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat = server.open_dm(ALICE)
    async with running(adapter, intake):
        await server.say(chat, ALICE, voice=OGG, duration_s=3.25)
        await server.say(chat, ALICE, "listen", audio=OGG)
        voice, audio = await intake.has(2)
    assert (voice.kind, voice.text, audio.kind, audio.text) == ("voice", "", "audio", "listen")
    assert voice.attachment is not None
    assert (voice.attachment.duration_s, voice.attachment.size_bytes) == (3.25, len(OGG))
    assert await adapter.download(voice, max_bytes=len(OGG)) == OGG
    assert await adapter.download(audio, max_bytes=len(OGG)) == OGG


async def test_the_order_of_a_burst_is_kept_and_the_cursor_stands_at_its_end(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    alice, bob = server.open_dm(ALICE), server.open_dm(BOB)
    async with running(adapter, intake):
        for number in range(30):
            await server.say(alice, ALICE, f"a{number}")
            await server.say(bob, BOB, f"b{number}")
        accepted = await intake.has(60)
    assert intake.texts == [f"{who}{number}" for number in range(30) for who in "ab"]
    assert intake.cursors[f"discord:{bob}"] == accepted[-1].message_id


# Downloads


async def voice_message(server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake) -> Inbound:
    async with running(adapter, intake):
        await server.say(server.open_dm(ALICE), ALICE, voice=OGG)
        return (await intake.has(1))[0]


async def test_an_expired_link_is_renewed(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    message = await voice_message(server, adapter, intake)
    server.expire_links()
    assert await adapter.download(message, max_bytes=1000) == OGG


async def test_a_recording_that_was_deleted_is_gone(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    message = await voice_message(server, adapter, intake)
    server.expire_links()
    server.forget_message(message.chat.removeprefix("discord:"), message.message_id)
    with pytest.raises(DeliveryError) as refused:
        await adapter.download(message, max_bytes=1000)
    assert refused.value.reason == "gone"


@pytest.mark.parametrize("declared_bytes", [0, len(OGG)])
async def test_a_recording_over_the_limit_is_too_large_whatever_size_was_declared(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake, declared_bytes: int
) -> None:
    message = await voice_message(server, adapter, intake)
    assert message.attachment is not None
    link = Attachment(message.attachment.file_id, declared_bytes)
    message = Inbound("discord", message.message_id, message.chat, message.user, "", "voice", attachment=link)
    with pytest.raises(DeliveryError) as refused:
        await adapter.download(message, max_bytes=len(OGG) - 1)
    assert refused.value.reason == "too_large"
    assert (DOWNLOAD in server.requests) == (declared_bytes == 0)


@pytest.mark.parametrize(("status", "reason"), [(500, "try_again"), (429, "try_again"), (400, "refused")])
async def test_a_failed_download_says_whether_to_try_again(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake, status: int, reason: Refusal
) -> None:
    message = await voice_message(server, adapter, intake)
    server.fail(DOWNLOAD, Failure(status, "<html>"))
    with pytest.raises(DeliveryError) as refused:
        await adapter.download(message, max_bytes=1000)
    assert refused.value.reason == reason
    assert await adapter.download(message, max_bytes=1000) == OGG


# Commands


async def test_commands_are_registered_and_arrive_with_their_argument(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat, channel = server.open_dm(ALICE), server.open_channel()
    async with running(adapter, intake):
        await server.until(lambda: server.commands)
        used = await server.use_command(chat, ALICE, "voice", "off")
        await server.use_command(channel, BOB, "reset")
        direct, group = await intake.has(2)
    assert [(each["name"], [option["name"] for option in each["options"]]) for each in server.commands] == [
        ("reset", []),
        ("voice", ["argument"]),
    ]
    assert (direct.kind, direct.text, direct.message_id) == ("command", "/voice off", used)
    assert (direct.chat, direct.user, direct.is_group) == (f"discord:{chat}", f"discord:{ALICE}", False)
    assert (group.text, group.is_group, group.is_addressed) == ("/reset", True, True)


async def test_a_slash_command_is_acknowledged_only_by_its_answer(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat = server.open_dm(ALICE)
    async with running(adapter, intake):
        await server.use_command(chat, BOB, "reset")
        used = await server.use_command(chat, ALICE, "reset")
        await intake.has(2)
        assert CALLBACK not in server.requests
        first = await adapter.send_plain(f"discord:{chat}", "done", reply_to=used)
        second = await adapter.send_text(f"discord:{chat}", "and more", reply_to=used)
    assert [(sent.content, sent.through) for sent in server.sent] == [
        ("done", "interaction"),
        ("and more", "channel"),
    ]
    assert [first.message_id, second.message_id] == [sent.message_id for sent in server.sent]
    assert server.requests.count(CALLBACK) == 1


async def test_an_answer_that_comes_too_late_for_its_interaction_is_a_message(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat = server.open_dm(ALICE)
    async with running(adapter, intake):
        used = await server.use_command(chat, ALICE, "reset")
        await intake.has(1)
        server.expire_interaction(used)
        await adapter.send_plain(f"discord:{chat}", "done", reply_to=used)
    assert [(sent.content, sent.through) for sent in server.sent] == [("done", "channel")]


async def test_after_a_restart_a_command_is_answered_by_a_message(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat = server.open_dm(ALICE)
    async with running(adapter, intake):
        used = await server.use_command(chat, ALICE, "reset")
        await intake.has(1)
    await adapter.send_plain(f"discord:{chat}", "done", reply_to=used)
    assert [(sent.content, sent.through) for sent in server.sent] == [("done", "channel")]


async def test_refused_commands_do_not_keep_messages_out(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    server.fail("PUT /applications/{application}/commands", refusal(400, 50035))
    async with running(adapter, intake):
        await server.until(lambda: "PUT /applications/{application}/commands" in server.requests)
        await server.say(server.open_dm(ALICE), ALICE, "/reset")
        [inbound] = await intake.has(1)
    assert (inbound.kind, inbound.text) == ("command", "/reset")


# Nothing is lost


async def test_what_was_said_while_june_was_away_is_caught_up_before_what_is_said_now(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat, channel, quiet = server.open_dm(ALICE), server.open_channel(), server.open_channel("quiet")
    async with running(adapter, intake):
        await server.say(chat, ALICE, "one")
        await server.say(channel, BOB, f"{MENTION} two")
        await server.say(quiet, BOB, "not for june")
        await intake.has(3)
    await server.say(chat, ALICE, "three")
    await server.say(chat, ALICE, voice=OGG)
    await server.say(channel, BOB, f"{MENTION} four")
    await server.say(quiet, BOB, "nor this")
    async with running(WatchedDiscord(server), intake):
        await server.say(chat, ALICE, "five")
        accepted = await intake.has(7)
    assert [each.text for each in accepted if not each.is_group] == ["one", "three", "", "five"]
    assert [each.text for each in accepted if each.is_group] == ["two", "not for june", "four"]
    voice, mentioned = accepted[4], next(each for each in accepted if each.text == "four")
    assert (voice.kind, voice.is_addressed, mentioned.is_addressed) == ("voice", True, True)
    assert await adapter.download(voice, max_bytes=1000) == OGG
    assert (
        intake.cursors[f"discord:{chat}"] == next(each for each in accepted if each.text == "five").message_id
    )


async def test_a_message_that_could_not_be_committed_ends_the_run_and_is_caught_up(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat = server.open_dm(ALICE)
    async with running(adapter, intake) as run:
        await server.say(chat, ALICE, "one")
        await intake.has(1)
        intake.fails = True
        await server.say(chat, ALICE, "two")
        with pytest.raises(StoreError):
            await run
    assert adapter.health().state == "down"
    intake.fails = False
    async with running(adapter, intake):
        await intake.has(2)
    assert intake.texts == ["one", "two"]


@pytest.mark.usefixtures("fast_reconnects")
async def test_a_dropped_connection_is_resumed_and_the_gateway_repeats_what_was_missed(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat = server.open_dm(ALICE)
    async with running(adapter, intake):
        await server.drop_gateway()
        await server.say(chat, ALICE, "into the gap")
        await intake.has(1)
        await adapter.went("down", "up")
    assert (server.identified, server.resumed) == (1, 1)
    assert HISTORY not in server.requests


@pytest.mark.usefixtures("fast_reconnects")
async def test_after_an_invalid_session_the_history_is_caught_up(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chat = server.open_dm(ALICE)
    async with running(adapter, intake):
        await server.say(chat, ALICE, "one")
        await intake.has(1)
        await server.drop_gateway()
        await server.invalidate_session()
        await server.say(chat, ALICE, "into the gap")
        await intake.has(2)
        await adapter.went("down", "up")
    assert (server.identified, intake.texts) == (2, ["one", "into the gap"])


async def test_a_channel_that_is_gone_is_caught_up_no_more(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    chats = [server.open_dm(ALICE), server.open_dm(BOB)]
    async with running(adapter, intake):
        for chat in chats:
            await server.say(chat, ALICE, "one")
        await intake.has(2)
    server.fail(HISTORY, refusal(404, 10003))
    for chat in chats:
        await server.say(chat, ALICE, "two")
    async with running(adapter, intake):
        await intake.has(3)
    assert [each.chat for each in intake.accepted if each.text == "two"] == [f"discord:{chats[1]}"]


async def test_more_messages_than_can_wait_end_the_run(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ARRIVALS", 1)
    chat = server.open_dm(ALICE)
    async with running(adapter, intake) as run:
        stuck = asyncio.Event()
        monkeypatch.setattr(intake, "receive", lambda *_, **__: stuck.wait())
        for number in range(3):
            await server.say(chat, ALICE, str(number))
        with pytest.raises(AdapterError, match="faster"):
            await run


@pytest.mark.usefixtures("fast_reconnects")
async def test_a_session_that_becomes_invalid_is_begun_anew(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    async with running(adapter, intake):
        await server.invalidate_session()
        await adapter.went("down", "up")
        await server.say(server.open_dm(ALICE), ALICE, "hello")
        await intake.has(1)
    assert server.identified == 2


# The gateway fails


async def run_error(adapter: WatchedDiscord, intake: MemoryIntake) -> AdapterError:
    with pytest.raises(AdapterError) as refused:
        await adapter.run(intake, COMMANDS)
    assert adapter.health().state == "down"
    assert adapter.health().detail == str(refused.value)
    return refused.value


async def test_a_missing_intent_is_named_with_the_switch_that_it_needs(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    server.allows_message_content = False
    assert "Message Content Intent" in str(await run_error(adapter, intake))


@pytest.mark.parametrize("route", ["GET /users/@me", "GET /oauth2/applications/@me"])
async def test_a_login_that_discord_refuses_ends_the_run(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake, route: str
) -> None:
    server.fail(route, too_many_requests(7.5, via=False))
    error = await run_error(adapter, intake)
    assert error.retry_after_s == 7.5
    async with running(adapter, intake):
        assert adapter.health().detail == ""


@pytest.mark.usefixtures("fast_reconnects")
async def test_a_gateway_that_stays_away_ends_the_run(
    server: DiscordServer,
    adapter: WatchedDiscord,
    intake: MemoryIntake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RECONNECT_S", 0.2)
    server.is_gateway_open = False
    assert "out of reach" in str(await run_error(adapter, intake))
    server.is_gateway_open = True
    async with running(adapter, intake) as run:
        server.is_gateway_open = False
        await server.drop_gateway()
        with pytest.raises(AdapterError, match="out of reach"):
            await run
    assert "reconnecting" not in adapter.health().detail


async def test_a_close_code_that_discord_py_does_not_survive_ends_the_run(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake
) -> None:
    async with running(adapter, intake) as run:
        await server.close_gateway(4013)
        with pytest.raises(AdapterError, match="4013"):
            await run


@pytest.mark.usefixtures("fast_reconnects")
async def test_the_token_stands_in_no_error_and_no_log(
    server: DiscordServer,
    intake: MemoryIntake,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    stranger = WatchedDiscord(server, token="other.secret.token")  # noqa: S106 - of the fake
    texts += traceback.format_exception(await run_error(stranger, intake))
    adapter = WatchedDiscord(server)
    chat = server.open_dm(ALICE)
    async with running(adapter, intake):
        await server.drop_gateway()
        await adapter.went("down", "up")
        await server.say(chat, ALICE, voice=OGG)
        [message] = await intake.has(1)
    server.fail(POST, Failure(), Failure(503, "<html>"))
    server.fail(DOWNLOAD, Failure(500, "<html>"), Failure(429, "<html>"))
    for _ in range(2):
        with pytest.raises(DeliveryError) as refused:
            await adapter.send_text(f"discord:{chat}", "hello")
        texts += traceback.format_exception(refused.value)
        with pytest.raises(DeliveryError) as refused:
            await adapter.download(message, max_bytes=1000)
        texts += traceback.format_exception(refused.value)
    await adapter.close()
    await stranger.close()
    texts += [caplog.text, *capfd.readouterr()]
    assert "WebSocket Event" in caplog.text
    assert not [text for text in texts if "secret" in text]


# Sending


@pytest.fixture
def chat(server: DiscordServer) -> str:
    return f"discord:{server.open_dm(ALICE)}"


async def test_text_is_sent_as_a_reply_that_pings_nobody(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    question = await server.say(chat.removeprefix("discord:"), ALICE, "hello?")
    delivered = await adapter.send_text(chat, "**hi** @everyone", reply_to=question)
    [sent] = server.sent
    assert (sent.content, sent.reply_to, sent.message_id) == (
        "**hi** @everyone",
        question,
        delivered.message_id,
    )
    assert sent.payload["allowed_mentions"] == {"parse": []}
    assert (delivered.kind, delivered.text, delivered.parse_mode) == ("text", sent.content, "markdown")


async def test_an_answer_to_a_deleted_message_is_sent_all_the_same(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    await adapter.send_text(chat, "hi", reply_to="12345")
    await adapter.send_voice(chat, VOICE, reply_to="12345")
    assert [sent.reply_to for sent in server.sent] == ["", ""]


async def test_where_june_may_not_read_its_answer_is_no_reply(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    question = await server.say(chat.removeprefix("discord:"), ALICE, "hello?")
    server.fail(POST, refusal(400, 160002))
    await adapter.send_text(chat, "hi", reply_to=question)
    server.fail(POST, refusal(400, 160002))
    await adapter.send_voice(chat, VOICE, reply_to=question)
    assert [(sent.reply_to, sent.content, sent.files) for sent in server.sent] == [
        ("", "hi", ()),
        ("", "", (OGG,)),
    ]


async def test_a_voice_message_has_its_flag_duration_and_waveform_and_no_text(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    question = await server.say(chat.removeprefix("discord:"), ALICE, "hello?")
    delivered = await adapter.send_voice(chat, VOICE, reply_to=question)
    [sent] = server.sent
    [attachment] = sent.payload["attachments"]
    assert (sent.flags, sent.content, sent.files, sent.reply_to) == (8192, "", (OGG,), question)
    assert (attachment["filename"], attachment["duration_secs"]) == ("voice-message.ogg", 1.5)
    assert base64.b64decode(attachment["waveform"]) == VOICE.waveform
    assert (delivered.kind, delivered.message_id) == ("voice", sent.message_id)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (refusal(403, 50013), "voice_forbidden"),
        (refusal(403, 50173), "voice_forbidden"),
        (refusal(403, 50001), "refused"),
        (refusal(400, 50161), "refused"),
        (refusal(413, 40005), "too_large"),
        (Failure(413, "<html>"), "too_large"),
        (refusal(404, 10003), "gone"),
    ],
)
async def test_a_voice_message_that_is_refused_says_why(
    server: DiscordServer, adapter: WatchedDiscord, chat: str, failure: Failure, reason: Refusal
) -> None:
    server.fail(POST, failure)
    with pytest.raises(DeliveryError) as refused:
        await adapter.send_voice(chat, VOICE)
    assert refused.value.reason == reason
    await adapter.send_text(chat, "the text instead")


async def test_a_voice_message_over_discords_limit_is_not_even_tried(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    with pytest.raises(DeliveryError) as refused:
        await adapter.send_voice(chat, Voice(b"OggS" * (MAX_VOICE_BYTES // 4 + 1), 1.0, b"\x01"))
    assert (refused.value.reason, server.requests) == ("too_large", [])


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (too_many_requests(4.5, via=False), ("try_again", 4.5)),
        (too_many_requests(900.0, via=True), ("try_again", 900.0)),
        (Failure(429, "<html>"), ("try_again", None)),
        (Failure(503, "<html>"), ("try_again", None)),
        (Failure(), ("try_again", None)),
        (refusal(401, 0), ("try_again", None)),
        (refusal(403, 50013), ("refused", None)),
        (refusal(403, 50007), ("refused", None)),
        (refusal(400, 50035), ("refused", None)),
        (refusal(404, 10003), ("gone", None)),
    ],
)
async def test_a_text_that_is_not_taken_says_whether_to_try_again(
    server: DiscordServer,
    adapter: WatchedDiscord,
    chat: str,
    failure: Failure,
    expected: tuple[Refusal, float | None],
) -> None:
    server.fail(POST, failure)
    with pytest.raises(DeliveryError) as refused:
        await adapter.send_text(chat, "hello")
    assert (refused.value.reason, refused.value.retry_after_s) == expected
    assert "hello" not in str(refused.value)
    await adapter.send_text(chat, "hello")
    assert len(server.sent) == 1


async def test_a_short_wait_that_discord_asks_for_is_waited(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    server.fail(POST, too_many_requests(0.05, via=True))
    await adapter.send_voice(chat, VOICE)
    assert [sent.files for sent in server.sent] == [(OGG,)]


async def test_a_message_whose_answer_was_lost_is_not_sent_twice(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    server.fail(POST, Failure(502, "<html>", after_work=True))
    delivered = await adapter.send_text(chat, "once")
    assert [sent.message_id for sent in server.sent] == [delivered.message_id]
    assert server.requests.count(POST) == 2


async def test_a_request_over_the_time_limit_is_given_back(server: DiscordServer, chat: str) -> None:
    adapter = WatchedDiscord(server, timeout_s=0.3)
    server.fail(POST, Failure(502, "<html>"))  # discord.py would wait for a second
    with pytest.raises(DeliveryError) as refused:
        await adapter.send_text(chat, "hello")
    assert refused.value.reason == "try_again"
    await adapter.close()


async def test_plain_text_has_no_markup_and_is_cut_at_the_limit(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    await adapter.send_plain(chat, "2 * 3 * 4 and _that_")
    await adapter.send_plain(chat, "*" * 3000)
    assert server.sent[0].content == r"2 \* 3 \* 4 and \_that\_"
    assert server.sent[1].content == r"\*" * 1000


async def test_long_markdown_becomes_parts_that_discord_takes(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    parts = adapter.parts("A **long** story. " * 300)
    for part in parts:
        await adapter.send_text(chat, part)
    assert [sent.content for sent in server.sent] == parts
    assert len(parts) > 2


async def test_a_message_is_edited_and_deleted(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    sent = await adapter.send_text(chat, "fir")
    edited = await adapter.edit_text(chat, sent.message_id, "first")
    channel = chat.removeprefix("discord:")
    assert server.edits == [(channel, sent.message_id, "first")]
    assert (edited.message_id, edited.text, edited.edited) == (sent.message_id, "first", True)
    for _ in range(2):  # what is gone is deleted
        await adapter.delete(chat, sent.message_id)
    assert server.deleted == [(channel, sent.message_id)]
    with pytest.raises(DeliveryError) as refused:
        await adapter.edit_text(chat, sent.message_id, "first")
    assert refused.value.reason == "gone"


async def test_a_person_is_reached_in_a_private_chat_that_is_opened(
    server: DiscordServer, adapter: WatchedDiscord
) -> None:
    chat = await adapter.private_chat("discord:4242")
    await adapter.send_text(chat, "hello")
    sent = await server.sent_where(lambda sent: sent.content == "hello")
    assert chat == f"discord:{sent.channel_id}" != "discord:4242"


async def test_working_is_shown_as_typing_and_drafts_are_unknown(
    server: DiscordServer, adapter: WatchedDiscord, chat: str
) -> None:
    assert 0 < await adapter.show_working(chat, "recording") < 10
    assert server.typing == [chat.removeprefix("discord:")]
    assert not await adapter.show_draft(chat, 1, "thinking")


async def test_sending_works_before_while_and_after_the_intake_runs(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake, chat: str
) -> None:
    assert adapter.health().state == "starting"
    await adapter.send_text(chat, "before")
    async with running(adapter, intake):
        await adapter.send_text(chat, "while")
    assert adapter.health().state == "down"
    await adapter.send_text(chat, "after")
    assert [sent.content for sent in server.sent] == ["before", "while", "after"]


async def test_nothing_is_left_open_or_running(server: DiscordServer, intake: MemoryIntake) -> None:
    tasks = asyncio.all_tasks()
    adapter: Adapter = WatchedDiscord(server)
    assert isinstance(adapter, WatchedDiscord)
    async with running(adapter, intake):
        await adapter.send_text(f"discord:{server.open_dm(OWNER_ID)}", "hello")
    await adapter.close()
    await server.until(lambda: not server.is_connected)
    assert heartbeats_end()
    left = asyncio.all_tasks() - tasks
    assert not [task for task in left if "RequestHandler" not in str(task)]


def heartbeats_end() -> bool:
    """Whether discord.py's threads are told to end; they wait for a while between two heartbeats."""
    threads = [thread for thread in threading.enumerate() if isinstance(thread, KeepAliveHandler)]
    for thread in threads:
        thread.join(timeout=2)
    return not any(thread.is_alive() for thread in threads)


async def test_nothing_is_left_of_a_handshake_that_is_cut_short(
    server: DiscordServer, adapter: WatchedDiscord, intake: MemoryIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = asyncio.Event()

    async def wait(*_: object, **__: object) -> None:
        waits.set()
        await asyncio.Event().wait()

    async with running(adapter, intake):
        monkeypatch.setattr(library.Client, "before_identify_hook", wait)  # five seconds of waiting
        await server.invalidate_session()
        await waits.wait()
    assert heartbeats_end()


# A second opinion


async def test_what_is_sent_passes_simcords_checks(
    adapter: WatchedDiscord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Route, "BASE", "https://discord.com/api/v10")
    bot = library.Client(intents=library.Intents.default())
    async with simcord.run(bot) as env:
        monkeypatch.setattr(adapter, "_sender", bot)  # simcord takes over one client
        channel = env.create_guild().create_text_channel("general")
        chat = f"discord:{channel.id}"
        parts = adapter.parts("**Long** words, `code` and @everyone. " * 100)
        sent = [await adapter.send_text(chat, part) for part in parts]
        await adapter.edit_text(chat, sent[0].message_id, "*edited*")
        await adapter.send_voice(chat, VOICE, reply_to=sent[0].message_id)
        await adapter.delete(chat, sent[1].message_id)
        with pytest.raises(DeliveryError) as refused:
            await adapter.send_text(chat, "x" * 2001)
        *texts, voice = channel.history()
    monkeypatch.undo()
    assert refused.value.reason == "refused"
    assert [message.content for message in texts] == ["*edited*", *parts[2:]]
    assert not any(message.mention_everyone for message in texts)
    assert (voice.flags.voice, voice.content, len(voice.attachments)) == (True, "", 1)
    assert voice.reference
    assert voice.reference.message_id == int(sent[0].message_id)
