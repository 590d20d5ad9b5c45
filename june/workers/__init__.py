"""The only room that owns threads: one for each model and for the store, and one that watches the loop.

A model computes on its own `ModelThread`, so the event loop never waits for it. A model that can work for two
people at once has two threads on one queue. The queue is bounded. The caller's context variables, the trace
among them, travel with each job. A generator runs to its end inside the thread, and only its items come out.
Whoever cancels a job waits until the thread has let go of it, so a cancelled turn leaves nothing running. A
job may also serve many callers at once, each through a `Channel` of its own.

A thread cannot interrupt native code. A job is asked to stop through its `StopFlag`, and stops where it looks
at the flag or where its library can be interrupted.
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
    "watched_loop",
]
