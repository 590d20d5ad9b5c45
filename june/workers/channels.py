"""Passing items from a thread to the event loop: a mailbox that wakes the loop once, and its channels."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Generic, TypeVar

from june.workers.threads import StopFlag, settled

T = TypeVar("T")


class Mailbox:
    """Collects calls from a thread and makes them on the event loop in one wake-up; created on the loop.

    Each wake-up takes a core for about 0.1 ms from a thread that computes on all cores.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: deque[Callable[[], None]] = deque()

    def add(self, call: Callable[[], None]) -> None:
        """Schedule a call on the loop after the next `flush`; may be called on any thread."""
        self._calls.append(call)

    def flush(self) -> None:
        """Wake the loop if there are calls for it; may be called on any thread."""
        if self._calls:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self._calls:
            self._calls.popleft()()


class Channel(Generic[T]):
    """Items that a thread posts and one coroutine reads, in order; created on the event loop.

    The channel does not limit how far the thread runs ahead: the thread must post a bounded number of items.

    Args:
        mailbox: carries the items and the end to the loop; the thread that posts must flush it.

    Attributes:
        stop: set when the reader has left; the thread then calls `end` as soon as it can.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self.stop = StopFlag()
        self._mailbox = mailbox
        self._items: asyncio.Queue[T | None] = asyncio.Queue()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def post(self, item: T) -> None:
        """Post an item, which must not be None; may be called on any thread."""
        self._mailbox.add(partial(self._items.put_nowait, item))

    def end(self, error: BaseException | None = None) -> None:
        """Let the reader return after the last item, or raise `error`; the first call counts. Any thread."""
        self._mailbox.add(partial(self._end, error))

    def _end(self, error: BaseException | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
        self._items.put_nowait(None)

    async def read(self) -> AsyncGenerator[T, None]:
        """Yield the items; closing the generator sets `stop` and waits for `end`.

        Raises:
            BaseException: the error that `end` was called with.
        """
        try:
            while (item := await self._items.get()) is not None:
                yield item
            await self._ended
        finally:
            self.stop.set()
            await settled(self._ended)
