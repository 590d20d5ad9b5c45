"""june as people run it: a process of its own, both chat apps, the real models, and what may befall it."""

import asyncio
import base64
import gc
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from june.app import serve
from june.audio import decode
from june.bench.recordings import Question, wrong_words
from june.chat.commands import MODE_SENTENCES
from june.chat.discord.formatting import visible_discord
from june.chat.telegram.formatting import visible_telegram
from june.conversation.speakable import speakable
from june.sections import PROJECT_ROOT
from june.settings import Settings, load_settings
from june.stt.faster_whisper import FasterWhisper
from tests.discord_server import DiscordServer
from tests.lateness import watched
from tests.program import running, write_settings
from tests.telegram_server import (
    ALICE,
    BAD_GATEWAY,
    CONFLICT,
    DROPPED,
    GROUP,
    NOT_FOUND,
    Call,
    TelegramServer,
    too_many_requests,
)

DISCORD_TOKEN = "MTIz.a-token-that.nobody-may-see"  # noqa: S105 (of the test's own server)
BOB = "987654321098765432"
STRANGER = 6_666


def telegram(server: TelegramServer) -> dict[str, str]:
    return {"token": server.token, "api_base": server.base_url}


def discord(server: DiscordServer) -> dict[str, str]:
    return {"token": server.token, "api_base": server.api_base, "gateway": server.gateway}


ACCESS = {"owners": [f"telegram:{ALICE}"], "allowed": [f"discord:{BOB}", "telegram:1002", "telegram:1003"]}


def is_voice(call: Call) -> bool:
    return call.method == "sendVoice" and call.ok


async def test_a_spoken_question_gets_a_voice_bubble_with_its_text_on_both_apps(
    tmp_path: Path, settings: Settings, stt: FasterWhisper, questions: tuple[Question, ...]
) -> None:
    async with TelegramServer() as telegram_server, DiscordServer(token=DISCORD_TOKEN) as discord_server:
        direct = discord_server.open_dm(BOB)
        file = write_settings(
            tmp_path, telegram=telegram(telegram_server), discord=discord(discord_server), access=ACCESS
        )
        async with running(file) as june:
            await june.logged("june.started")
            asked = telegram_server.push_file("voice", questions[0].audio)
            bubble = await telegram_server.wait_for(is_voice)
            (text,) = telegram_server.sent("sendMessage", ALICE)
            assert bubble.chat == ALICE
            assert bubble.reply_to == text.reply_to == asked
            echo, _, answer = visible_telegram(text.text).partition("\n")
            assert wrong_words(questions[0].text, echo) <= 3
            await assert_speaks(stt, settings, bubble.voice, answer)
            heard = await stt.transcribe(decode(bubble.voice, settings.audio))
            assert int(bubble.params["duration"]) == pytest.approx(heard.duration_s, abs=1)

            await discord_server.until(lambda: discord_server.is_connected)
            await discord_server.say(direct, BOB, voice=questions[0].audio)
            spoken = await discord_server.sent_where(lambda sent: sent.flags == 8192)
            written = await discord_server.sent_where(lambda sent: sent.content)
            assert spoken.channel_id == written.channel_id == direct
            (attachment,) = spoken.payload["attachments"]
            assert len(set(base64.b64decode(attachment["waveform"]))) > 10
            shown = [text for _, message, text in discord_server.edits if message == written.message_id]
            _, _, answer_there = [written.content, *shown][-1].partition("\n")  # it grew before eyes
            await assert_speaks(stt, settings, spoken.files[0], visible_discord(answer_there))
            heard = await stt.transcribe(decode(spoken.files[0], settings.audio))
            assert attachment["duration_secs"] == pytest.approx(heard.duration_s, abs=0.1)
            assert await june.terminate() == 0
        assert telegram_server.token not in june.output
        assert DISCORD_TOKEN not in june.output
        assert answer not in june.output


async def assert_speaks(stt: FasterWhisper, settings: Settings, voice: bytes, answer: str) -> None:
    """Check that the voice says the words of the answer, with a word error rate of at most 0.2."""
    said = speakable(answer)
    heard = await stt.transcribe(decode(voice, settings.audio))
    assert len(said.split()) > 10
    assert wrong_words(said, heard.text) <= 0.2 * len(said.split())


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
async def test_every_message_is_answered_whatever_moment_june_is_killed_at(
    tmp_path: Path, questions: tuple[Question, ...], kills: int
) -> None:
    moment = random.Random(7)  # noqa: S311 - no secret
    async with TelegramServer() as server:
        access = {"owners": [f"telegram:{ALICE + person}" for person in range(4)]}
        file = write_settings(
            tmp_path,
            telegram=telegram(server),
            access=access,
            llm={"max_tokens": 12},
            chat={"max_attempts": 50},
        )
        asked: list[int] = []
        killed_s: list[float] = []
        for _ in range(kills):
            async with running(file) as june:
                end_s = time.monotonic() + moment.uniform(0, 9)
                while (rest_s := end_s - time.monotonic()) > 0:
                    asked.append(ask_something(server, questions, moment))
                    with suppress(TimeoutError):  # anything june does may come before the next question
                        await server.wait_for(lambda call: call.ok, count=10**9, timeout_s=min(1.5, rest_s))
                killed_s.append(time.monotonic())
                await june.kill()
        asked.append(ask_something(server, questions, moment))
        async with running(file) as june:
            for message_id in asked:
                await server.wait_for(partial(is_last_answer, server, message_id), timeout_s=120)
            assert await june.terminate() == 0
        answered = Counter(
            call.reply_to for call in server.calls if is_last_answer(server, call.reply_to, call)
        )
        assert answered.keys() == set(asked)
        for message_id, count in answered.items():
            first = next(call for call in server.calls if is_last_answer(server, message_id, call))
            was_committed_in_time = all(not 0 <= kill_s - first.finished_s < 0.25 for kill_s in killed_s)
            assert count == 1 or (count == 2 and not was_committed_in_time), (count, message_id)


