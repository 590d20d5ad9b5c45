"""What the store returns, and how it is read from a row."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Literal

from june.messages import Attachment, Delivered, Inbound, Outbound, Purpose, Route, Transcript, Voice
from june.store.status import Status
from june.store.transactions import Row

Role = Literal["owner", "allowed"]
"""The role of a person whose messages june accepts."""

Direction = Literal["in", "out"]


@dataclass(frozen=True, slots=True)
class Ties:
    """How a received message relates to stored ones, by their ids."""

    replied_to: int | None = None
    """The message that it replies to in the chat app."""
    question: int | None = None
    """The open question of a program that it replies to; if it is not a reply, the one that its sender was
    asked last in its chat."""
    forwarded: int | None = None
    """The message that was passed on to the owner as the one that it replies to."""


@dataclass(frozen=True, slots=True)
class Placed:
    """How a received message is stored."""

    message: Inbound
    route: Route
    answers: int | None
    """The id of the message that it answers, returns or replies to."""
    taker: Literal["june", "program", "nobody"]
    """Who works on it next; nobody: it answers a question, and is done."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the inbox."""

    id: int
    message: Inbound
    role: Role
    attempts: int
    """How often it was claimed, this time included."""
    transcript: Transcript | None
    """What an earlier attempt heard in it."""
    answer: str
    """The answer that an earlier attempt committed, or "" if it committed none."""
    preview_id: str
    """The platform's id of the message that shows the beginning of an earlier attempt's answer, or ""."""
    received_at_s: float
    """When it was committed or, if it is answered again, when that was asked for; seconds since 1970."""
    answers: int = 0
    """The id of the stored message that it replies to; 0: none."""
    trace_context: str = ""
    """Its trace, see june/telemetry/stages.py; "" if a june without traces received it."""

    @property
    def ties(self) -> Ties:
        """What it was stored with of how it relates to other messages."""
        answers = self.answers or None
        match self.message.route:
            case "answer":
                return Ties(question=answers)
            case "return":
                return Ties(forwarded=answers)
        return Ties(replied_to=answers)


@dataclass(frozen=True, slots=True)
class DueMessage:
    """A message of the outbox."""

    id: int
    message: Outbound
    answers: int
    """The id of the received message that it answers; 0: none."""
    attempts: int
    """How often it was taken, this time included."""
    delivered: tuple[Delivered, ...]
    """The pieces that the platform has taken so far."""
    created_at_s: float
    """When it was committed, seconds since 1970."""
    trace_context: str = ""
    """The trace of the message that it answers."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message in either direction, as programs see it."""

    id: int
    platform: str
    chat: str
    user: str
    """Its sender, or the person it is sent to; "" if it is sent to the chat as a whole."""
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
    """A message in either direction, with everything that is stored of it except its recording."""

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
    """Length of its recording; 0: it has none."""
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
    """Of a received message: what was heard; None: it was not transcribed."""
    language: str
    answer: str
    """Of a received message: what the model wrote."""
    answers: int
    """Of a sent message: the id of the message that it answers; 0: none."""
    edits: int
    """Of a sent message: the id of the message whose text it replaces; 0: none."""
    echo: str
    text_is_sent: bool
    may_group: bool
    purpose: Purpose
    delivered: tuple[Delivered, ...]


def received(row: Row) -> Received:
    """Return a row of the inbox as a `Received`."""
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


def due_message(row: Row) -> DueMessage:
    """Return a row of the outbox, joined with its recording, as a `DueMessage`."""
    voice = row["ogg_opus"]
    return DueMessage(
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
    """Return a row of the view `entries` as a `Message`."""
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
    """Return a row of the view `entries` as a `HistoryEntry`."""
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
    """Return a value as JSON, for one column or one parameter of a query."""
    plain = asdict(value) if isinstance(value, Attachment | Delivered) else list(value)
    return json.dumps(plain, ensure_ascii=False)


def from_json(delivered: str) -> tuple[Delivered, ...]:
    """Return the list that the column `delivered` holds."""
    return tuple(Delivered(**one) for one in json.loads(delivered))
