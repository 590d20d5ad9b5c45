"""The threads that models compute on: results, refusals, cancelling and closing."""

import asyncio
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import aclosing
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from june.errors import StageError
from june.sections import PROJECT_ROOT
from june.workers import (
    MAX_ITEMS,
    STANDSTILL_STATUS,
    Channel,
    Mailbox,
    ModelThread,
    SideThread,
    StopFlag,
    settled,
    try_for,
    unless_stopped,
    watched_loop,
)

PATIENCE_S = 5
"""A job of a test gives up after this long, so that a failing test ends."""

name: ContextVar[str] = ContextVar("name", default="nobody")


@pytest.fixture
async def thread() -> AsyncIterator[ModelThread]:
    thread = ModelThread("stt", max_jobs=2)
    yield thread
    await thread.close()


class Job:
    """A job that ends when the test releases it, or when it is interrupted."""

    def __init__(self, *, can_be_interrupted: bool = False) -> None:
        self.can_be_interrupted = can_be_interrupted
        self.has_ended = False
        self.started = asyncio.Event()
        self.interrupted = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._let_go = threading.Event()

    def __call__(self, stop: StopFlag) -> str:
        """Run on the thread."""
        self._tell(self.started.set)
        with stop.interrupts(self._interrupt):
            self._let_go.wait(PATIENCE_S)
        self.has_ended = True
        return "done"

    def let_go(self) -> None:
        """Let the thread return."""
        self._let_go.set()

    def _interrupt(self) -> None:
        self._tell(self.interrupted.set)
        if self.can_be_interrupted:
            self.let_go()

    def _tell(self, callback: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(callback)


async def occurs(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()


async def begin(thread: ModelThread, job: Job) -> asyncio.Task[str]:
    task = asyncio.create_task(thread.run(job))
    await occurs(job.started)
    return task


async def let_others_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def fail(_stop: StopFlag, error: BaseException) -> None:
    raise error


async def test_a_result_comes_back(thread: ModelThread) -> None:
    def add(_stop: StopFlag, first: int, *, second: int) -> int:
        return first + second

    assert await thread.run(add, 1, second=2) == 3


async def test_a_job_runs_on_the_thread(thread: ModelThread) -> None:
    assert await thread.run(lambda _: threading.current_thread().name) == "june-stt"


async def test_an_exception_comes_back(thread: ModelThread) -> None:
    error = KeyError("what the job raised")
    with pytest.raises(KeyError) as raised:
        await thread.run(fail, error)
    assert raised.value is error


async def test_a_job_that_raises_stop_iteration_does_not_hang_its_caller(thread: ModelThread) -> None:
    task = asyncio.create_task(thread.run(fail, StopIteration()))
    await asyncio.wait([task], timeout=PATIENCE_S)
    error = task.exception()
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, StopIteration)


async def test_the_thread_survives_what_a_job_raises(thread: ModelThread) -> None:
    with pytest.raises(ValueError, match="wrong"):
        await thread.run(fail, ValueError("wrong"))
    assert await thread.run(lambda _: "alive") == "alive"


async def test_context_variables_travel_with_a_job_and_do_not_come_back(thread: ModelThread) -> None:
    def job(_stop: StopFlag) -> str:
        before = name.get()
        name.set("the job")
        return before

    name.set("the caller")
    assert await thread.run(job) == "the caller"
    assert name.get() == "the caller"


async def test_jobs_run_one_at_a_time_in_the_order_they_came() -> None:
    running = threading.Lock()
    order: list[int] = []

    def job(_stop: StopFlag, number: int) -> None:
        assert running.acquire(blocking=False)
        order.append(number)
        running.release()

    thread = ModelThread("stt")
    await asyncio.gather(*(thread.run(job, number) for number in range(50)))
    await thread.close()
    assert order == list(range(50))


async def test_a_job_too_many_is_refused_as_busy(thread: ModelThread) -> None:
    job = Job()
    running = await begin(thread, job)
    waiting = [asyncio.create_task(thread.run(lambda _: "waited")) for _ in range(2)]
    await let_others_run()
    with pytest.raises(StageError) as raised:
        await thread.run(lambda _: "refused")
    assert (raised.value.stage, raised.value.code) == ("stt", "busy")
    job.let_go()
    assert await asyncio.gather(running, *waiting) == ["done", "waited", "waited"]


async def test_a_cancelled_job_that_waits_never_runs_and_its_caller_returns_at_once(
    thread: ModelThread,
) -> None:
    job = Job()
    running = await begin(thread, job)
    ran: list[bool] = []
    waiting = asyncio.create_task(thread.run(lambda _: ran.append(True)))
    await let_others_run()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not job.has_ended
    job.let_go()
    await running
    await thread.run(lambda _: None)
    assert not ran


async def test_cancelling_sets_the_flag_and_waits_until_the_thread_lets_go(thread: ModelThread) -> None:
    job = Job()
    task = await begin(thread, job)
    task.cancel()
    await occurs(job.interrupted)
    await let_others_run()
    assert not task.done()
    job.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert job.has_ended


async def test_cancelling_twice_does_not_make_the_caller_return_early(thread: ModelThread) -> None:
    job = Job()
    task = await begin(thread, job)
    for _ in range(3):
        task.cancel()
        await let_others_run()
    assert not task.done()
    job.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert job.has_ended


async def test_a_time_limit_interrupts_the_job_and_is_a_timeout_error(thread: ModelThread) -> None:
    job = Job(can_be_interrupted=True)

    async def expire_when_it_runs(limit: asyncio.Timeout) -> None:
        await occurs(job.started)
        limit.reschedule(0)

    async def run_limited() -> None:
        async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:
            group.create_task(expire_when_it_runs(limit))
            await thread.run(job)

    with pytest.raises(TimeoutError):
        await run_limited()
    assert job.interrupted.is_set()
    assert job.has_ended


async def test_a_finished_job_is_forgotten(thread: ModelThread) -> None:
    class Recording:
        """Something large."""

    freed = asyncio.Event()
    loop = asyncio.get_running_loop()
    recording = Recording()
    reference = weakref.ref(recording, lambda _: loop.call_soon_threadsafe(freed.set))
    assert await thread.run(lambda _, recording: recording is reference(), recording)
    del recording
    await occurs(freed)


def test_a_side_thread_does_one_job_at_a_time_and_whoever_has_another_waits() -> None:
    side = SideThread("june-side")
    begun, go_on, order = threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        begun.set()
        go_on.wait(PATIENCE_S)
        order.append(threading.current_thread().name)

    side.run(first)
    assert begun.wait(PATIENCE_S)
    assert order == []
    threading.Timer(0.05, go_on.set).start()
    side.run(lambda: order.append("second"))
    assert order[0] == "june-side"
    side.close()
    assert order == ["june-side", "second"]


@pytest.mark.parametrize("wait", [SideThread.wait, SideThread.close, lambda side: side.run(list)])
def test_a_side_threads_failure_is_raised_to_whoever_waits_for_it(wait: Callable[[SideThread], None]) -> None:
    side = SideThread("june-side")

    def fail() -> None:
        raise LookupError

    side.run(fail)
    with pytest.raises(LookupError):
        wait(side)
    side.close()


def test_a_flag_interrupts_once_when_it_is_set_during_the_block() -> None:
    stop = StopFlag()
    calls: list[str] = []
    with stop.interrupts(lambda: calls.append("now")):
        assert not calls
        assert not stop.is_set()
        stop.set()
        assert stop.is_set()
    assert calls == ["now"]


def test_a_flag_that_was_set_before_interrupts_at_once() -> None:
    stop = StopFlag()
    stop.set()
    calls: list[str] = []
    with stop.interrupts(lambda: calls.append("now")):
        assert calls == ["now"]
    assert calls == ["now"]


def test_a_flag_interrupts_nothing_after_the_block() -> None:
    stop = StopFlag()
    calls: list[str] = []
    with stop.interrupts(lambda: calls.append("late")):
        pass
    stop.set()
    assert not calls


def test_a_block_is_interrupted_also_after_a_block_within_it() -> None:
    stop = StopFlag()
    calls: list[str] = []
    with stop.interrupts(lambda: calls.append("outer")):
        with stop.interrupts(lambda: calls.append("inner")):
            pass
        stop.set()
    assert calls == ["outer"]


def test_all_blocks_around_are_interrupted() -> None:
    stop = StopFlag()
    calls: list[str] = []
    with stop.interrupts(lambda: calls.append("outer")), stop.interrupts(lambda: calls.append("inner")):
        stop.set()
    assert sorted(calls) == ["inner", "outer"]


class Numbers:
    """A generator function whose generators tell how they ended."""

    def __init__(self, count: int, *, error: Exception | None = None) -> None:
        self.count = count
        self.error = error
        self.ended_on: str | None = None
        self.waits = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, stop: StopFlag) -> Generator[int, None, None]:
        """Run on the thread."""
        try:
            yield from range(self.count)
            if self.error is not None:
                raise self.error
            stopped = threading.Event()
            with stop.interrupts(stopped.set):
                self._loop.call_soon_threadsafe(self.waits.set)
                assert stopped.wait(PATIENCE_S)
        finally:
            self.ended_on = threading.current_thread().name


