"""One measurement of a stage, for the log, the metrics and the trace at once.

A message has one trace, made with its row in the inbox and kept there as W3C Trace Context: whoever works on
the message, in whichever process, follows it. Its root span is only an id until the message's turn has ended.
Then it is sent, with its receipt as its begin, by the process in which the turn ended: a turn that a crash
interrupted goes on under the root of its first attempt, and there is never a second root. If june is killed
for good the stages that were sent remain, without a root.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from june.errors import DeliveryError, StageError
from june.telemetry.logs import bound_fields, hashed, log
from june.telemetry.measured import CANCELLED, OK, Measured, Sender, Trace
from june.telemetry.metrics import Facts, inflight, observe_stage, queue_wait_seconds, turn_seconds

TRACE_CONTEXT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])")


_followed: ContextVar[Trace | None] = ContextVar("trace", default=None)
_sender: Sender | None = None


def send_spans_to(sender: Sender | None) -> Sender | None:
    """Send spans by `sender` from now on, or (None) send none; return what sent them before."""
    global _sender
    former, _sender = _sender, sender
    return former


def new_trace_context() -> str:
    """The context of a new trace, as its row keeps it; marked as not sampled if spans are not sent."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{_sender is not None:02x}"


def trace_id(trace_context: str) -> str:
    """The trace's id in a row's context; "" if it has none."""
    found = TRACE_CONTEXT.fullmatch(trace_context)
    return found[1] if found else ""


@contextmanager
def following(trace_context: str, *, turn: int, chat: str) -> Iterator[None]:
    """Let what happens in the block, and in tasks that it starts, belong to a message's trace.

    Args:
        trace_context: as its row keeps it; "" for none.
        turn: the message's id in the inbox; it stands in each event, beside the chat and the trace's id;
            0 for none.
        chat: as in `Inbound.chat`; hashed in all that leaves june.
    """
    found = TRACE_CONTEXT.fullmatch(trace_context)
    trace = Trace(found[1], found[2], found[3] == "01", hashed(chat)) if found else None
    fields = {"turn": turn, "chat": chat, "trace_id": trace.id if trace else ""}
    token = _followed.set(trace)
    try:
        with bound_fields(**{name: value for name, value in fields.items() if value}):
            yield
    finally:
        _followed.reset(token)


@contextmanager
def stage(name: str, timings_s: dict[str, float], **facts: str | float) -> Iterator[Facts]:
    """Measure the block as one stage: its seconds are added to `timings_s[name]`, whatever its outcome.

    The block may add to the facts that it is given. They hold no content: they go wherever the measurement
    goes.
    """
    known: Facts = {**facts}
    begin_s, begin = time.time(), time.perf_counter()
    outcome, is_error = OK, False
    inflight.labels(name).inc()
    try:
        yield known
    except BaseException as error:
        outcome, is_error = _outcome(error)
        raise
    finally:
        seconds = time.perf_counter() - begin
        inflight.labels(name).dec()
        timings_s[name] = timings_s.get(name, 0.0) + seconds
        log.debug("stage.finished", stage=name, seconds=round(seconds, 4), outcome=outcome, **known)
        observe_stage(name, seconds, outcome, known, _exemplar())
        _send(Measured(name, begin_s, seconds, outcome, is_error, known))


def note_wait(since_s: float) -> None:
    """Measure that a message waited from a time, in seconds since 1970, to now, when its turn begins."""
    seconds = max(time.time() - since_s, 0.0)
    queue_wait_seconds.observe(seconds, _exemplar())
    _send(Measured("queue_wait", since_s, seconds, OK, is_error=False, facts={}))


def finish_trace(
    received_at_s: float, *, turn_s: float | None, platform: str, outcome: str, error: str = "", **facts: str
) -> None:
    """Measure the turn that ends now, and send the root of its trace.

    Args:
        received_at_s: when its message was received, seconds since 1970.
        turn_s: seconds since its turn began, if it answers a recording; else None.
        platform: of its message.
        outcome: what became of it.
        error: why it failed; "": it did not.
        facts: what else is known of its message.
    """
    if turn_s is not None:
        turn_seconds.labels(platform, error or OK).observe(turn_s, _exemplar())
    known: Facts = {**facts, "platform": platform, "outcome": outcome}
    seconds = max(time.time() - received_at_s, 0.0)
    _send(Measured("process", received_at_s, seconds, error or outcome, bool(error), known))


def _outcome(error: BaseException) -> tuple[str, bool]:
    """What a stage that raised came to, and whether it is an error."""
    match error:
        case StageError():
            return error.code, True
        case DeliveryError():
            return error.reason, True
        case asyncio.CancelledError() | GeneratorExit():
            return CANCELLED, False
        case _:
            return type(error).__name__, True


def _exemplar() -> dict[str, str] | None:
    trace = _followed.get()
    return {"trace_id": trace.id} if trace is not None and trace.is_sent else None


def _send(measured: Measured) -> None:
    trace = _followed.get()
    if _sender is not None and trace is not None and trace.is_sent:
        _sender.send(measured, trace)
