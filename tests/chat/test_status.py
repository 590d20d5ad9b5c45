"""What /status says, to everyone and to owners."""

from dataclasses import replace
from pathlib import Path

from june.chat import AdapterHealth
from june.chat.formatting import visible
from june.chat.status import Details, Status, errors_since_start, status_text
from june.hardware import Gpu
from june.messages import ModelDescription, Usage
from june.store import Spent, Stats, Use, Waiting, open_store
from june.telemetry import errors_total
from tests.stored import ANNA, BERT, Clock, inbound, receive, recording

WAITING = Waiting(new=2, processing=1, unsent=3, sending=1, oldest_new_s=90.0)
STATUS = Status(
    "1.0",
    (ModelDescription("en_US-joe-medium", "piper", "cpu", {}),),
    WAITING,
    {"stt": 0.2, "llm_first_token": 0.125},
)
DETAILS = Details(
    apps={"telegram": AdapterHealth("up"), "discord": AdapterHealth("down", "Refused *for now*.")},
    last_hour=Stats((), 1.25, 4.5),
    up_s=7200.0,
    errors={"llm timeout": 3, "turn Key_Error": 1},
    gpus=(Gpu("NVIDIA_X_1", 24_000_000_000, 8_000_000_000, (8, 9), unified_memory=False),),
    gpu_problem="",
    use=(Use(ANNA, "Ann **x**", Spent(3, 30.0, 900), Spent(40, 5400.0, 12_000)),),
)


def test_everyone_is_told_shortly_whether_june_works() -> None:
    assert visible(status_text(STATUS)).split("\n") == [
        "june 1.0",
        "",
        "• en_US-joe-medium (cpu)",
        "• messages waiting: 2, being answered: 1",
        "• last answer: stt 0.20 s, llm_first_token 0.12 s",
    ]


def test_an_owner_is_told_of_all_that_was_counted() -> None:
    assert visible(status_text(STATUS, DETAILS)).split("\n")[5:] == [
        "• to be sent: 3, being sent: 1",
        "• the oldest has waited for 1.5 min",
        "• last hour: half of the answers within 1.25 s, 95 % within 4.50 s",
        "• errors since the start 2.0 h ago: llm timeout 3, turn Key_Error 1",
        "• telegram: up",
        "• discord: down Refused *for now*.",
        "• NVIDIA_X_1: 8.0 of 24.0 GB free",
        "",
        "Today, and in 30 days",
        "",
        "• telegram:1 Ann **x**: 3 and 40 messages, 900 and 12000 tokens, 30 s and 1.5 h of recordings",
    ]


def test_an_owner_is_told_where_there_is_nothing() -> None:
    status = Status("1.0", (), Waiting(0, 0, 0, 0, 0.0))
    details = Details({}, Stats((), None, None), 5.0, {}, (), "", ())
    told = visible(status_text(status, details))
    for line in (
        "last hour: nothing was answered",
        "errors since the start 5 s ago: none",
        "no GPU",
        "nobody",
    ):
        assert line in told
    broken = status_text(status, replace(details, gpu_problem="The driver does not answer."))
    assert "no GPU" not in broken
    assert "The driver does not answer." in visible(broken)


def test_a_long_list_of_people_is_cut_and_counted() -> None:
    use = tuple(Use(f"telegram:{number}", "", Spent(0, 0.0), Spent(1, 0.0)) for number in range(25))
    lines = visible(status_text(STATUS, replace(DETAILS, use=use))).split("\n")
    assert (lines[-2][:14], lines[-1]) == ("• telegram:19:", "• and 5 more")


def test_errors_are_told_by_kind_with_the_most_frequent_first() -> None:
    before = errors_since_start()
    for _ in range(1000):
        errors_total.labels(stage="a_test", type="often").inc()
    errors_total.labels(stage="a_test", type="once").inc()
    found = {kind: count for kind, count in errors_since_start().items() if kind not in before}
    assert list(found.items()) == [("a_test often", 1000), ("a_test once", 1)]


async def test_use_is_by_person_in_two_times_under_their_last_name(tmp_path: Path) -> None:
    clock = Clock(now_s=100.0)
    async with open_store(tmp_path / "june.db", clock=clock) as store:
        await receive(store, inbound(1), recording(2, BERT))
        clock.now_s = 1000.0
        await receive(store, recording(3, ANNA), recording(4, ANNA))
        for tokens in (10, 20):  # each message is answered, and the last one anew
            for _ in range(3):
                if (claimed := await store.inbox.claim(exclude_chats=(), lease_s=60)) is not None:
                    await store.inbox.finish(claimed.id, [], outcome="answered", usage=Usage(tokens, 1))
            await store.inbox.retry_last(ANNA)
        await receive(store, replace(inbound(5, "discord:9"), user=ANNA, user_name="Anna"))
        assert await store.history.use(day_since_s=1000.0, month_since_s=100.0) == [
            Use(ANNA, "Anna", today=Spent(3, 60.0, 53), month=Spent(4, 60.0, 64)),
            Use(BERT, "Someone", today=Spent(0, 0.0), month=Spent(1, 30.0, 11)),
        ]
        assert await store.history.use(day_since_s=1000.0, month_since_s=2000.0) == []
