"""The file of messages: what was received, what is to be sent, what was said, and who is let in.

A message is committed before anyone is told of it, and changes its status by compare-and-set. So whenever
june is killed, a message is processed at least once, and its replies are stored exactly once. A crash between
sending a reply and marking it as sent can send it twice.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from june.store.feed import Change, Feed, Filter
from june.store.history import Count, History, Stats, Waiting
from june.store.inbox import Inbox
from june.store.outbox import Outbox
from june.store.people import Access, People, Person, Spent, Use
from june.store.queue import MAX_TEXT, Explain, Letter, Once, Queue, Unspoken
from june.store.rows import Direction, HistoryEntry, Message, Queued, Received, Role, Status
from june.store.upkeep import Contents, Kept, Pruned, Upkeep

__all__ = [
    "MAX_TEXT",
    "Access",
    "Change",
    "Contents",
    "Count",
    "Direction",
    "Explain",
    "Filter",
    "HistoryEntry",
    "Kept",
    "Letter",
    "Message",
    "Once",
    "Person",
    "Pruned",
    "Queued",
    "Received",
    "Role",
    "Spent",
    "Stats",
    "Status",
    "Store",
    "Unspoken",
    "Use",
    "Waiting",
    "open_store",
]


class Store(Inbox, Outbox, People, History, Queue, Feed, Upkeep):
    """An open file of messages; every method is one transaction. `open_store` makes one."""


@asynccontextmanager
async def open_store(
    path: Path, *, read_only: bool = False, any_schema: bool = False, clock: Callable[[], float] = time.time
) -> AsyncIterator[Store]:
    """The store in the file at `path`, closed when the block is left.

    Args:
        path: made if it is missing, unless it is only read.
        read_only: another june may have the file open; methods that write raise a StoreError.
        any_schema: if it is only read, also what an older june wrote: only what `Upkeep` says of it is sure
            to work.
        clock: seconds since 1970.

    Raises:
        StoreError: the file cannot be used, was written by a newer june, or is in use by another one.
    """
    store = Store(path, read_only=read_only, any_schema=any_schema, clock=clock)
    try:
        await store.open()
        yield store
    finally:
        await store.close()