async def test_a_stream_gives_the_items_in_order(thread: ModelThread) -> None:
    count = 3 * MAX_ITEMS
    assert [item async for item in thread.stream(lambda _: (n for n in range(count)))] == list(range(count))


async def test_a_stream_may_be_empty(thread: ModelThread) -> None:
    assert [item async for item in thread.stream(lambda _: (n for n in range(0)))] == []


async def test_context_variables_travel_with_a_stream(thread: ModelThread) -> None:
    name.set("the reader")
    assert [item async for item in thread.stream(lambda _: (name.get() for _ in "ab"))] == ["the reader"] * 2


async def test_a_stream_runs_no_further_ahead_than_its_bound(thread: ModelThread) -> None:
    read = 0
    ahead: list[int] = []
    bound_reached = threading.Event()

    def count_ahead(_stop: StopFlag) -> Generator[int, None, None]:
        for number in range(8 * MAX_ITEMS):
            ahead.append(number - read)
            if number == MAX_ITEMS:
                bound_reached.set()
            yield number

    async with aclosing(thread.stream(count_ahead)) as items:
        async for _ in items:
            # The whole loop stands still, so that the thread runs as far ahead as it can.
            assert bound_reached.wait(PATIENCE_S)
            read += 1
    assert read == 8 * MAX_ITEMS
    assert max(ahead) == MAX_ITEMS


