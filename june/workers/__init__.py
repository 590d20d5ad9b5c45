"""All threads of june: one for each model and for the store, and one that watches the event loop.

A model computes on its own `ModelThread`, so the event loop never waits for it. A model that can serve two
people at once has two threads on one bounded queue. Each job gets the caller's context variables, which
include the trace. A generator runs to its end on the thread, and only its items leave the thread. A caller
that cancels a job waits until the thread has stopped working on it, so a cancelled turn leaves nothing
running. One job can also serve many callers at once, each through its own `Channel`.

A thread cannot interrupt native code. The `StopFlag` asks a job to stop; the job stops where it checks the
flag or where its library can be interrupted.
"""

from june.workers.channels import Channel, Mailbox
from june.workers.threads import (
    MAX_ITEMS,
    MAX_JOBS,
    ModelThread,
    SideThread,
    StopFlag,
    run_aside,
    settled,
    try_for,
    unless_stopped,
)
from june.workers.watchdog import STANDSTILL_STATUS, short_collections, watched_loop

__all__ = [
    "MAX_ITEMS",
    "MAX_JOBS",
    "STANDSTILL_STATUS",
    "Channel",
    "Mailbox",
    "ModelThread",
    "SideThread",
    "StopFlag",
    "run_aside",
    "settled",
    "short_collections",
    "try_for",
    "unless_stopped",
    "watched_loop",
]