def ask_something(server: TelegramServer, questions: tuple[Question, ...], moment: random.Random) -> int:
    """Let one of four people speak or write, and return the message's id."""
    user = ALICE + moment.randrange(4)
    if moment.random() < 0.5:
        return server.push("What is blue?", user=user)
    return server.push_file("voice", moment.choice(questions).audio, user=user)


def is_last_answer(server: TelegramServer, message_id: int, call: Call) -> bool:
    """Return whether a call is the last of a message's answer: a voice to a voice, a text to a text."""
    is_spoken = any(
        "voice" in message for (_, each), message in server.messages.items() if each == message_id
    )
    method = "sendVoice" if is_spoken else "sendMessage"
    return call.ok and call.method == method and call.reply_to == message_id


async def test_told_to_stop_june_finishes_its_turn_and_keeps_what_waits(
    tmp_path: Path, questions: tuple[Question, ...]
) -> None:
    async with TelegramServer() as server:
        file = write_settings(tmp_path, telegram=telegram(server), access=ACCESS, chat={"max_turns": 1})
        async with running(file) as june:
            await june.logged("june.started")
            running_turn = server.push_file("voice", questions[0].audio)
            await server.wait_for(lambda call: call.method == "sendChatAction")
            waiting = server.push_file("voice", questions[1].audio, user=1002)
            await server.wait_for(lambda call: call.method == "sendMessageDraft")
            assert await june.terminate() == 0
        assert [call.reply_to for call in server.sent("sendVoice")] == [running_turn]
        async with running(file) as june:
            await server.wait_for(lambda call: is_voice(call) and call.reply_to == waiting, timeout_s=60)
            assert await june.terminate() == 0
        assert len(server.sent("sendVoice")) == 2


async def test_told_to_stop_a_long_turn_goes_back_to_the_store(tmp_path: Path) -> None:
    async with TelegramServer() as server:
        file = write_settings(
            tmp_path,
            telegram=telegram(server),
            access=ACCESS,
            llm={"max_tokens": 2_000},
            chat={"shutdown_s": 0.2},
        )
        async with running(file) as june:
            await june.logged("june.started")
            asked = server.push("Tell me a very long story about the sea, and do not end it.")
            await server.wait_for(lambda call: call.method == "sendMessageDraft")
            begin_s = time.monotonic()
            assert await june.terminate() == 0
            assert time.monotonic() - begin_s < 10
        assert server.sent("sendMessage") == []
        write_settings(tmp_path, telegram=telegram(server), access=ACCESS)
        async with running(file) as june:
            await server.wait_for(partial(is_last_answer, server, asked), timeout_s=60)
            assert await june.terminate() == 0


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
)
async def test_a_second_signal_of_either_kind_ends_june_at_once(
    tmp_path: Path, first: signal.Signals, second: signal.Signals
) -> None:
    async with TelegramServer() as server:
        llm = {"max_tokens": 2_000}
        file = write_settings(tmp_path, telegram=telegram(server), access=ACCESS, llm=llm)
        async with running(file) as june:
            await june.logged("june.started")
            server.push("Tell me a very long story about the sea, and do not end it.")
            await server.wait_for(lambda call: call.method == "sendMessageDraft")
            june.send(first)
            await june.logged("shutdown.begun")
            june.send(second)
            assert await june.ended() == -second


async def test_a_stranger_gets_nothing_wherever_and_whatever_it_is(
    tmp_path: Path, questions: tuple[Question, ...]
) -> None:
    async with TelegramServer() as server:
        file = write_settings(tmp_path, telegram=telegram(server), access=ACCESS)
        async with running(file) as june:
            await june.logged("june.started")
            owner = {"id": ALICE, "is_bot": False, "first_name": "Alice"}
            forwarded = {"type": "user", "sender_user": owner, "date": 1}
            server.push("hello", user=STRANGER)
            server.push("/start", user=STRANGER)
            server.push_file("voice", questions[0].audio, user=STRANGER)
            server.push("@june_test_bot hello", user=STRANGER, chat=GROUP)
            server.push_file("voice", questions[0].audio, user=STRANGER, chat=GROUP)
            server.push("hello", user=STRANGER, forward_origin=forwarded)
            await june.logged("stranger.ignored", count=6)
            asked = server.push("hello")
            await server.wait_for(partial(is_last_answer, server, asked))
            assert await june.terminate() == 0
        about = [call for call in server.calls if call.chat]
        assert {call.chat for call in about} == {ALICE}