async def test_closing_a_stream_ends_a_generator_that_waits_for_its_reader(thread: ModelThread) -> None:
    waits_for_reader = threading.Event()
    ended_on: list[str] = []

    def count(_stop: StopFlag) -> Generator[int, None, None]:
        try:
            for number in range(10 * MAX_ITEMS):
                if number == MAX_ITEMS:  # of which the first is being read
                    waits_for_reader.set()
                yield number
        finally:
            ended_on.append(threading.current_thread().name)

    async with aclosing(thread.stream(count)) as items:
        assert await anext(items) == 0
        assert waits_for_reader.wait(PATIENCE_S)
    assert ended_on == ["june-stt"]


async def test_closing_a_stream_interrupts_a_generator_that_computes(thread: ModelThread) -> None:
    numbers = Numbers(1)
    async with aclosing(thread.stream(numbers)) as items:
        assert await anext(items) == 0
        await occurs(numbers.waits)
    assert numbers.ended_on == "june-stt"


async def test_a_generator_that_has_waited_for_its_reader_can_still_be_interrupted(
    thread: ModelThread,
) -> None:
    stopped = threading.Event()
    computes = asyncio.Event()
    loop = asyncio.get_running_loop()

    def generate(stop: StopFlag) -> Generator[int, None, None]:
        with stop.interrupts(stopped.set):
            yield from range(2 * MAX_ITEMS)
            loop.call_soon_threadsafe(computes.set)
            assert stopped.wait(PATIENCE_S)

    async with aclosing(thread.stream(generate)) as items:
        while await anext(items) < 2 * MAX_ITEMS - 1:
            pass
        await occurs(computes)
    assert stopped.is_set()


