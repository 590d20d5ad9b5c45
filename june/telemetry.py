"""Logs, counters, and the timing of stages.

What is logged goes to standard error, as lines for people or as JSON. Message text is personal data:
events carry lengths, and texts only under `telemetry.log_content`.
"""

import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, generate_latest

from june.errors import StageError
from june.settings import TelemetrySettings

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

messages_total = Counter("june_messages", "Messages accepted.", ["platform", "kind", "sender"])
dropped_total = Counter("june_dropped", "Messages not accepted.", ["reason"])
errors_total = Counter("june_errors", "Failures, survived or not.", ["stage", "type"])
adapter_up = Gauge("june_adapter_up", "Whether the connection to a chat app works.", ["platform"])


def configure_logging(settings: TelemetrySettings) -> None:
    """Send june's events to standard error in the format and from the level that is set."""
    as_console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderers: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]  # no locals
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
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def exposition() -> tuple[bytes, str]:
    """All metrics in Prometheus' text format, and its content type."""
    return generate_latest(), CONTENT_TYPE_LATEST


def where(error: BaseException) -> str:
    """Where an unexpected failure was raised, such as "turn.py:42"; its text may quote what people said."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


@contextmanager
def stage(name: str, timings_s: dict[str, float]) -> Iterator[None]:
    """Time the block as one stage: its seconds are added to `timings_s[name]`, whatever its outcome."""
    begin = time.perf_counter()
    outcome = "ok"
    try:
        yield
    except StageError as error:
        outcome = error.code
        raise
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        seconds = time.perf_counter() - begin
        timings_s[name] = timings_s.get(name, 0.0) + seconds
        log.debug("stage.finished", stage=name, seconds=round(seconds, 4), outcome=outcome)
