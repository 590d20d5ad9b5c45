"""From a thread to the event loop: a mailbox that wakes the loop once, and the channels that use it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Generic, TypeVar

from june.workers.threads import StopFlag, settled

T = TypeVar("T")


class Mailbox:
    """What a thread has for the event loop, handed over at one wake-up; made on the event loop.

    Each wake-up takes a core, for some 0.1 ms, from a thread that computes on all of them.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: deque[Callable[[], None]] = deque()

    def add(self, call: Callable[[], None]) -> None:
        """Have something called on the loop after the next `flush`; on any thread."""
        self._calls.append(call)

    def flush(self) -> None:
        """Wake the loop, if there is anything for it; on any thread."""
        if self._calls:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self._calls:
            self._calls.popleft()()


class Channel(Generic[T]):
    """Items that a thread posts and one coroutine reads, in order; made on the event loop.

    Nothing bounds how far the thread runs ahead: it posts only what is bounded in itself.

    Args:
        mailbox: takes items and end to the loop; whoever posts flushes it.

    Attributes:
        stop: set when nobody reads any more; the thread then calls `end` as soon as it can.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self.stop = StopFlag()
        self._mailbox = mailbox
        self._items: asyncio.Queue[T | None] = asyncio.Queue()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def post(self, item: T) -> None:
        """Hand over an item, which is never None; on any thread."""
        self._mailbox.add(partial(self._items.put_nowait, item))

    def end(self, error: BaseException | None = None) -> None:
        """Let the reader return after the last item, or raise `error`; on any thread, first come."""
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
        """The items; closing the generator sets `stop` and waits for `end`.

        Raises:
            BaseException: what `end` was called with.
        """
        try:
            while (item := await self._items.get()) is not None:
                yield item
            await self._ended
        finally:
            self.stop.set()
            await settled(self._ended)