async def test_what_a_generator_raises_comes_after_the_items_before_it(thread: ModelThread) -> None:
    numbers = Numbers(3, error=KeyError("what the generator raised"))
    read: list[int] = []

    async def read_each() -> None:
        async for number in thread.stream(numbers):
            read.append(number)  # noqa: PERF401 - what came before the exception counts

    with pytest.raises(KeyError, match="what the generator raised"):
        await read_each()
    assert read == [0, 1, 2]
    assert numbers.ended_on == "june-stt"


async def test_a_cancelled_reader_waits_until_the_generator_has_ended(thread: ModelThread) -> None:
    numbers = Numbers(1)

    async def read() -> None:
        async with aclosing(thread.stream(numbers)) as items:
            async for _ in items:
                pass

    reader = asyncio.create_task(read())
    await occurs(numbers.waits)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert numbers.ended_on == "june-stt"


async def test_who_is_cancelled_while_closing_a_stream_stays_cancelled(thread: ModelThread) -> None:
    closing, let_go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def generate(_stop: StopFlag) -> Generator[int, None, None]:
        try:
            yield 1
            yield 2
        finally:
            loop.call_soon_threadsafe(closing.set)
            let_go.wait(PATIENCE_S)

    async def read() -> str:
        async with aclosing(thread.stream(generate)) as items:
            await anext(items)
        return "went on"

    reader = asyncio.create_task(read())
    await occurs(closing)
    reader.cancel()
    await let_others_run()
    assert not reader.done()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def test_a_stream_too_many_is_refused_as_busy(thread: ModelThread) -> None:
    job = Job()
    tasks = [await begin(thread, job), *(asyncio.create_task(thread.run(lambda _: "")) for _ in range(2))]
    await let_others_run()
    with pytest.raises(StageError) as raised:
        await anext(thread.stream(Numbers(1)))
    assert raised.value.code == "busy"
    job.let_go()
    await asyncio.gather(*tasks)


async def test_a_channel_hands_over_what_a_thread_posts_in_order(thread: ModelThread) -> None:
    mailbox = Mailbox()
    channel = Channel[int](mailbox)

    def count(_stop: StopFlag) -> None:
        for number in range(3 * MAX_ITEMS):
            channel.post(number)
        channel.end()
        mailbox.flush()

    await thread.run(count)
    assert [number async for number in channel.read()] == list(range(3 * MAX_ITEMS))


async def test_a_channel_ends_once_and_with_what_came_first(thread: ModelThread) -> None:
    mailbox = Mailbox()
    channel = Channel[int](mailbox)

    def fail(_stop: StopFlag) -> None:
        channel.post(1)
        channel.end(KeyError("what the thread met"))
        channel.end()
        mailbox.flush()

    await thread.run(fail)
    reader = channel.read()
    assert await anext(reader) == 1
    with pytest.raises(KeyError, match="what the thread met"):
        await anext(reader)


async def test_who_leaves_a_channel_waits_until_the_thread_has_ended_it(thread: ModelThread) -> None:
    mailbox = Mailbox()
    channel = Channel[int](mailbox)
    stopped = threading.Event()

    def count(_stop: StopFlag) -> bool:
        with channel.stop.interrupts(stopped.set):
            channel.post(1)
            mailbox.flush()
            was_stopped = stopped.wait(PATIENCE_S)
        channel.end()
        mailbox.flush()
        return was_stopped

    job = asyncio.create_task(thread.run(count))
    async with aclosing(channel.read()) as numbers:
        assert await anext(numbers) == 1
    assert await job


