"""Spans, sent with OTLP over HTTP and named by OpenTelemetry's conventions.

A span is made from its measurement when the work has ended. So no span stays open in a task, thread or
generator that may be cancelled or abandoned, no span carries an exception's text, and no span is left
unfinished when june is killed. The conventions for models (`gen_ai.*`) are still in development: their
strings are in this file only.

A receiver that is down does not slow turns: spans wait in a bounded queue on the library's own thread, and
are dropped when it is full.
"""

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from urllib.parse import urlsplit

from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.util.types import AttributeValue

from june import __version__
from june.telemetry.logs import log
from june.telemetry.measured import CANCELLED, Measured, Trace
from june.telemetry.metrics import count_error

MAX_WAITING_SPANS = 2048
SEND_EVERY_S = 1.0
"""A crash loses the spans of the last second."""
REQUEST_TIMEOUT_S = 3.0

ROOT = "process"
NAMES = {
    ROOT: "process {platform}",
    "stt": "speech_to_text {model}",
    "llm": "chat {model}",
    "tts": "text_to_speech {model}",
    "send": "send {platform}",
}
"""Span names by stage; any other stage gives its own name."""
KINDS = {ROOT: api.SpanKind.CONSUMER, "send": api.SpanKind.PRODUCER}
FIXED: dict[str, dict[str, AttributeValue]] = {
    ROOT: {"messaging.operation.type": "process"},
    "send": {"messaging.operation.type": "send"},
    "stt": {"gen_ai.operation.name": "speech_to_text", "gen_ai.output.type": "text"},
    "llm": {"gen_ai.operation.name": "chat", "gen_ai.output.type": "text"},
    "tts": {"gen_ai.operation.name": "text_to_speech", "gen_ai.output.type": "speech"},
}
ATTRIBUTES = {
    "backend": "gen_ai.provider.name",
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "june.llm.cached_tokens",
    "time_to_first_token_s": "gen_ai.response.time_to_first_chunk",
    "platform": "messaging.system",
    "message_id": "messaging.message.id",
    "kind": "june.message.kind",
    "role": "june.sender.role",
    "outcome": "june.outcome",
    "audio_s": "june.audio.duration_s",
    "audio_bytes": "june.audio.bytes",
    "codec": "june.audio.codec",
    "sample_rate_hz": "june.audio.sample_rate",
    "language": "june.stt.language",
    "voice": "june.tts.voice",
    "characters": "june.tts.characters",
    "time_to_first_audio_s": "june.tts.ttfb_s",
}
"""Attributes by fact; other facts are not sent."""

_root: ContextVar[Trace | None] = ContextVar("root", default=None)


class _Ids(RandomIdGenerator):
    """Generates random ids, except for a root span, which has its id already."""

    def generate_span_id(self) -> int:
        root = _root.get()
        return super().generate_span_id() if root is None else int(root.root_id, 16)

    def generate_trace_id(self) -> int:
        root = _root.get()
        return super().generate_trace_id() if root is None else int(root.id, 16)


class SpanSender:
    """Sends spans to a receiver.

    Args:
        endpoint: address of the receiver; without a path, OTLP's default path is added.
    """

    def __init__(self, endpoint: str) -> None:
        if urlsplit(endpoint).path in {"", "/"}:
            endpoint = f"{endpoint.rstrip('/')}/v1/traces"
        resource = Resource.create({"service.name": "june", "service.version": __version__})
        # The library's own exit hook would wait for a receiver that hangs.
        self._provider = TracerProvider(resource=resource, id_generator=_Ids(), shutdown_on_exit=False)
        exporter = _Exporter(OTLPSpanExporter(endpoint, timeout=REQUEST_TIMEOUT_S))
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, MAX_WAITING_SPANS, schedule_delay_millis=SEND_EVERY_S * 1000)
        )
        self._tracer = self._provider.get_tracer("june", __version__)

    def send(self, measured: Measured, trace: Trace) -> None:
        """Queue a span: the trace's root, or a child of the root."""
        is_root = measured.name == ROOT
        parent = api.SpanContext(
            int(trace.id, 16), int(trace.root_id, 16), is_remote=True, trace_flags=api.TraceFlags(1)
        )
        token = _root.set(trace if is_root else None)
        span = self._tracer.start_span(
            NAMES.get(measured.name, measured.name).format_map(
                {"platform": "", "model": "", **measured.facts}
            ),
            api.set_span_in_context(api.INVALID_SPAN if is_root else api.NonRecordingSpan(parent)),
            KINDS.get(measured.name, api.SpanKind.INTERNAL),
            dict(_attributes(measured, trace)),
            start_time=round(measured.begin_s * 1e9),
            record_exception=False,
            set_status_on_exception=False,
        )
        _root.reset(token)
        if measured.is_error:
            span.set_status(api.StatusCode.ERROR)
        span.end(round((measured.begin_s + measured.seconds) * 1e9))

    def close(self) -> None:
        """Send the queued spans and stop; blocks while the receiver hangs."""
        self._provider.shutdown()


def _attributes(measured: Measured, trace: Trace) -> Iterator[tuple[str, AttributeValue]]:
    yield from FIXED.get(measured.name, {}).items()
    for fact, value in measured.facts.items():
        if fact in ATTRIBUTES and value != "":
            yield ATTRIBUTES[fact], value
        elif fact == "finish_reason":
            yield "gen_ai.response.finish_reasons", (str(value),)
    if measured.name in {ROOT, "llm"}:
        yield "gen_ai.conversation.id", trace.conversation
    if measured.name == "stt" and "audio_s" in measured.facts:
        yield "june.stt.real_time_factor", measured.seconds / float(measured.facts["audio_s"])
    if measured.is_error:
        yield "error.type", measured.outcome
    elif measured.outcome == CANCELLED:
        yield "june.outcome", CANCELLED


class _Exporter(SpanExporter):
    """Wraps the exporter to count failures and log each outage once."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        fails = result is not SpanExportResult.SUCCESS
        if fails:
            count_error("traces", "not_taken")
        if fails != self._fails:
            self._fails = fails
            if fails:
                log.warning(
                    "traces.interrupted", detail="the receiver at telemetry.otlp_endpoint accepts no spans"
                )
            else:
                log.info("traces.resumed")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
