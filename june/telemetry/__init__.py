"""Logs, metrics and traces of june's work; none of them holds what people say."""

from importlib import import_module

from june.sections import TelemetrySettings
from june.telemetry.logs import configure_logging, hashed, log, report_repeats, where
from june.telemetry.metrics import (
    ErrorStage,
    Facts,
    adapter_up,
    count_error,
    disk_free_bytes,
    dropped_total,
    errors_total,
    event_loop_lag_seconds,
    exposition,
    llm_batch_tokens,
    llm_cancelled_total,
    llm_evictions_total,
    llm_kv_tokens,
    llm_kv_used_tokens,
    llm_prompt_tokens_total,
    llm_queue_wait_seconds,
    llm_running,
    llm_step_seconds,
    llm_waiting,
    messages_total,
    model_loaded,
    queue_messages,
    queue_oldest_new_age_seconds,
)
from june.telemetry.stages import (
    finish_trace,
    following,
    new_trace_context,
    note_wait,
    send_spans_to,
    stage,
    trace_id,
)

__all__ = [
    "ErrorStage",
    "Facts",
    "adapter_up",
    "close_traces",
    "configure_logging",
    "count_error",
    "disk_free_bytes",
    "dropped_total",
    "errors_total",
    "event_loop_lag_seconds",
    "exposition",
    "finish_trace",
    "following",
    "hashed",
    "llm_batch_tokens",
    "llm_cancelled_total",
    "llm_evictions_total",
    "llm_kv_tokens",
    "llm_kv_used_tokens",
    "llm_prompt_tokens_total",
    "llm_queue_wait_seconds",
    "llm_running",
    "llm_step_seconds",
    "llm_waiting",
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


def open_traces(settings: TelemetrySettings) -> None:
    """Load OpenTelemetry and send spans from now on, if the settings name a receiver."""
    if settings.otlp_endpoint:
        traces = import_module("june.telemetry.traces")
        send_spans_to(traces.SpanSender(settings.otlp_endpoint))


def close_traces() -> None:
    """Send the remaining spans and stop; blocks while the receiver hangs, which may be long."""
    sender = send_spans_to(None)
    if sender is not None:
        sender.close()