async def test_what_goes_wrong_with_telegram_is_survived(
    tmp_path: Path, questions: tuple[Question, ...]
) -> None:
    async with TelegramServer() as server:
        file = write_settings(tmp_path, telegram=telegram(server), access=ACCESS)
        server.fail("getMe", BAD_GATEWAY)
        server.fail("getUpdates", CONFLICT, DROPPED, BAD_GATEWAY, too_many_requests(1))
        server.fail("file", BAD_GATEWAY, NOT_FOUND)
        server.fail("sendMessage", too_many_requests(1), BAD_GATEWAY)
        server.fail("sendVoice", DROPPED)
        async with running(file) as june:
            asked = server.push_file("voice", questions[0].audio)
            await server.wait_for(partial(is_last_answer, server, asked), timeout_s=90)
            assert await june.terminate() == 0
            assert server.token not in june.output
        assert len(server.sent("sendVoice")) == len(server.sent("sendMessage")) == 1


async def test_a_group_that_becomes_a_supergroup_keeps_what_it_has_set(tmp_path: Path) -> None:
    supergroup = -100_900
    async with TelegramServer() as server:
        file = write_settings(tmp_path, telegram=telegram(server), access=ACCESS)
        async with running(file) as june:
            server.push("/voice off", chat=GROUP)
            await server.wait_for(
                lambda call: call.ok and call.chat == GROUP and call.text != "", timeout_s=60
            )
            server.upgrade(GROUP, supergroup)
            server.push("/voice", chat=supergroup)
            told = await server.wait_for(lambda call: call.ok and call.chat == supergroup and call.text != "")
            assert visible_telegram(told.text) == MODE_SENTENCES["text"]
            assert await june.terminate() == 0
            (moved,) = [each for each in june.events if each["event"] == "chat.moved"]
            assert moved["platform"] == "telegram"
            assert moved["chat"].startswith("telegram:#")


async def test_twenty_people_at_once_are_all_answered_in_order_and_the_loop_never_stalls(
    tmp_path: Path, questions: tuple[Question, ...]
) -> None:
    stop = asyncio.Event()
    async with TelegramServer() as server:
        tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
        people = [2_000 + number for number in range(20)]
        access = {"owners": [f"telegram:{person}" for person in people]}
        file = write_settings(tmp_path, telegram=telegram(server), access=access, llm={"max_tokens": 12})
        serving = asyncio.create_task(serve(load_settings(file), stop))
        first = server.push("hello", user=people[0])
        await server.wait_for(partial(is_last_answer, server, first), timeout_s=60)
        async with watched() as lateness:
            asked = {
                person: [
                    server.push_file("voice", questions[0].audio, user=person),
                    server.push("Why?", user=person),
                ]
                for person in people
            }
            for messages in asked.values():
                for message_id in messages:
                    await server.wait_for(partial(is_last_answer, server, message_id), timeout_s=120)
        looked_at, left_out = len(gc.get_objects()), gc.get_freeze_count()
        stop.set()
        await serving
        assert looked_at < left_out / 4
        assert gc.get_freeze_count() == 0
        left = {task.get_name() for task in asyncio.all_tasks() - tasks if "june" in repr(task.get_coro())}
        assert not left
        assert not set(threading.enumerate()) - threads
        for person, messages in asked.items():
            sent = [call.reply_to for call in server.sent("sendMessage", person)]
            assert sent[-2:] == messages
            assert [call.reply_to for call in server.sent("sendVoice", person)] == messages[:1]
        assert lateness.worst_s() < 0.1


async def test_without_a_chat_app_june_says_so(tmp_path: Path) -> None:
    file = write_settings(tmp_path)
    for arguments in (["run"], []):
        status, output = await failed(*arguments, "--settings", str(file))
        assert status == 2
        assert output.startswith("june: june is on no chat app: set telegram.token or discord.token")


async def test_settings_that_stand_before_a_command_are_not_ignored(tmp_path: Path) -> None:
    status, output = await failed("--settings", str(write_settings(tmp_path)), "check")
    assert (status, output) == (2, "june: --settings: write it after check.\n")


async def failed(*arguments: str) -> tuple[int | None, str]:
    """Run june, and return its exit status and what it wrote to standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "june", *arguments), stderr=asyncio.subprocess.PIPE, cwd=PROJECT_ROOT
    )
    _, output = await process.communicate()
    return process.returncode, output.decode()
