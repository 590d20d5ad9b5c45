"""Threads for models and the store, threads that assist another thread, and threads for a single call."""

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
    """Set when a job's result is no longer needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._interrupts: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Return whether the job should stop."""
        return self._is_set

    def set(self) -> None:
        """Ask the job to stop, and interrupt the library call that it is in."""
        with self._lock:
            self._is_set = True
            for interrupt in self._interrupts:
                interrupt()

    def add_interrupt(self, interrupt: Callable[[], object]) -> None:
        """Call `interrupt` when the flag is set, or at once if it is set already."""
        with self._lock:
            self._interrupts.append(interrupt)
            if self._is_set:
                interrupt()

    @contextmanager
    def interrupts(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Call `interrupt` when the flag is set while the block runs."""
        self.add_interrupt(interrupt)
        try:
            yield
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)


class ModelThread:
    """One thread that runs one job after another, or a few threads that share one queue.

    Args:
        stage: the stage of its jobs; names the thread and its errors.
        max_jobs: how many jobs may wait; one more is refused with the code "busy".
        threads: how many jobs run at a time, for a model that supports it.
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
            del job  # its data, such as a recording, would stay in memory until the next job
        ended.set_result(None)

    async def run(
        self, function: Callable[Concatenate[StopFlag, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Compute `function(stop, …)` on the thread and return its result.

        If the caller is cancelled, the flag is set, the caller waits for the function to return, and
        `CancelledError` is raised again; a job that has not begun is dropped.

        Raises:
            StageError: too many jobs wait (code "busy"). `function` may raise further errors.
            RuntimeError: the thread is closed.
        """
        if self._is_closed:
            raise RuntimeError(f"june-{self._stage} is closed")
        if self._jobs.qsize() >= self._max_jobs:  # only the event loop adds jobs, so there is no race
            raise StageError(self._stage, "busy", f"{self._max_jobs} jobs wait for {self._stage} already")
        outcome: Future[T] = Future()
        stop = StopFlag()
        context = copy_context()

        def job() -> None:
            if not outcome.set_running_or_notify_cancel():
                return
            try:
                result = context.run(function, stop, *args, **kwargs)
            except StopIteration as error:  # a future cannot hold it, and the caller would wait for ever
                failure = RuntimeError("StopIteration")
                failure.__cause__ = error
                outcome.set_exception(failure)
            except BaseException as error:  # the caller gets every error
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
        """Run the generator `function(stop, …)` on the thread and yield its items.

        Items are never None. The thread runs at most `MAX_ITEMS` ahead of the reader. Closing the stream
        stops the generator and waits until the thread has left it.

        Raises:
            StageError: too many jobs wait (code "busy"). `function` may raise further errors.
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
        """Let the thread finish the queued jobs, and end it."""
        self._is_closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for ended, thread in zip(self._ended, self._threads, strict=True):
            await asyncio.shield(asyncio.wrap_future(ended))
            thread.join()


async def run_aside(function: Callable[Concatenate[StopFlag, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Compute `function(stop, …)` on a thread of its own and return its result; see `ModelThread.run`.

    Use it for rare, long work such as hashing a file.
    """
    thread = ModelThread("load")
    try:
        return await thread.run(function, *args, **kwargs)
    finally:
        await thread.close()


class SideThread:
    """A thread for work that another thread must not wait for, such as writing a file; one job at a time.

    One thread owns it, which need not be the event loop's thread.

    Args:
        name: the name of the thread.
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
            except BaseException as error:  # the thread that waits gets every error
                outcome.set_exception(error)
            else:
                outcome.set_result(None)
            del item, job, outcome  # their data would stay in memory until the next job

    def run(self, job: Callable[[], None]) -> None:
        """Begin a job, after waiting for the previous one; raises the error of the previous job."""
        self.wait()
        self._last = Future()
        self._jobs.put((job, self._last))

    def wait(self) -> None:
        """Return when no job runs; raises the error of the last job."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait for the running job and end the thread; raises the job's error."""
        self._jobs.put(None)
        self._thread.join()
        self.wait()


async def settled(future: asyncio.Future[T]) -> None:
    """Return when the future is done; a cancellation in the meantime is raised only then."""
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


def unless_stopped(stop: StopFlag, function: Callable[[], T]) -> T | None:
    """Call the function on a thread of its own and return what it returns; None once the flag is set.

    A function that still runs then is abandoned; it does not keep the process from ending. Use it on a thread
    for a library call that nothing interrupts.

    Raises:
        BaseException: the error that the function raised.
    """
    outcomes: queue.SimpleQueue[Future[T] | None] = queue.SimpleQueue()

    def work() -> None:
        outcome: Future[T] = Future()
        try:
            outcome.set_result(function())
        except BaseException as error:  # the caller gets every error
            outcome.set_exception(error)
        outcomes.put(outcome)

    with stop.interrupts(lambda: outcomes.put(None)):
        threading.Thread(target=work, name="june-call", daemon=True).start()
        outcome = outcomes.get()
    return None if outcome is None else outcome.result()


async def try_for(limit_s: float, function: Callable[[], object]) -> bool:
    """Call the function on a thread of its own and return whether it ended within the time.

    A function that takes longer is abandoned; it does not keep the process from ending.

    Raises:
        BaseException: the error that the function raised within the time.
    """
    outcome: Future[None] = Future()

    def work() -> None:
        try:
            function()
        except BaseException as error:  # the caller gets every error
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=work, name="june-try", daemon=True).start()
    finished = asyncio.wrap_future(outcome)
    done, _ = await asyncio.wait([finished], timeout=limit_s)
    if done:
        finished.result()
    return bool(done)
