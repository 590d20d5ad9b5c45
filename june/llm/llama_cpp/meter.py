"""What an engine does, counted: for /metrics, /health and the bench."""

import time
from collections import deque
from dataclasses import dataclass

from june.llm.llama_cpp.scheduler import Generation
from june.telemetry import (
    llm_batch_tokens,
    llm_cancelled_total,
    llm_evictions_total,
    llm_kv_used_tokens,
    llm_prompt_tokens_total,
    llm_queue_wait_seconds,
    llm_running,
    llm_step_seconds,
    llm_waiting,
)

RECENT_ANSWERS = 64


@dataclass(frozen=True, slots=True)
class AnswerTimes:
    """One answer that was written to its end."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_wait_s: float
    time_to_first_token_s: float
    tokens_per_second: float
    """After the first token; 0 of an answer of one."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine at one moment; what is counted is counted since it was loaded."""

    running: int
    waiting: int
    kv_tokens: int
    kv_used_tokens: int
    steps: int
    step_s: float
    """All of its steps together."""
    decode_s: float
    """Of these, what llama.cpp computed; the rest is sampling and Python."""
    batch_tokens: int
    """In all batches together."""
    prompt_tokens_evaluated: int
    prompt_tokens_reused: int
    prompt_tokens_restored: int
    completion_tokens: int
    evictions: int
    cancelled: int
    failed: int
    rebuilt: int
    """How often llama.cpp's context broke and was built anew."""
    recent: tuple[AnswerTimes, ...]
    """The last answers, the oldest first."""

    @property
    def step_overhead_share(self) -> float:
        """The share of a step that is not spent in decoding; 0 to 1."""
        return 1 - self.decode_s / self.step_s if self.step_s else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens written for all together, over the time in which anything was computed."""
        return self.completion_tokens / self.step_s if self.step_s else 0.0


class Meter:
    """Counts on the engine's thread; read on any."""

    def __init__(self) -> None:
        self._steps = self._batch_tokens = 0
        self._step_s = self._decode_s = 0.0
        self._evaluated = self._reused = self._restored = self._completed = 0
        self._evictions = self._cancelled = self._failed = self._rebuilt = 0
        self._recent: deque[AnswerTimes] = deque(maxlen=RECENT_ANSWERS)
        self._held = 0, 0, 0

    def admitted(self, generation: Generation) -> None:
        """Count an answer that got its sequence."""
        reused = generation.cached_tokens - generation.restored_tokens
        self._reused += reused
        self._restored += generation.restored_tokens
        llm_prompt_tokens_total.labels(source="reused").inc(reused)
        if generation.restored_tokens:
            llm_prompt_tokens_total.labels(source="restored").inc(generation.restored_tokens)
        llm_queue_wait_seconds.observe(generation.admitted_s - generation.submitted_s)

    def stepped(self, step_s: float, decode_s: float, batch_tokens: int, prompt_tokens: int) -> None:
        """Count a step in which `prompt_tokens` of the `batch_tokens` were read."""
        self._steps += 1
        self._step_s += step_s
        self._decode_s += decode_s
        self._batch_tokens += batch_tokens
        llm_step_seconds.observe(step_s)
        llm_batch_tokens.observe(batch_tokens)
        if prompt_tokens:
            self._evaluated += prompt_tokens
            llm_prompt_tokens_total.labels(source="evaluated").inc(prompt_tokens)

    def holds(self, running: int, waiting: int, kv_used_tokens: int) -> None:
        """Note how many answers run and wait now, and how full the cache is."""
        self._held = running, waiting, kv_used_tokens
        llm_running.set(running)
        llm_waiting.set(waiting)
        llm_kv_used_tokens.set(kv_used_tokens)

    def evicted(self) -> None:
        """Count a conversation that lost its place in the cache to another."""
        self._evictions += 1
        llm_evictions_total.inc()

    def cancelled(self) -> None:
        """Count an answer that nobody wanted any more."""
        self._cancelled += 1
        llm_cancelled_total.inc()

    def failed(self) -> None:
        """Count an answer that could not be written."""
        self._failed += 1

    def rebuilt(self) -> None:
        """Count a context that was built anew."""
        self._rebuilt += 1

    def finished(self, generation: Generation, prompt_tokens: int) -> None:
        """Count an answer that was written to its end."""
        now_s = time.perf_counter()
        written = len(generation.tokens) - prompt_tokens
        self._completed += written
        first_s = generation.first_token_s
        self._recent.append(
            AnswerTimes(
                prompt_tokens,
                generation.cached_tokens,
                written,
                generation.admitted_s - generation.submitted_s,
                first_s - generation.submitted_s,
                (written - 1) / (now_s - first_s) if written > 1 else 0.0,
            )
        )

    def stats(self, kv_tokens: int) -> EngineStats:
        """Return all of it, as it was after the last step."""
        running, waiting, kv_used_tokens = self._held
        return EngineStats(
            running=running,
            waiting=waiting,
            kv_tokens=kv_tokens,
            kv_used_tokens=kv_used_tokens,
            steps=self._steps,
            step_s=self._step_s,
            decode_s=self._decode_s,
            batch_tokens=self._batch_tokens,
            prompt_tokens_evaluated=self._evaluated,
            prompt_tokens_reused=self._reused,
            prompt_tokens_restored=self._restored,
            completion_tokens=self._completed,
            evictions=self._evictions,
            cancelled=self._cancelled,
            failed=self._failed,
            rebuilt=self._rebuilt,
            recent=tuple(self._recent),
        )
