"""The frozen values that june's parts exchange."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
    """The result of speech to text; `text` is empty if nothing was heard."""

    text: str
    language: str
    """ISO 639-1 code, such as "en"."""
    duration_s: float
    """Length of the recording."""
    full_window_retries: int = 0
    """How many stretches were transcribed a second time with the encoder's whole window."""


JsonObject = Mapping[str, Any]
"""A JSON object as `json.loads` returns it; must not be changed."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str
    """What the tool does and when to use it, for the model to read."""
    parameters: JsonObject
    """A JSON schema of an object."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that a model requests."""

    id: str
    """Unique within the conversation; the engine's, or june's where the engine gives none."""
    name: str
    arguments: JsonObject
    error: str = ""
    """Why the call is not valid, in a sentence for the model to read; "" if it is valid."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation, in the terms of the model's template.

    The role "tool" holds a tool's answer; such messages follow the message with the calls, in their order.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """Of the role "tool": the call that it answers."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn, with the usual names and ranges.

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
    stop: tuple[str, ...] = ()
    """The answer ends before any of these."""
    thinking_budget_tokens: int = 0
    """A longer thought is cut off; 0: only `max_tokens` limits it."""
    tools: tuple[Tool, ...] = ()
    """Tools that the model may call before or instead of answering."""
    json_schema: JsonObject | None = None
    """The answer is one JSON value that follows it, unless `max_tokens` cuts it off. A request has `tools` or
    a schema, not both."""


FinishReason = Literal["stop", "length", "tool_calls"]
"""The model ended or reached a stop string; it reached `max_tokens`; it waits for its tool calls."""


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
    tool_calls: tuple[ToolCall, ...] = ()
    """Whole calls, each as soon as it was written; never a part of `text`."""


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
    text: str = ""
    """The words that it speaks, if they are known."""


Platform = str
"""Name of a chat app in the table of `june.chat.apps`, such as "telegram"."""

PlatformState = Literal["starting", "up", "down"]

InboundKind = Literal["text", "voice", "audio", "video_note", "command"]

Route = Literal["assistant", "queue", "forward", "answer", "return"]
"""What june does with a received message: it answers the message; lets it wait for one of the owner's
programs; passes it to the owner; takes it as the answer to a program's question; or returns the owner's reply
to the sender of the message that it replies to."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A recording that a chat app keeps; june downloads it when its turn begins.

    Size and length come from the platform and are 0 if it does not give them; the length is whatever the
    sender's program wrote.
    """

    file_id: str
    """Identifies the file for the adapter: Telegram's file_id, Discord's URL."""
    size_bytes: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Inbound:
    """A message as it arrived from a chat app."""

    platform: Platform
    message_id: str
    """The platform's; unique within the chat."""
    chat: str
    """Such as "telegram:-100123", "telegram:-100123/77" (a topic) or "discord:4711"."""
    user: str
    """Its sender, such as "telegram:123456789"."""
    user_name: str
    kind: InboundKind
    text: str = ""
    """Text, caption, or a command such as "/voice on"; without a mention of june."""
    attachment: Attachment | None = None
    is_group: bool = False
    is_addressed: bool = True
    """It is for june: sent in private, with a mention, as a reply to june, or a command."""
    reply_to: str = ""
    """The platform's id of the message that it replies to."""
    sent_at_s: float = 0.0
    """When it was sent, by the platform's clock; seconds since 1970."""
    route: Route | None = None
    """What becomes of it; None: that is not decided yet."""

    @property
    def may_be_for_june(self) -> bool:
        """Whether it is for june, or a recording in which june may be named."""
        return self.is_addressed or self.attachment is not None

    @property
    def is_stop_command(self) -> bool:
        """Whether it is /stop, which does not wait for its turn."""
        return self.kind == "command" and self.text.casefold().split()[:1] == ["/stop"]


OutboundKind = Literal["text", "voice", "edit"]

Purpose = Literal["", "message", "clarification", "help_request", "progress", "feedback_request"]
"""Why a program sends a message; empty: june sends it."""


@dataclass(frozen=True, slots=True)
class Outbound:
    """A message for june to send, before the delivery formats and splits it."""

    chat: str
    kind: OutboundKind
    text: str
    """Markdown as the model wrote it; for a voice message, the words that it speaks."""
    voice: Voice | None = None
    reply_to: str = ""
    """The platform's id of the message that it answers."""
    echo: str = ""
    """What was heard, shown above the text."""
    preview_id: str = ""
    """The platform's id of a message that shows the beginning of the text already."""
    edits: int = 0
    """For an edit: the outbox id of the message whose text it replaces."""
    text_is_sent: bool = False
    """Whether a voice message's words are also sent as text, so that they are not lost with it."""
    may_group: bool = False
    """It may go in one message with others to the same chat."""
    user: str = ""
    """The recipient; "": the whole chat."""
    other_users: tuple[str, ...] = ()
    """People whom it goes to instead, in this order, if the chat does not take it."""
    purpose: Purpose = ""
    """Shown above a text."""
    is_unspoken: bool = False
    """Whether a voice message must still be spoken before it can be sent."""
    forwards: int = 0
    """The inbox id of the message that it passes on to the owner."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to send a message for a person."""

    user: str
    """The recipient, such as "telegram:123456789"."""
    chat: str
    """Their private chat."""
    other_users: tuple[str, ...] = ()
    """Whom it goes to instead, in this order, if the chat does not take it."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """One message that a chat app accepted."""

    message_id: str
    kind: Literal["text", "voice"]
    text: str = ""
    """The markup that was sent."""
    parse_mode: Literal["", "html", "markdown"] = ""
    edited: bool = False


@dataclass(frozen=True, slots=True)
class ChatPreferences:
    """The preferences that one chat has set; empty: as in the settings."""

    mode: Literal["", "mirror", "voice", "text", "both"] = ""
    language: str = ""
