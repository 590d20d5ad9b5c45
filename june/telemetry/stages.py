"""One measurement of a stage serves the log, the metrics and the trace at once.

A message has one trace. It is made with the message's row in the inbox and kept there as W3C Trace Context,
so every process that works on the message follows the same trace. The root span is only an id until the
message's turn has ended. Then the process in which the turn ended sends it, with the message's receipt as its
beginning: a turn that a crash interrupted continues under the root of its first attempt, and there is never
a second root. If june is killed and never started again, the stages that were sent remain without a root.
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
    """Send spans with `sender` from now on, or none if it is None; return the previous sender."""
    global _sender
    former, _sender = _sender, sender
    return former


def new_trace_context() -> str:
    """Return the context of a new trace for the message's row, not sampled if spans are not sent."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{_sender is not None:02x}"


def trace_id(trace_context: str) -> str:
    """Return the trace id of a row's context; "" if there is none."""
    found = TRACE_CONTEXT.fullmatch(trace_context)
    return found[1] if found else ""


@contextmanager
def following(trace_context: str, *, turn: int, chat: str) -> Iterator[None]:
    """Assign the work in the block, and in the tasks that it starts, to a message's trace.

    Args:
        trace_context: the context in the message's row; "" for none.
        turn: the message's id in the inbox, which each event carries beside the chat and the trace's id; 0
            for none.
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
    """Measure the block as one stage and add its seconds to `timings_s[name]`, whatever its outcome.

    The block may add to the facts that it gets. Facts go wherever the measurement goes, so they must not hold
    what people say.
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
    """Measure the wait of a message from `since_s` (seconds since 1970) to the beginning of its turn, now."""
    seconds = max(time.time() - since_s, 0.0)
    queue_wait_seconds.observe(seconds, _exemplar())
    _send(Measured("queue_wait", since_s, seconds, OK, is_error=False, facts={}))


def finish_trace(
    received_at_s: float, *, turn_s: float | None, platform: str, outcome: str, error: str = "", **facts: str
) -> None:
    """Measure the turn that ends now, and send the root span of its trace.

    Args:
        received_at_s: when the message was received, in seconds since 1970.
        turn_s: seconds since the turn began, if it answers a recording; else None.
        platform: the chat app of the message.
        outcome: how the turn ended.
        error: why the turn failed; "" if it did not.
        facts: further facts about the message.
    """
    if turn_s is not None:
        turn_seconds.labels(platform, error or OK).observe(turn_s, _exemplar())
    known: Facts = {**facts, "platform": platform, "outcome": outcome}
    seconds = max(time.time() - received_at_s, 0.0)
    _send(Measured("process", received_at_s, seconds, error or outcome, bool(error), known))


def _outcome(error: BaseException) -> tuple[str, bool]:
    """Return the outcome of a stage that raised, and whether it counts as an error."""
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
