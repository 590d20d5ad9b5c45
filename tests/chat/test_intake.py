"""Who is served: what is stored of that which arrives, and what is said about the rest."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY

from june.chat.intake import HOUR_S, MAX_REMEMBERED_STRANGERS, TRIES_PER_HOUR, WELCOME, Gate, new_pairing_code
from june.conversation.deciding import Rules, place
from june.errors import StoreError
from june.messages import Attachment, ChatPreferences, Inbound
from june.sections import AccessSettings, RoutesSettings, TelemetrySettings
from june.store import HistoryEntry, Received, Store, open_store
from june.telemetry import configure_logging, hashed
from tests.stored import place_by_default

OWNER, BOB, STRANGER = "telegram:1", "telegram:2", "telegram:3"
START_S = 1_800_000_000.0
NO_ROUTES = RoutesSettings()


@dataclass
class Doorstep:
    """A gate before a real store, and what it called."""

    store: Store
    gate: Gate
    now_s: float = START_S
    received: list[Received] = field(default_factory=list)
    outbox_calls: int = 0

    async def sent(self) -> list[HistoryEntry]:
        """Everything in the outbox."""
        return [row for row in await self.store.history.entries(limit=1000) if row.direction == "out"]

    async def stored(self) -> list[str]:
        """Return the platform's ids of everything in the inbox."""
        return [
            row.platform_message_id
            for row in await self.store.history.entries(limit=1000)
            if row.direction == "in"
        ]


@asynccontextmanager
async def open_door(
    path: Path, access: AccessSettings, routes: RoutesSettings = NO_ROUTES
) -> AsyncIterator[Doorstep]:
    def note(new: Sequence[Received]) -> None:
        opened.received += new

    def wake() -> None:
        opened.outbox_calls += 1

    def clock() -> float:
        return opened.now_s

    async with open_store(path / "june.db", clock=clock) as store:
        opened = Doorstep(
            store,
            Gate(
                store,
                access,
                partial(place, rules=Rules(routes, ("june",))),
                on_received=note,
                wake_delivery=wake,
                clock=clock,
            ),
        )
        yield opened


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Doorstep]:
    access = AccessSettings(
        owners=[OWNER], allowed=[BOB], pairing=True, messages_per_minute=3, audio_s_per_day=600
    )
    async with open_door(tmp_path, access) as opened:
        yield opened


numbers = iter(range(1, 1_000_000))


def text(user: str = BOB, words: str = "secret words", **changes: Any) -> Inbound:
    message = Inbound(
        "telegram", f"m{next(numbers)}", user, user, "Mallory", "text", words, sent_at_s=START_S
    )
    return replace(message, **changes)


def note(user: str = BOB, duration_s: float = 60, size_bytes: int = 1000, **changes: Any) -> Inbound:
    recording = Attachment("file", size_bytes, duration_s)
    return text(user, "", kind="voice", attachment=recording, **changes)


def answered(message: Inbound) -> Inbound:
    """Return the message as it is stored if june answers it."""
    return replace(message, route="assistant")


GROUP: dict[str, Any] = {"chat": "telegram:-100", "is_group": True}
UNADDRESSED = GROUP | {"is_addressed": False}


@contextmanager
def counted(name: str, by: float = 1, **labels: str) -> Iterator[None]:
    before = REGISTRY.get_sample_value(name, labels) or 0
    yield
    assert (REGISTRY.get_sample_value(name, labels) or 0) - before == by


@pytest.fixture
def _unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


# --- who is served ---


async def test_messages_of_owners_and_allowed_people_are_stored_once_with_their_role(door: Doorstep) -> None:
    batch = [text(OWNER), text(BOB), text(BOB, kind="command"), note(OWNER)]
    with (
        counted("june_messages_total", platform="telegram", kind="text", sender="owner"),
        counted("june_messages_total", platform="telegram", kind="text", sender="allowed"),
        counted("june_messages_total", platform="telegram", kind="voice", sender="owner"),
    ):
        await door.gate.receive(batch)
        await door.gate.receive(batch)
    assert [(row.message, row.role) for row in door.received] == [
        (answered(batch[0]), "owner"),
        (answered(batch[1]), "allowed"),
        (answered(batch[2]), "allowed"),
        (answered(batch[3]), "owner"),
    ]
    assert await door.stored() == [message.message_id for message in batch]
    assert await door.sent() == []
    assert door.outbox_calls == 0


