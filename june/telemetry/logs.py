"""Events as lines on standard error, for people or as JSON.

What people say is personal data: events carry its length, and its text only with `telemetry.log_content`. A
line names a person by a keyed hash, and openly only with `telemetry.log_user_ids`. Secrets are removed from
the finished line wherever they are in it: june's own secrets, and any text in the form of a token. An event
at level warning or above is shown a few times a minute; further ones are counted.

Records that libraries log become events without their text, which may quote anything.
"""

import hashlib
import json
import logging
import re
import secrets
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import structlog

from june.sections import TelemetrySettings

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
bound_fields = structlog.contextvars.bound_contextvars
"""Adds fields to each event that is logged in a block and in the tasks and jobs that the block starts."""

PEOPLE = ("user", "chat")
"""Fields that name a person; a private chat has the number of its person."""

REDACTED = "[redacted]"
MIN_SECRET_LENGTH = 8
"""A shorter secret is not removed, since it would match in half of all lines."""
HUGGING_FACE_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")

REPEATS_PER_MINUTE = 20
MINUTE_S = 60.0
MAX_COUNTED = 256
"""Kinds of events that are counted at a time; beyond this, the oldest counts are dropped."""

_hash_key = secrets.token_bytes(16)


def configure_logging(
    settings: TelemetrySettings,
    secret_values: Iterable[str] = (),
    token_shapes: Iterable[re.Pattern[str]] = (),
) -> None:
    """Send june's events to standard error in the format and from the level of the settings.

    Args:
        settings: the section `[telemetry]`.
        secret_values: texts that no line may hold. They are also the key of `hashed`: hashes stay the same
            after a restart, and nobody can find the numbers behind them by trying all.
        token_shapes: what finds texts that no line may hold either, beside Hugging Face's tokens.
    """
    global _hash_key, _repeats  # noqa: PLW0603 - logging is one for the process
    values = tuple(secret_values)
    if values:
        _hash_key = hashlib.blake2b("\0".join(values).encode()).digest()
    _repeats = Repeats()
    as_console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderers: list[structlog.typing.Processor] = (
        [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        ]  # without local variables
        if as_console
        else [
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(),
        ]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _repeats,
            *([] if settings.log_user_ids else [_hash_people]),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
            _redact(values, token_shapes),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _OfLibraries)]
    root.addHandler(_OfLibraries(with_text=settings.log_content))
    # It logs every failed try to send spans; june logs an outage once, see traces.py.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)


def hashed(name: str) -> str:
    """Return a chat or user such as "telegram:123456789" as "telegram:#" and 12 digits of a keyed hash."""
    platform = name.partition(":")[0]
    return f"{platform}:#{hashlib.blake2b(name.encode(), key=_hash_key, digest_size=6).hexdigest()}"


def where(error: BaseException) -> str:
    """Return where an error was raised, such as "turn.py:42"; its text may quote what people said."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def report_repeats(*, is_last: bool = False) -> None:
    """Log how many events were not shown in the minutes that are over; `is_last`: in all minutes."""
    for event, count in _repeats.take(is_last=is_last):
        log.info("log.repeated", of=event, count=count)


@dataclass(slots=True)
class _Minute:
    begin_s: float
    shown: int = 0
    counted: int = 0


class Repeats:
    """The processor that shows each kind of event a few times a minute and counts the rest."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # the models' threads log too
        self._minutes: OrderedDict[str, _Minute] = OrderedDict()
        self._over: OrderedDict[str, int] = OrderedDict()

    def __call__(self, _: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Return the event if it is to be shown.

        Raises:
            DropEvent: the event is only counted.
        """
        if event["level"] in {"debug", "info"}:
            return event
        kind = f"{event['event']} {event.get('logger', '')}".strip()
        now_s = self._clock()
        with self._lock:
            minute = self._minutes.get(kind)
            if minute is None or now_s - minute.begin_s >= MINUTE_S:
                self._end(kind)
                minute = self._minutes[kind] = _Minute(now_s)
                while len(self._minutes) > MAX_COUNTED:
                    self._end(next(iter(self._minutes)))
            if minute.shown >= REPEATS_PER_MINUTE:
                minute.counted += 1
                raise structlog.DropEvent
            minute.shown += 1
        return event

    def _end(self, kind: str) -> None:
        minute = self._minutes.pop(kind, None)
        if minute is not None and minute.counted:
            self._over[kind] = self._over.get(kind, 0) + minute.counted
            while len(self._over) > MAX_COUNTED:
                self._over.popitem(last=False)

    def take(self, *, is_last: bool) -> list[tuple[str, int]]:
        """Return the kinds of events that were counted, and how often, in the past minutes or in all."""
        with self._lock:
            now_s = self._clock()
            for kind, minute in list(self._minutes.items()):
                if is_last or now_s - minute.begin_s >= MINUTE_S:
                    self._end(kind)
            taken, self._over = list(self._over.items()), OrderedDict()
        return taken


_repeats = Repeats()


def _hash_people(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for field in PEOPLE:
        if isinstance(name := event.get(field), str):
            event[field] = hashed(name)
    return event


def _redact(values: tuple[str, ...], token_shapes: Iterable[re.Pattern[str]]) -> structlog.typing.Processor:
    """Return the last processor, which removes secrets from the finished line in every form of writing."""
    found = {
        written
        for value in values
        if len(value) >= MIN_SECRET_LENGTH
        for written in (value, json.dumps(value)[1:-1], quote(value, safe=""), repr(value)[1:-1])
    }
    pattern = re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True)))) if found else None
    shapes = (HUGGING_FACE_TOKEN, *token_shapes)

    def redact(_: object, __: str, line: structlog.typing.EventDict) -> str:
        text = str(line)  # the renderer's result, which structlog types as a dictionary
        if pattern is not None:
            text = pattern.sub(REDACTED, text)
        for shape in shapes:
            text = shape.sub(REDACTED, text)
        return text

    return redact


class _OfLibraries(logging.Handler):
    """Turns warnings and errors that libraries log into events."""

    def __init__(self, *, with_text: bool) -> None:
        super().__init__(logging.WARNING)
        self._with_text = with_text

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        details = {} if error is None else {"type": type(error).__name__, "raised_at": where(error)}
        if self._with_text:
            details["detail"] = record.getMessage()
        level = logging.ERROR if record.levelno >= logging.ERROR else logging.WARNING
        place = f"{record.filename}:{record.lineno}"
        log.log(level, "library.warned", logger=record.name, where=place, **details)
