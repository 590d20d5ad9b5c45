"""Threads: one for each model and for the store, one beside another thread, and one for a single try."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from contextvars import copy_context
from typing import Concatenate, ParamSpec, TypeVar

from june.errors import Stage, StageError

P = ParamSpec("P")
T = TypeVar("T")

MAX_JOBS = 64
MAX_ITEMS = 256


class StopFlag:
    """Set when nobody wants a job's result any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._interrupts: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Whether the job should stop."""
        return self._is_set

    def set(self) -> None:
        """Ask the job to stop, and interrupt the library call it is in."""
        with self._lock:
            self._is_set = True
            for interrupt in self._interrupts:
                interrupt()

    def add_interrupt(self, interrupt: Callable[[], object]) -> None:
        """Call `interrupt` when the flag is set, or at once if it is."""
        with self._lock:
            self._interrupts.append(interrupt)
            if self._is_set:
                interrupt()

    @contextmanager
    def interrupts(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """`add_interrupt`, for the block."""
        self.add_interrupt(interrupt)
        try:
            yield
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)


class ModelThread:
    """One thread that runs one job after the other, or a few that share the queue.

    Args:
        stage: the stage its jobs belong to; names the thread and its errors.
        max_jobs: jobs that may wait; one more is refused with the code "busy".
        threads: jobs that run at a time, for a model that can.
    """

    def __init__(self, stage: Stage, *, max_jobs: int = MAX_JOBS, threads: int = 1) -> None:
        self._stage = stage
        self._max_jobs = max_jobs
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_closed = False
        self._ended: list[Future[None]] = [Future() for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._work, args=(ended,), name=f"june-{stage}", daemon=True)
            for ended in self._ended
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, ended: Future[None]) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # what it holds, such as a recording, would stay until the next one comes
        ended.set_result(None)

    async def run(
        self, function: Callable[Concatenate[StopFlag, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of `function(stop, …)`, computed on the thread.

        If the caller is cancelled, the flag is set, the caller waits for the function to return, and
        `CancelledError` is raised again; a job that has not begun is dropped.

        Raises:
            StageError: too many jobs wait already (code "busy"); or whatever `function` raises.
            RuntimeError: the thread is closed.
        """
        if self._is_closed:
            raise RuntimeError(f"june-{self._stage} is closed")
        if self._jobs.qsize() >= self._max_jobs:  # jobs come only from the event loop: no race
            raise StageError(self._stage, "busy", f"{self._max_jobs} jobs wait for {self._stage} already")
        outcome: Future[T] = Future()
        stop = StopFlag()
        context = copy_context()

        def job() -> None:
            if not outcome.set_running_or_notify_cancel():
                return
            try:
                result = context.run(function, stop, *args, **kwargs)
            except StopIteration as error:  # a future cannot carry it: the caller would wait for ever
                failure = RuntimeError("StopIteration")
                failure.__cause__ = error
                outcome.set_exception(failure)
            except BaseException as error:  # handed on to the caller, whatever it is
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

        self._jobs.put(job)
        finished = asyncio.wrap_future(outcome)
        try:
            return await asyncio.shield(finished)
        except asyncio.CancelledError:
            if not outcome.cancel():
                stop.set()
            await settled(finished)
            raise

    async def stream(
        self,
        function: Callable[Concatenate[StopFlag, P], Generator[T, None, None]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> AsyncGenerator[T, None]:
        """The items of the generator `function(stop, …)`, which runs to its end on the thread.

        Items are never None. The thread runs at most `MAX_ITEMS` ahead of the reader. Closing the
        stream stops the generator and waits until the thread has let go of it.

        Raises:
            StageError: too many jobs wait already (code "busy"); or whatever `function` raises.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[T | None] = asyncio.Queue()
        room = threading.Semaphore(MAX_ITEMS)

        def produce(stop: StopFlag) -> None:
            with closing(function(stop, *args, **kwargs)) as generator:
                for item in generator:
                    if not room.acquire(blocking=False):
                        with stop.interrupts(room.release):
                            room.acquire()
                    if stop.is_set():
                        return
                    loop.call_soon_threadsafe(items.put_nowait, item)

        producer = asyncio.create_task(self.run(produce))
        producer.add_done_callback(lambda _: items.put_nowait(None))
        try:
            while (item := await items.get()) is not None:
                yield item
                room.release()
            await producer  # raises what the generator raised
        finally:
            producer.cancel()
            await settled(producer)

    async def close(self) -> None:
        """Let the thread finish what is queued, and end it."""
        self._is_closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for ended, thread in zip(self._ended, self._threads, strict=True):
            await asyncio.shield(asyncio.wrap_future(ended))
            thread.join()


async def run_aside(function: Callable[Concatenate[StopFlag, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `function(stop, …)` returns, computed on a thread that is there for this call only.

    For what happens seldom and takes long, such as hashing a file; see `ModelThread.run`.
    """
    thread = ModelThread("load")
    try:
        return await thread.run(function, *args, **kwargs)
    finally:
        await thread.close()


class SideThread:
    """One thread for what another thread shall not wait for, such as writing a file; one job at a time.

    Its owner is one thread, which need not be the event loop's.

    Args:
        name: the thread's.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        self._last: Future[None] | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, outcome = item
            try:
                job()
            except BaseException as error:  # handed on to whoever waits, whatever it is
                outcome.set_exception(error)
            else:
                outcome.set_result(None)
            del item, job, outcome  # what they hold would stay until the next one comes

    def run(self, job: Callable[[], None]) -> None:
        """Begin a job; waits for the one before, and raises what that raised."""
        self.wait()
        self._last = Future()
        self._jobs.put((job, self._last))

    def wait(self) -> None:
        """Return when no job is at work; raises what the last one raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Let the job that is at work end, and the thread with it; raises what the job raised."""
        self._jobs.put(None)
        self._thread.join()
        self.wait()


async def settled(future: asyncio.Future[T]) -> None:
    """Return when the future is done; a cancellation meanwhile is raised then, and not before."""
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    if not future.cancelled():
        future.exception()  # marks it as seen
    if cancelled:
        raise asyncio.CancelledError


async def try_for(limit_s: float, function: Callable[[], object]) -> bool:
    """Whether the function, which is called on a thread of its own, returned within the time.

    If it did not, it is left behind, and does not keep the process from ending.

    Raises:
        BaseException: what the function raised within the time.
    """
    outcome: Future[None] = Future()

    def work() -> None:
        try:
            function()
        except BaseException as error:  # handed on to the caller, whatever it is
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=work, name="june-try", daemon=True).start()
    finished = asyncio.wrap_future(outcome)
    done, _ = await asyncio.wait([finished], timeout=limit_s)
    if done:
        finished.result()
    return bool(done)