async def test_closing_lets_waiting_jobs_finish_and_ends_the_thread() -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
    thread = ModelThread("encode", max_jobs=2)
    job = Job()
    tasks = [
        await begin(thread, job),
        *(asyncio.create_task(thread.run(lambda _: "waited")) for _ in range(2)),
    ]
    await let_others_run()
    closing = asyncio.create_task(thread.close())
    await let_others_run()
    assert not closing.done()
    job.let_go()
    await closing
    assert [task.result() for task in tasks] == ["done", "waited", "waited"]
    assert "june-encode" not in [each.name for each in threading.enumerate()]
    loop.set_exception_handler(None)
    assert not complaints


async def test_a_closed_thread_takes_no_job_and_may_be_closed_again() -> None:
    thread = ModelThread("tts")
    await thread.close()
    await thread.close()
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(RuntimeError, match="closed"):
            await thread.run(lambda _: None)


async def test_settled_returns_when_the_future_is_done_and_raises_nothing_of_it() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(settled(future))
    await let_others_run()
    assert not task.done()
    future.set_exception(ValueError("seen"))
    await task


async def test_two_threads_share_one_queue_and_both_end() -> None:
    together = threading.Barrier(2)
    thread = ModelThread("tts", threads=2)
    await asyncio.wait_for(
        asyncio.gather(*(thread.run(lambda _: together.wait(20)) for _ in range(2))), timeout=20
    )
    before = threading.active_count()
    await thread.close()
    assert threading.active_count() == before - 2


def test_a_call_that_nothing_interrupts_is_left_behind_when_nobody_waits_for_it() -> None:
    assert unless_stopped(StopFlag(), lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        unless_stopped(StopFlag(), lambda: 1 // 0)
    stop, may_end = StopFlag(), threading.Event()

    def hang() -> int:
        stop.set()
        may_end.wait(30)
        return 7

    assert unless_stopped(stop, hang) is None
    may_end.set()


async def test_what_takes_too_long_is_left_behind_and_what_does_not_is_waited_for() -> None:
    let_go = threading.Event()
    try:
        assert not await try_for(0.01, let_go.wait)
    finally:
        let_go.set()
    assert await try_for(PATIENCE_S, lambda: None)
    with pytest.raises(ValueError, match="its own"):
        await try_for(PATIENCE_S, lambda: int("its own"))


WATCHED = """
import asyncio, re, time
from june.workers import watched_loop

async def main():
    async with watched_loop({limit_s}):
        await asyncio.sleep(0.3)
        {block}
        await asyncio.sleep(0.3)

asyncio.run(main())
"""
KEEPS_THE_INTERPRETER = 're.match("(a+)+$", "a" * 60 + "b")'


@pytest.mark.parametrize(
    ("limit_s", "block", "status", "is_shown"),
    [
        (0.5, "time.sleep(60)", STANDSTILL_STATUS, True),
        (0.5, KEEPS_THE_INTERPRETER, 1, True),
        (1.5, "time.sleep(2.25)", 0, True),
        (1, "await asyncio.sleep(1.5)", 0, False),
        (0, "time.sleep(1)", 0, False),
    ],
)
def test_a_loop_that_stands_still_is_shown_with_its_line_and_ends_the_process_if_it_stays(
    limit_s: float, block: str, status: int, *, is_shown: bool, tmp_path: Path
) -> None:
    file = tmp_path / "watched.py"
    file.write_text(WATCHED.format(limit_s=limit_s, block=block))
    child = subprocess.run(
        [sys.executable, file],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
        check=False,
        timeout=60,
    )
    line = file.read_text().splitlines().index(f"        {block}") + 1
    assert child.returncode == status
    assert (f'"{file}", line {line} in main' in child.stderr) is is_shown
    assert ("loop.stalled" in child.stdout + child.stderr) is (is_shown and status == 0)


async def test_the_watch_ends_with_its_block() -> None:
    before = set(threading.enumerate())
    async with watched_loop(30):
        assert "june-watchdog" in {thread.name for thread in set(threading.enumerate()) - before}
    assert set(threading.enumerate()) == before
