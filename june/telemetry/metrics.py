"""The metrics of `/metrics`. Labels hold no personal data: their values are few and known in advance.

Buckets: stages and turns from 25 ms to a minute, the event loop's lag from 1 ms to 2.5 s. If there is a
trace, its id is added as an exemplar, which Prometheus reads in the OpenMetrics format only.
"""

from typing import Literal

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from june import __version__
from june.errors import Stage

Facts = dict[str, str | int | float]
"""Facts about a stage beside its time: lengths, counts and names of models; never what people say."""

ErrorStage = Stage | Literal["adapter", "turn", "send", "preview", "sign", "api", "sample", "traces"]
"""Where a failure is counted: a stage of a turn, or another part of june's work. `adapter` is the connection
to any chat app; `june_adapter_up` has one value for each app."""

SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS_PER_SECOND = (2.5, 5.0, 10.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, 200.0, 400.0)

disable_created_metrics()  # type: ignore[no-untyped-call] # they double the page and show only when june started

messages_total = Counter("june_messages", "Messages accepted.", ["platform", "kind", "sender"])
dropped_total = Counter("june_dropped", "Messages not accepted.", ["reason"])
errors_total = Counter("june_errors", "Failures, survived or not.", ["stage", "type"])  # by `count_error`
adapter_up = Gauge("june_adapter_up", "Whether the connection to a chat app works.", ["platform"])

turn_seconds = Histogram(
    "june_voice_turn_duration_seconds",
    "From the beginning of a recording's turn to the commit of its answer.",
    ["platform", "outcome"],
    buckets=SECONDS,
)
stage_seconds = Histogram(
    "june_stage_duration_seconds", "One pass through a stage.", ["stage", "outcome"], buckets=SECONDS
)
queue_wait_seconds = Histogram(
    "june_queue_wait_seconds", "From a message's receipt to the beginning of its turn.", buckets=SECONDS
)
time_to_first_token_seconds = Histogram(
    "june_llm_time_to_first_token_seconds",
    "From the question to the first text of the answer.",
    buckets=SECONDS,
)
tokens_per_second = Histogram(
    "june_llm_tokens_per_second", "Rate of one answer after its first token.", buckets=TOKENS_PER_SECOND
)
time_to_first_audio_seconds = Histogram(
    "june_tts_time_to_first_audio_seconds",
    "From the first sentence that may be spoken to its last sample.",
    buckets=SECONDS,
)
tokens_total = Counter("june_llm_tokens", "Tokens read (prompt) and written (completion).", ["direction"])
audio_seconds_total = Counter("june_audio_seconds", "Recordings heard (in) and spoken (out).", ["direction"])

llm_batch_tokens = Histogram("june_llm_batch_tokens", "Tokens in a batch.", buckets=BATCH_TOKENS)
llm_step_seconds = Histogram("june_llm_step_seconds", "One batch, decoded and sampled.", buckets=STEP_SECONDS)
llm_queue_wait_seconds = Histogram(
    "june_llm_queue_wait_seconds", "From a request to its place in the cache.", buckets=STEP_SECONDS
)
llm_running = Gauge("june_llm_running", "Answers that are being written.")
llm_waiting = Gauge("june_llm_waiting", "Answers that wait for a place in the cache.")
llm_kv_tokens = Gauge("june_llm_kv_tokens", "Size of the cache, in tokens.")
llm_kv_used_tokens = Gauge("june_llm_kv_used_tokens", "Tokens in the cache.")
llm_prompt_tokens_total = Counter(
    "june_llm_prompt_tokens", "Prompt tokens, evaluated, reused from the cache or restored.", ["source"]
)
llm_evictions_total = Counter("june_llm_evictions", "Conversations that lost their place in the cache.")
llm_cancelled_total = Counter("june_llm_cancelled", "Answers that were cancelled.")

queue_messages = Gauge(
    "june_queue_messages",
    "Unfinished messages: new and processing in the inbox, unsent and sending in the outbox.",
    ["status"],
)
queue_oldest_new_age_seconds = Gauge(
    "june_queue_oldest_new_age_seconds", "Age of the oldest message that is new in the inbox; 0: none."
)
inflight = Gauge("june_inflight", "Passes through a stage that have not ended.", ["stage"])
event_loop_lag_seconds = Histogram(
    "june_event_loop_lag_seconds", "How late the event loop runs what is due.", buckets=LAG_SECONDS
)
model_loaded = Gauge("june_model_loaded", "Whether a model is ready.", ["stage", "model"])
disk_free_bytes = Gauge("june_disk_free_bytes", "Free bytes on the disk that holds the file of messages.")
Info("june_build", "The version of june.").info({"version": __version__})


def count_error(stage: ErrorStage, kind: str) -> None:
    """Count a failure, survived or not.

    Args:
        stage: the part of june's work that failed.
        kind: what failed: an error's code or reason, or the name of its class.
    """
    errors_total.labels(stage=stage, type=kind).inc()


def observe_stage(
    name: str, seconds: float, outcome: str, facts: Facts, exemplar: dict[str, str] | None
) -> None:
    """Count one pass through a stage, and observe the metrics that its facts give."""
    stage_seconds.labels(name, outcome).observe(seconds, exemplar)
    match name:
        case "stt" if "audio_s" in facts:
            audio_seconds_total.labels("in").inc(float(facts["audio_s"]))
        case "encode" if "audio_s" in facts:
            audio_seconds_total.labels("out").inc(float(facts["audio_s"]))
        case "tts" if "time_to_first_audio_s" in facts:
            time_to_first_audio_seconds.observe(float(facts["time_to_first_audio_s"]), exemplar)
        case "llm":
            _observe_answer(seconds, facts, exemplar)
        case _:
            pass


def _observe_answer(seconds: float, facts: Facts, exemplar: dict[str, str] | None) -> None:
    for direction in ("prompt", "completion"):
        tokens_total.labels(direction).inc(float(facts.get(f"{direction}_tokens", 0)))
    first_s = float(facts.get("time_to_first_token_s", 0))
    if first_s:
        time_to_first_token_seconds.observe(first_s, exemplar)
        later = float(facts.get("completion_tokens", 0)) - 1
        if later > 0 and seconds > first_s:
            tokens_per_second.observe(later / (seconds - first_s), exemplar)


def exposition(accept: str = "") -> tuple[bytes, str]:
    """Return all metrics in the format that an Accept header asks for, and the Content-Type."""
    encode, content_type = choose_encoder(accept)
    return encode(REGISTRY), content_type