@pytest.mark.parametrize(
    "message",
    [
        text(STRANGER),
        text(STRANGER, **GROUP),
        text(STRANGER, **UNADDRESSED),
        text(STRANGER, "/start", kind="command"),
        note(STRANGER),
        note(STRANGER, **GROUP),
        note(STRANGER, **UNADDRESSED),
        text(STRANGER, "what the owner wrote", reply_to="m1"),  # forwarded: its sender is who forwards it
        text("discord:1", platform="discord", chat="discord:4711"),  # an owner's number on the other app
    ],
)
async def test_of_a_stranger_nothing_is_stored_or_answered_but_the_cursor_moves(
    door: Doorstep, message: Inbound
) -> None:
    await door.gate.receive([message], cursor=("offset", "17"))
    assert await door.store.history.entries() == []
    assert (door.received, door.outbox_calls) == ([], 0)
    assert await door.gate.cursor("offset") == "17"


@pytest.mark.usefixtures("_unconfigured")
@pytest.mark.parametrize("log_user_ids", [False, True])
async def test_a_stranger_costs_a_counter_and_a_log_line_with_the_id_only_if_it_is_asked_for(
    door: Doorstep, capsys: pytest.CaptureFixture[str], *, log_user_ids: bool
) -> None:
    configure_logging(TelemetrySettings(log_format="json", log_user_ids=log_user_ids))
    with counted("june_dropped_total", reason="stranger"):
        await door.gate.receive([text(STRANGER)])
    (event,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    del event["timestamp"]
    assert event == {
        "event": "stranger.ignored",
        "level": "info",
        "platform": "telegram",
        "user": STRANGER if log_user_ids else hashed(STRANGER),
    }
    assert STRANGER not in hashed(STRANGER)


async def test_the_owners_may_let_in_and_shut_out_but_for_themselves(door: Doorstep) -> None:
    await door.store.people.set_access(STRANGER, "allowed", name="", added_by=OWNER)
    await door.store.people.set_access(BOB, "denied", name="", added_by=OWNER)
    await door.store.people.set_access(OWNER, "denied", name="", added_by=OWNER)
    assert [await door.gate.role_of(user) for user in (OWNER, BOB, STRANGER, "telegram:4")] == [
        "owner",
        None,
        "allowed",
        None,
    ]
    await door.gate.receive([text(BOB), text(STRANGER), text(OWNER)])
    assert [row.message.user for row in door.received] == [STRANGER, OWNER]


# --- groups ---


async def test_of_a_group_only_what_is_for_june_and_recordings_of_the_served_are_stored(
    door: Doorstep,
) -> None:
    spoken, addressed = note(BOB, **UNADDRESSED), text(BOB, **GROUP)
    with counted("june_dropped_total", 2, reason="not_addressed"):
        await door.gate.receive(
            [text(BOB, **UNADDRESSED), text(OWNER, "/help", kind="command", **UNADDRESSED), spoken, addressed]
        )
    assert [row.message for row in door.received] == [answered(spoken), answered(addressed)]


@pytest.mark.usefixtures("_unconfigured")
async def test_what_strangers_write_to_one_another_in_a_group_is_not_logged(
    door: Doorstep, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(TelemetrySettings(log_format="json"))
    await door.gate.receive([text(STRANGER, **UNADDRESSED)])
    assert capsys.readouterr().err == ""


# --- limits ---


async def test_the_first_message_too_many_is_explained_and_the_rest_are_silent(door: Doorstep) -> None:
    batch = [text() for _ in range(5)]
    with counted("june_dropped_total", 2, reason="messages_per_minute"):
        await door.gate.receive(batch)
    assert await door.stored() == [message.message_id for message in batch[:3]]
    (notice,) = await door.sent()
    assert (notice.chat, notice.kind, notice.reply_to) == (BOB, "text", batch[3].message_id)
    assert "3 messages" in notice.text
    assert door.outbox_calls == 1
    await door.gate.receive([text()])
    assert len(await door.sent()) == 1


async def test_a_minute_later_messages_are_taken_again_and_the_next_too_many_is_explained(
    door: Doorstep,
) -> None:
    await door.gate.receive([text() for _ in range(4)])
    for seconds, stored, notices in ((59.0, 3, 1), (60.0, 4, 1)):
        await door.gate.receive([text(sent_at_s=START_S + seconds)])
        assert (len(await door.stored()), len(await door.sent())) == (stored, notices)
    await door.gate.receive([text(sent_at_s=START_S + 61) for _ in range(3)])
    assert (len(await door.stored()), len(await door.sent())) == (6, 2)


async def test_what_was_sent_over_hours_while_june_was_away_is_not_too_much(door: Doorstep) -> None:
    batch = [text(sent_at_s=START_S + 30 * number) for number in range(20)]
    await door.gate.receive(batch)
    assert len(await door.stored()) == 20
    await door.gate.receive([text(sent_at_s=START_S - 3600)])  # caught up late
    assert len(await door.stored()) == 21


async def test_a_message_without_a_time_counts_from_its_arrival(door: Doorstep) -> None:
    await door.gate.receive([text(sent_at_s=0.0) for _ in range(4)])
    assert len(await door.stored()) == 3
    door.now_s += 60
    await door.gate.receive([text(sent_at_s=0.0)])
    assert len(await door.stored()) == 4


async def test_what_the_platform_repeats_counts_once(door: Doorstep) -> None:
    batch = [text() for _ in range(3)]
    for _ in range(2):
        await door.gate.receive(batch)
    assert len(await door.stored()) == 3
    assert await door.sent() == []


async def test_recordings_beyond_the_daily_seconds_are_refused_and_text_is_not(door: Doorstep) -> None:
    await door.gate.receive([note(duration_s=500)])
    with counted("june_dropped_total", 2, reason="audio_s_per_day"):
        await door.gate.receive([note(duration_s=101), text(), note(duration_s=101, sent_at_s=START_S + 60)])
    assert [row.message.kind for row in door.received] == ["voice", "text"]
    (notice,) = await door.sent()
    assert "10 minutes" in notice.text


async def test_recordings_of_one_batch_add_up(door: Doorstep) -> None:
    await door.gate.receive([note(duration_s=350), note(duration_s=200), note(duration_s=51)])
    assert len(await door.stored()) == 2
    await door.gate.receive([note(duration_s=50, sent_at_s=START_S + 60)])
    assert len(await door.stored()) == 3


async def test_a_day_later_recordings_are_taken_again(door: Doorstep) -> None:
    await door.gate.receive([note(duration_s=600), note(duration_s=1)])
    door.now_s += 86_401
    await door.gate.receive([note(duration_s=600, sent_at_s=door.now_s)])
    assert len(await door.stored()) == 2
    await door.gate.receive([note(duration_s=1, sent_at_s=door.now_s)])
    assert len(await door.sent()) == 2


async def test_a_recording_of_unknown_length_counts_by_its_size(door: Doorstep) -> None:
    await door.gate.receive([note(duration_s=0, size_bytes=1_200_001)])
    assert await door.stored() == []
    await door.gate.receive([note(duration_s=0, size_bytes=1_200_000)])
    assert len(await door.stored()) == 1


async def test_owners_have_no_limits_and_nobody_spends_anothers(door: Doorstep) -> None:
    await door.gate.receive([note(OWNER, duration_s=10_000) for _ in range(10)])
    await door.store.people.set_access(STRANGER, "allowed", name="", added_by=OWNER)
    await door.gate.receive([note(user, duration_s=600) for user in (BOB, STRANGER)])
    assert len(await door.stored()) == 12
    assert await door.sent() == []


async def test_june_explains_no_limit_where_it_was_not_spoken_to(door: Doorstep) -> None:
    await door.gate.receive([note(duration_s=601, **UNADDRESSED)])
    assert await door.sent() == []
    await door.gate.receive([note(duration_s=601)])
    assert len(await door.sent()) == 1


# --- pairing ---


@pytest.mark.parametrize("form", ["{}", "/start {}", "  {}\n"])
@pytest.mark.parametrize("change", [str.upper, str.lower])
async def test_a_stranger_with_a_code_is_let_in_and_welcomed(
    door: Doorstep, form: str, change: type[str]
) -> None:
    code = new_pairing_code()
    await door.store.people.add_pairing_code(code, made_by=OWNER, valid_s=900)
    words = form.format(change(code))
    kind = "command" if words.startswith("/") else "text"
    key, question = text(STRANGER, words, kind=kind), text(STRANGER)
    await door.gate.receive([key, question])
    assert [row.message for row in door.received] == [answered(question)]
    (welcome,) = await door.sent()
    assert (welcome.chat, welcome.text, welcome.reply_to) == (STRANGER, WELCOME, key.message_id)
    assert door.outbox_calls == 1
    (person,) = await door.store.people.all()
    assert (person.user, person.role, person.name, person.added_by) == (
        STRANGER,
        "allowed",
        "Mallory",
        OWNER,
    )


async def test_a_code_lets_in_one_person_only_and_until_it_expires(door: Doorstep) -> None:
    first, second = new_pairing_code(), new_pairing_code()
    for code in (first, second):
        await door.store.people.add_pairing_code(code, made_by=OWNER, valid_s=900)
    await door.gate.receive([text("telegram:5", first), text("telegram:6", first)])
    door.now_s += 900
    await door.gate.receive([text("telegram:7", second)])
    assert [person.user for person in await door.store.people.all()] == ["telegram:5"]
    assert len(await door.sent()) == 1


async def test_a_code_is_worth_nothing_in_a_group_to_the_shut_out_and_without_pairing(
    door: Doorstep, tmp_path: Path
) -> None:
    code = new_pairing_code()
    await door.store.people.add_pairing_code(code, made_by=OWNER, valid_s=900)
    await door.store.people.set_access("telegram:9", "denied", name="", added_by=OWNER)
    await door.gate.receive([text(STRANGER, code, **GROUP), text("telegram:9", code)])
    (tmp_path / "other").mkdir()
    async with open_door(tmp_path / "other", AccessSettings(owners=[OWNER])) as closed:
        await closed.store.people.add_pairing_code(code, made_by=OWNER, valid_s=900)
        await closed.gate.receive([text(STRANGER, code)])
        assert await closed.store.history.entries() == []
        assert await closed.store.people.all() == []
    assert await door.store.history.entries() == []
    assert [person.role for person in await door.store.people.all()] == ["denied"]


async def test_wrong_codes_are_met_with_silence_and_after_five_in_an_hour_right_ones_too(
    door: Doorstep,
) -> None:
    code = new_pairing_code()
    await door.store.people.add_pairing_code(code, made_by=OWNER, valid_s=10 * HOUR_S)
    wrong = [text(STRANGER, new_pairing_code()) for _ in range(TRIES_PER_HOUR)]
    chatter = [text(STRANGER, "let me in") for _ in range(10)]  # which is no try
    await door.gate.receive([*chatter, *wrong, text(STRANGER, code)])
    assert await door.store.history.entries() == []
    assert await door.store.people.all() == []
    door.now_s += HOUR_S
    await door.gate.receive([text(STRANGER, code)])
    assert [person.user for person in await door.store.people.all()] == [STRANGER]


async def test_one_strangers_tries_are_not_anothers(door: Doorstep) -> None:
    code = new_pairing_code()
    await door.store.people.add_pairing_code(code, made_by=OWNER, valid_s=900)
    await door.gate.receive([text(STRANGER, new_pairing_code()) for _ in range(TRIES_PER_HOUR)])
    await door.gate.receive([text("telegram:8", code)])
    assert [person.user for person in await door.store.people.all()] == ["telegram:8"]


async def test_strangers_cannot_fill_the_memory_nor_be_forgotten_while_they_try(door: Doorstep) -> None:
    code = new_pairing_code()
    await door.store.people.add_pairing_code(code, made_by=OWNER, valid_s=900)
    crowd = [f"telegram:{number}" for number in range(100, 100 + MAX_REMEMBERED_STRANGERS)]
    first = [STRANGER] * (TRIES_PER_HOUR - 1)
    await door.gate.receive([text(user, "ABCDEFGH") for user in (*first, *crowd[1:], STRANGER, crowd[0])])
    assert len(door.gate._tries) == MAX_REMEMBERED_STRANGERS  # noqa: SLF001 - memory is not seen from outside
    await door.gate.receive([text(STRANGER, code)])
    assert await door.store.people.all() == []


def test_codes_are_long_random_and_without_look_alikes() -> None:
    codes = {new_pairing_code() for _ in range(200)}
    assert len(codes) == 200
    assert {len(code) for code in codes} == {8}
    assert not set("01IO") & set("".join(codes))
    assert len(set("".join(codes))) == 32


# --- order and durability ---


async def test_messages_that_are_handed_in_at_once_are_stored_in_their_order(door: Doorstep) -> None:
    messages = [note(OWNER) if number % 2 else text(OWNER) for number in range(40)]
    messages[0] = note(BOB)  # whose limits are looked up first
    await asyncio.gather(*(door.gate.receive([message]) for message in messages))
    assert await door.stored() == [message.message_id for message in messages]
    assert [row.message for row in door.received] == list(map(answered, messages))


async def test_when_the_gate_returns_messages_and_cursor_are_on_disk(door: Doorstep, tmp_path: Path) -> None:
    message = text()
    await door.gate.receive([message], cursor=("offset", "18"))
    async with open_store(tmp_path / "june.db", read_only=True) as reader:
        assert [row.platform_message_id for row in await reader.history.entries()] == [message.message_id]
        assert await reader.inbox.cursor("offset") == "18"


async def test_of_what_could_not_be_committed_nobody_hears(door: Doorstep, tmp_path: Path) -> None:
    async with open_store(tmp_path / "june.db", read_only=True) as unwritable:
        access = AccessSettings(owners=[OWNER])
        gate = Gate(
            unwritable,
            access,
            place_by_default,
            on_received=door.received.extend,
            wake_delivery=door.received.clear,
        )
        with pytest.raises(StoreError):
            await gate.receive([text(OWNER)], cursor=("offset", "19"))
    assert door.received == []
    assert await door.gate.cursor("offset") == ""


# What becomes of it

ROUTES = [
    # who, what, settings, what is kept: route, text, kind
    (OWNER, {"text": "Hello"}, {}, ("assistant", "Hello", "text")),
    (OWNER, {"text": "Hello"}, {"owner": "queue"}, ("queue", "Hello", "text")),
    (BOB, {"text": "Hello"}, {"owner": "queue"}, ("assistant", "Hello", "text")),
    (BOB, {"text": "Hello"}, {"allowed": "forward"}, ("forward", "Hello", "text")),
    (BOB, {"text": "/help", "kind": "command"}, {"allowed": "queue"}, ("assistant", "/help", "command")),
    (OWNER, {"text": "/queue Buy milk", "kind": "command"}, {}, ("queue", "Buy milk", "text")),
    (OWNER, {"text": "/QUEUE\nBuy\nmilk", "kind": "command"}, {}, ("queue", "Buy\nmilk", "text")),
    (OWNER, {"text": "/queue", "kind": "command"}, {}, ("assistant", "/queue", "command")),
    (BOB, {"text": "/queue Buy milk", "kind": "command"}, {}, ("assistant", "/queue Buy milk", "command")),
    (OWNER, {"text": "Note: buy milk"}, {"queue_word": "note"}, ("queue", "buy milk", "text")),
    (
        OWNER,
        {"text": "Notebooks are nice"},
        {"queue_word": "note"},
        ("assistant", "Notebooks are nice", "text"),
    ),
    (OWNER, {"text": "Note"}, {"queue_word": "note"}, ("assistant", "Note", "text")),
    (BOB, {"text": "Note: buy milk"}, {"queue_word": "note"}, ("assistant", "Note: buy milk", "text")),
]


@pytest.mark.parametrize(("user", "sent", "routes", "kept"), ROUTES)
async def test_the_settings_and_the_sender_decide_what_becomes_of_a_message(
    tmp_path: Path, user: str, sent: dict[str, Any], routes: dict[str, Any], kept: tuple[str, str, str]
) -> None:
    access = AccessSettings(owners=[OWNER], allowed=[BOB])
    async with open_door(tmp_path, access, RoutesSettings(**routes)) as door:
        await door.gate.receive([replace(text(user), **sent)])
        (received,) = door.received
        assert (received.message.route, received.message.text, received.message.kind) == kept


async def test_what_a_command_puts_into_the_queue_is_confirmed_once(door: Doorstep) -> None:
    message = replace(text(OWNER), kind="command", text="/queue Buy milk")
    for _ in range(2):
        await door.gate.receive([message])
    (notice,) = await door.sent()
    assert (notice.text, notice.reply_to) == ("It waits in the queue.", message.message_id)
    assert door.outbox_calls


async def test_what_is_kept_of_a_chat_follows_it_to_its_new_name(door: Doorstep) -> None:
    await door.store.conversations.set_preferences("telegram:-5", ChatPreferences("text", "de"))
    await door.gate.moved("telegram:-5", "telegram:-1005")
    assert await door.store.conversations.preferences("telegram:-1005") == ChatPreferences("text", "de")
