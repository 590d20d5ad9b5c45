"""What the store hands out, and how it is read from a row."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Literal

from june.messages import Attachment, Delivered, Inbound, Outbound, Purpose, Transcript, Voice
from june.store.database import Row

Role = Literal["owner", "allowed"]
"""Whose messages are kept."""

Direction = Literal["in", "out"]

Status = Literal["NEW", "PROCESSING", "RESPONDED", "FORWARDED", "SENT", "ERROR", "TIMEOUT"]
"""A message received goes NEW, PROCESSING, RESPONDED or ERROR; one to be sent NEW, PROCESSING, SENT or ERROR.

A failed or interrupted attempt leads from PROCESSING back to NEW. One that was passed on to the owner is
FORWARDED until the owner answers. A question that was sent becomes RESPONDED, or TIMEOUT.
"""


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the inbox."""

    id: int
    message: Inbound
    role: Role
    attempts: int
    """How often it was claimed, this time included."""
    transcript: Transcript | None
    """What was heard in it at an earlier attempt."""
    answer: str
    """What an earlier attempt committed as its answer; "" if it did not come so far."""
    preview_id: str
    """The platform's id of a message that shows the beginning of an earlier attempt's answer."""
    received_at_s: float
    """When it was committed, or is to be answered anew since; seconds since 1970."""
    answers: int = 0
    """The id of the message that it replies to; 0: none of ours."""
    trace_context: str = ""
    """Its trace, see june/telemetry/stages.py; "" if it was received before there were traces."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A message of the outbox."""

    id: int
    message: Outbound
    answers: int
    """The inbox id of the message that it answers; 0: none."""
    attempts: int
    """How often it was taken, this time included."""
    delivered: tuple[Delivered, ...]
    """What the platform took of it so far."""
    created_at_s: float
    """When it was committed, seconds since 1970."""
    trace_context: str = ""
    """The trace of the message that it answers."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message in either direction, as programs know it."""

    id: int
    platform: str
    chat: str
    user: str
    """Its sender, or whom it is sent to; "" if it goes to the chat as such."""
    user_name: str
    role: Literal["owner", "allowed", "june", "program"]
    """Who wrote it."""
    direction: Direction
    kind: str
    text: str
    has_audio: bool
    status: Status
    reply_to: int | None
    created_at_s: float
    updated_at_s: float
    lease_until_s: float | None
    expires_at_s: float | None
    attempts: int
    error: str
    trace_context: str
    timings_s: dict[str, float]
    is_question: bool
    answered_by: int | None


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A message in either direction, with all that is kept of it but its recording."""

    id: int
    direction: Direction
    platform: str
    chat: str
    user: str
    user_name: str
    role: str
    kind: str
    text: str
    has_audio: bool
    duration_s: float
    """Length of its recording; 0: there is none."""
    status: Status
    claimed_by: str
    lease_until_s: float | None
    attempts: int
    outcome: str
    error: str
    created_at_s: float
    updated_at_s: float
    platform_message_id: str
    reply_to: str
    preview_id: str
    trace_context: str
    transcript: str | None
    """Of a message received: what was heard; None: it was not transcribed."""
    language: str
    answer: str
    """Of a message received: what the model wrote."""
    answers: int
    """Of a message sent: the id of the message that it answers; 0: none."""
    edits: int
    """Of a message sent: the id of the message whose text it replaces; 0: none."""
    echo: str
    text_is_sent: bool
    may_group: bool
    purpose: Purpose
    delivered: tuple[Delivered, ...]


def received(row: Row) -> Received:
    """A row of the inbox."""
    attachment = row["attachment"]
    transcript = row["transcript"]
    return Received(
        id=row["id"],
        message=Inbound(
            platform=row["platform"],
            message_id=row["platform_message_id"],
            chat=row["chat"],
            user=row["user"],
            user_name=row["user_name"],
            kind=row["kind"],
            text=row["text"],
            attachment=None if attachment is None else Attachment(**json.loads(attachment)),
            is_group=bool(row["is_group"]),
            is_addressed=bool(row["is_addressed"]),
            reply_to=row["reply_to"],
            sent_at_s=float(row["sent_at_s"]),  # RETURNING gives a whole number as an int
            route=row["route"],
        ),
        role=row["role"],
        attempts=row["attempts"],
        transcript=None
        if transcript is None
        else Transcript(transcript, row["language"], row["duration_s"] or 0.0),
        answer=row["answer"],
        preview_id=row["preview_id"],
        received_at_s=float(max(row["created_at_s"], row["due_at_s"])),
        answers=row["answers"] or 0,
        trace_context=row["trace_context"],
    )


def queued(row: Row) -> Queued:
    """A row of the outbox, joined with its voice."""
    voice = row["ogg_opus"]
    return Queued(
        id=row["id"],
        message=Outbound(
            chat=row["chat"],
            kind=row["kind"],
            text=row["text"],
            voice=None if voice is None else Voice(voice, row["duration_s"], row["waveform"]),
            reply_to=row["reply_to"],
            echo=row["echo"],
            preview_id=row["preview_id"],
            edits=row["edits"] or 0,
            text_is_sent=bool(row["text_is_sent"]),
            may_group=bool(row["may_group"]),
            user=row["user"],
            other_users=tuple(json.loads(row["other_users"])),
            purpose=row["purpose"],
            is_unspoken=bool(row["is_unspoken"]),
            forwards=row["forwards"] or 0,
        ),
        answers=row["answers"] or 0,
        attempts=row["attempts"],
        delivered=from_json(row["delivered"]),
        created_at_s=float(row["created_at_s"]),
        trace_context=row["trace_context"],
    )


def message(row: Row) -> Message:
    """A row of the view `entries`."""
    same = (
        "id platform chat user user_name direction status created_at_s updated_at_s lease_until_s"
        " expires_at_s attempts error trace_context answered_by"
    )
    said = (row["text"] if row["edited_text"] is None else row["edited_text"], row["transcript"])
    return Message(
        **{name: row[name] for name in same.split()},
        role=row["role"] or "june",
        kind=(row["purpose"] if row["kind"] == "text" else "") or row["kind"],
        text="\n".join(filter(None, said)),
        has_audio=bool(row["has_voice"]),
        reply_to=row["answers"],
        timings_s=json.loads(row["timings_s"]),
        is_question=bool(row["is_question"]),
    )


def history_entry(row: Row) -> HistoryEntry:
    """A row of the view `entries`."""
    same = (
        "id direction platform chat user user_name role kind text status claimed_by lease_until_s attempts"
        " outcome error created_at_s updated_at_s platform_message_id reply_to preview_id trace_context"
        " transcript language answer echo purpose"
    )
    return HistoryEntry(
        **{name: row[name] for name in same.split()},
        has_audio=bool(row["has_voice"]) or row["attachment"] is not None,
        duration_s=row["duration_s"] or 0.0,
        answers=row["answers"] or 0,
        edits=row["edits"] or 0,
        text_is_sent=bool(row["text_is_sent"]),
        may_group=bool(row["may_group"]),
        delivered=from_json(row["delivered"]),
    )


def to_json(value: Attachment | Delivered | Collection[str] | Collection[int]) -> str:
    """A value as one column or one parameter."""
    plain = asdict(value) if isinstance(value, Attachment | Delivered) else list(value)
    return json.dumps(plain, ensure_ascii=False)


def from_json(delivered: str) -> tuple[Delivered, ...]:
    """The list that the column `delivered` holds."""
    return tuple(Delivered(**one) for one in json.loads(delivered))
