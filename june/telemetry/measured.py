"""Measurements of stages and the traces they belong to: the values that become spans."""

from dataclasses import dataclass
from typing import Protocol

from june.telemetry.metrics import Facts

OK, CANCELLED = "ok", "cancelled"


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace of one message.

    Attributes:
        id: 32 hexadecimal digits.
        root_id: the id of its root span, 16 hexadecimal digits.
        is_sent: whether its spans go to a receiver, decided when the message is received.
        conversation: the hash of the message's chat.
    """

    id: str
    root_id: str
    is_sent: bool
    conversation: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """One piece of work that has ended.

    Attributes:
        begin_s: seconds since 1970.
        outcome: "ok", or why the work did not succeed.
        is_error: whether it failed; cancelled work did not fail.
    """

    name: str
    begin_s: float
    seconds: float
    outcome: str
    is_error: bool
    facts: Facts


class Sender(Protocol):
    """Sends spans to a receiver."""

    def send(self, measured: Measured, trace: Trace, /) -> None:
        """Queue one span; never blocks."""

    def close(self) -> None:
        """Send what is queued and stop; blocks while the receiver hangs."""
