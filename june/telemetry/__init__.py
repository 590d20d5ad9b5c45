"""Logs, metrics and traces: what june tells of itself, and to nobody what people say."""

from june.telemetry.logs import configure_logging, hashed, log, report_repeats, where
from june.telemetry.metrics import (
    Facts,
    adapter_up,
    disk_free_bytes,
    dropped_total,
    errors_total,
    event_loop_lag_seconds,
    exposition,
    messages_total,
    model_loaded,
    queue_messages,
    queue_oldest_new_age_seconds,
)
from june.telemetry.stages import (
    close_traces,
    finish_trace,
    following,
    new_trace_context,
    note_wait,
    open_traces,
    stage,
    trace_id,
)

__all__ = [
    "Facts",
    "adapter_up",
    "close_traces",
    "configure_logging",
    "disk_free_bytes",
    "dropped_total",
    "errors_total",
    "event_loop_lag_seconds",
    "exposition",
    "finish_trace",
    "following",
    "hashed",
    "log",
    "messages_total",
    "model_loaded",
    "new_trace_context",
    "note_wait",
    "open_traces",
    "queue_messages",
    "queue_oldest_new_age_seconds",
    "report_repeats",
    "stage",
    "trace_id",
    "where",
]
