"""The file of messages: what was received, what is to be sent, what was said, and who is let in.

The store has one part for each subject, such as `store.inbox` and `store.outbox`. Each part's methods are
transactions on the same open file.

A message is committed before anyone is told of it, and its status is changed by compare-and-set. So, whenever
june is killed, a message is processed at least once and its replies are stored exactly once. A crash between
sending a reply and marking it as sent can send it twice.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from june.store.conversations import Conversations
from june.store.database import Database
from june.store.feed import Change, Feed, Filter
from june.store.history import Count, History, Spent, Stats, Use, Waiting
from june.store.idempotency import Once
from june.store.inbox import Inbox
from june.store.outbox import Outbox, Unspoken
from june.store.people import Access, People, Person
from june.store.queue import MAX_TEXT, Explain, Letter, Queue
from june.store.rows import Direction, DueMessage, HistoryEntry, Message, Placed, Received, Role, Ties
from june.store.status import Status
from june.store.upkeep import Contents, Kept, Pruned, Upkeep

__all__ = [
    "MAX_TEXT",
    "Access",
    "Change",
    "Contents",
    "Conversations",
    "Count",
    "Direction",
    "DueMessage",
    "Explain",
    "Feed",
    "Filter",
    "History",
    "HistoryEntry",
    "Inbox",
    "Kept",
    "Letter",
    "Message",
    "Once",
    "Outbox",
    "People",
    "Person",
    "Placed",
    "Pruned",
    "Queue",
    "Received",
    "Role",
    "Spent",
    "Stats",
    "Status",
    "Store",
    "Ties",
    "Unspoken",
    "Upkeep",
    "Use",
    "Waiting",
    "open_store",
]


class Store(Database):
    """An open file of messages and its parts; `open_store` makes one.

    Attributes:
        inbox: received messages, until they are answered.
        outbox: messages to be sent.
        conversations: what was said, and what a chat has set for itself.
        people: who is let in or shut out.
        queue: what programs claim, answer and send.
        feed: what programs read.
        history: what people read.
        upkeep: the file as a whole: recovery, checks, deletion, export.
    """

    def __init__(self, path: Path, *, read_only: bool, any_schema: bool, clock: Callable[[], float]) -> None:
        super().__init__(path, read_only=read_only, any_schema=any_schema, clock=clock)
        self.inbox = Inbox(self)
        self.outbox = Outbox(self)
        self.conversations = Conversations(self)
        self.people = People(self)
        self.queue = Queue(self)
        self.feed = Feed(self)
        self.history = History(self)
        self.upkeep = Upkeep(self)


@asynccontextmanager
async def open_store(
    path: Path, *, read_only: bool = False, any_schema: bool = False, clock: Callable[[], float] = time.time
) -> AsyncIterator[Store]:
    """Open the file at `path` for the block and close it afterwards.

    Args:
        path: the file. It is made if it is missing, unless it is only read.
        read_only: only read the file; another june may have it open. Methods that write raise a StoreError.
        any_schema: if the file is only read, also accept one that an older june wrote. Only the methods that
            `june.store.upkeep` names are sure to work then.
        clock: returns the time in seconds since 1970.

    Raises:
        StoreError: the file cannot be used, was written by a newer june, or is in use by another one.
    """
    store = Store(path, read_only=read_only, any_schema=any_schema, clock=clock)
    try:
        await store.open()
        yield store
    finally:
        await store.close()
