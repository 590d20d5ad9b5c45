"""Health while turns fail: real turns with models that tests hold, and the real /health."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from june.bench.recordings import Question
from june.errors import SENTENCES, DeliveryError, GenerationError, SynthesisError
from june.settings import Settings
from tests.api_client import Office
from tests.conversation.test_dispatch import FakeApps, House, voice
from tests.stored import ANNA, inbound


class WatchedHouse(House):
    """A house that counts its messages, and is asked for its health over HTTP."""

    office: Office

    async def say(self, *, times: int, spoken: bool = True, status: str = "RESPONDED") -> None:
        """Have so many messages answered, one after the other."""
        for _ in range(times):
            entries = [each for each in await self.store.history.entries() if each.direction == "in"]
            number, ended = len(entries) + 1, sum(each.status == status for each in entries)
            await self.arrive(voice(number) if spoken else inbound(number))
            await self.statuses(ended + 1, status)

    async def failing(self) -> list[dict[str, Any]]:
        """Return the failing stages in /health, and check that its status agrees with them."""
        health = await self.office.client.get("/health")
        failing: list[dict[str, Any]] = health.body["failing_stages"]
        expected = (503, "failing") if failing else (200, "ok")
        assert (health.status, health.body["status"]) == expected
        return failing

    async def failing_names(self) -> list[tuple[str, str, int]]:
        """Return the failing stages, their errors and how often they failed."""
        return [(each["stage"], each["error"], each["failures"]) for each in await self.failing()]


Open = Callable[..., AbstractAsyncContextManager[WatchedHouse]]


@pytest.fixture
def open_house(tmp_path: Path, settings: Settings, questions: tuple[Question, ...]) -> Open:
    @asynccontextmanager
    async def opened(**sections: dict[str, Any]) -> AsyncIterator[WatchedHouse]:
        changes = {name: getattr(settings, name).model_copy(update=keys) for name, keys in sections.items()}
        async with Office(tmp_path) as office:
            changed = settings.model_copy(update=changes)
            house = WatchedHouse(office.store, changed, FakeApps(questions[0].audio))
            house.office, office.record = office, house.desk.record
            try:
                yield house
            finally:
                house.running.cancel()
                await house.dispatcher.close(0)
                await house.pipeline.close()

    return opened


async def test_a_model_that_fails_in_three_turns_shows_until_a_turn_works(open_house: Open) -> None:
    async with open_house() as house:
        await house.say(times=1)
        house.llm.error = GenerationError("llm_failed", "broken")
        begin_s = time.time()
        await house.say(times=2, status="ERROR")
        later_s = time.time()
        assert await house.failing() == []
        await house.say(times=2, status="ERROR")
        (failing,) = await house.failing()
        assert (failing["stage"], failing["error"], failing["failures"]) == ("llm", "llm_failed", 4)
        since_s = datetime.fromisoformat(failing["since"]).timestamp()
        assert begin_s - 0.001 <= since_s <= later_s  # milliseconds are cut off
        house.llm.error = None
        await house.say(times=1)
        assert await house.failing() == []


async def test_an_unexpected_failure_of_the_decoder_is_not_taken_for_the_persons(open_house: Open) -> None:
    async with open_house(audio={"max_bytes": None}) as house:  # comparing with it is a TypeError
        await house.say(times=3, status="ERROR")
        assert await house.failing_names() == [("decode", "internal", 3)]
        assert {each.text for each in await house.outbox(3)} == {SENTENCES["internal"]}


async def test_written_messages_that_work_do_not_hide_that_every_voice_message_fails(
    open_house: Open,
) -> None:
    async with open_house() as house:
        house.stt.error = TypeError("no such argument")
        for _ in range(3):
            await house.say(times=1, status="ERROR")
            await house.say(times=1, spoken=False)
        assert await house.failing_names() == [("stt", "internal", 3)]
        house.stt.error = None
        await house.say(times=1)
        assert await house.failing() == []


async def test_answers_that_are_written_but_never_spoken_count(open_house: Open) -> None:
    async with open_house() as house:
        house.tts.error = SynthesisError("tts_failed", "broken")
        await house.say(times=3)
        assert await house.failing_names() == [("tts", "tts_failed", 3)]
        await house.say(times=1, spoken=False)
        assert await house.failing_names() == [("tts", "tts_failed", 3)]
        house.tts.error = None
        await house.say(times=1)
        assert await house.failing() == []


async def test_what_fails_outside_of_every_stage_counts(open_house: Open) -> None:
    async with open_house() as house:
        house.apps.working_failure = TypeError("no such argument")
        await house.say(times=3, spoken=False, status="ERROR")
        assert await house.failing_names() == [("turn", "internal", 3)]


@pytest.mark.parametrize(
    "reason", ["unreadable", "no file", "too much to do", "nothing to say", "too long a text"]
)
async def test_a_reason_that_is_not_junes_never_counts(open_house: Open, reason: str) -> None:
    async with open_house() as house:
        status = "ERROR"
        match reason:
            case "unreadable":
                house.apps.audio = b"This text is a recording in name only."
            case "no file":
                house.apps.failure = DeliveryError("gone", "the app does not hand it out")
            case "too much to do":
                house.stt.error = GenerationError("busy", "8 answers wait already.")
            case "too long a text":
                house.llm.most_messages = 0
            case _:
                house.llm.pieces, status = ("```", "\n```"), "RESPONDED"
        await house.say(times=4, status=status)
        assert await house.failing() == []


async def test_turns_that_are_stopped_never_count(open_house: Open) -> None:
    async with open_house() as house:
        house.llm.hangs = True
        for number in range(1, 5):
            await house.arrive(voice(2 * number))
            await house.llm_calls(number)
            await house.arrive(inbound(2 * number + 1, ANNA, "/stop", kind="command"))
            await house.statuses(2 * number)
        assert await house.failing() == []
