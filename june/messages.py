"""The frozen values that travel between the rooms."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Pcm = npt.NDArray[np.float32]
"""Samples, shape (n_samples,), mono, in [-1, 1]; 16 000 Hz unless a rate is named beside it."""

Device = Literal["cpu", "cuda", "remote"]
"""Where a model computes: june's own cores, its GPU, or another machine."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What `check`, `/health` and `bench` print of a loaded model."""

    name: str
    backend: str
    device: Device
    details: dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was heard; `text` is empty when nothing was."""

    text: str
    language: str
    """ISO 639-1 code, such as "en"."""
    duration_s: float
    """Length of the recording."""
    full_window_retries: int = 0
    """How many stretches were heard a second time with the encoder's whole window."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation, as the model's template knows it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; the field's usual names and ranges.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch the filter off.
    """

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20
    min_p: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call of a language model."""

    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    max_tokens: int
    thinking: bool = False
    conversation: str = ""
    """Names the chat, so that a backend can keep its evaluated prefix."""
    ignore_eos: bool = False
    """Write exactly `max_tokens`; for benchmarks."""


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. `cached_tokens` of the prompt were evaluated earlier and reused."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. The last one carries `usage` and `finish_reason`."""

    text: str = ""
    reasoning: str = ""
    usage: Usage | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Speech:
    """Spoken samples, int16 (n_samples,), mono."""

    samples: npt.NDArray[np.int16]
    sample_rate_hz: int


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice message ready for a chat app."""

    ogg_opus: bytes
    """OGG/Opus, 48 000 Hz, mono."""
    duration_s: float
    waveform: bytes
    """At most 256 loudness values, 0 to 255, one for each 100 ms or coarser."""
