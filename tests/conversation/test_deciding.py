"""What becomes of a message: the table of all that is decided."""

from dataclasses import replace
from typing import Any

import pytest

from june.conversation.deciding import (
    Action,
    Answer,
    AnswerQuestion,
    Forward,
    HandOver,
    Hear,
    Ignore,
    Return,
    Rules,
    RunCommand,
    Stop,
    decide,
    decide_received,
    place,
)
from june.messages import Attachment, Inbound, Route, Transcript
from june.sections import RoutesSettings
from june.store import Placed, Received, Role, Ties
from tests.stored import inbound

RECORDING = Attachment("file", 10_000, 6)
GROUP: dict[str, Any] = {"is_group": True, "is_addressed": False}
COMMAND: dict[str, Any] = {"kind": "command"}

QUESTION, ORIGINAL = Ties(replied_to=4, question=4), Ties(replied_to=5, forwarded=6)
ASKED_LAST = Ties(question=4)
REPLY: dict[str, Any] = {"reply_to": "900"}
NOTE = {"queue_word": "note"}
QUEUE, FORWARD = {"owner": "queue", "allowed": "queue"}, {"owner": "forward", "allowed": "forward"}


def rules(**routes: Any) -> Rules:
    return Rules(RoutesSettings(**routes), ("june",))


def written(text: str, **changes: Any) -> Inbound:
    return inbound(1, text=text, **changes)


def spoken(caption: str = "", **changes: Any) -> Inbound:
    return replace(inbound(1, text=caption, kind="voice"), attachment=RECORDING, **changes)


OWNER: Role = "owner"
GUEST: Role = "allowed"

WRITTEN: list[tuple[Role, Inbound, dict[str, str], Ties, Action]] = [
    # who, what, what is set, ties, what becomes of it
    (OWNER, written("Hello"), {}, Ties(), Answer()),
    (GUEST, written("Hello"), {}, Ties(), Answer()),
    (OWNER, written("Hello"), {"owner": "queue"}, Ties(), HandOver("Hello")),
    (GUEST, written("Hello"), {"owner": "queue"}, Ties(), Answer()),
    (GUEST, written("Hello"), {"allowed": "queue"}, Ties(), HandOver("Hello")),
    (GUEST, written("Hello"), {"allowed": "forward"}, Ties(), Forward("Hello")),
    # groups
    (OWNER, written("Hello", is_group=True), {}, Ties(), Answer()),
    (OWNER, written("Hello", **GROUP), {}, Ties(), Ignore()),
    (OWNER, written("/help", **COMMAND, **GROUP), {}, Ties(), Ignore()),
    # commands
    (GUEST, written("/help", **COMMAND), {"allowed": "queue"}, Ties(), RunCommand()),
    (GUEST, written("/help", **COMMAND), {}, ASKED_LAST, RunCommand()),
    (OWNER, written("/help", **COMMAND, **REPLY), {}, QUESTION, RunCommand()),
    (OWNER, written("/help", **COMMAND, **REPLY), {}, ORIGINAL, RunCommand()),
    (OWNER, written("/stop", **COMMAND), {}, Ties(), RunCommand()),
    (OWNER, written("", **COMMAND), {}, Ties(), RunCommand()),
    # the queue, by command and by word
    (OWNER, written("/queue Buy milk", **COMMAND), {}, Ties(), HandOver("Buy milk")),
    (OWNER, written("/QUEUE\nBuy\nmilk", **COMMAND), {}, Ties(), HandOver("Buy\nmilk")),
    (OWNER, written("/queue", **COMMAND), {}, Ties(), RunCommand()),
    (GUEST, written("/queue Buy milk", **COMMAND), {}, Ties(), RunCommand()),
    (OWNER, written("Note: buy milk"), NOTE, Ties(), HandOver("buy milk")),
    (OWNER, written("Note: buy milk"), {}, Ties(), Answer()),
    (OWNER, written("Notebooks are nice"), NOTE, Ties(), Answer()),
    (OWNER, written("Note"), NOTE, Ties(), Answer()),
    (GUEST, written("Note: buy milk"), NOTE, Ties(), Answer()),
    # stop
    (OWNER, written("Stop!"), {}, Ties(), Stop()),
    (GUEST, written("June, stop."), {}, Ties(), Stop()),
    (OWNER, written("Stop at the next station."), {}, Ties(), Answer()),
    (OWNER, written("Stop!"), QUEUE, Ties(), HandOver("Stop!")),
    (GUEST, written("Stop!"), FORWARD, Ties(), Forward("Stop!")),
    # a program's question
    (OWNER, written("Yes", **REPLY), {}, QUESTION, AnswerQuestion("Yes")),
    (GUEST, written("Yes", **REPLY), FORWARD, QUESTION, AnswerQuestion("Yes")),
    (OWNER, written("Yes"), {}, ASKED_LAST, AnswerQuestion("Yes")),
    (OWNER, written("Stop!"), {}, ASKED_LAST, AnswerQuestion("Stop!")),
    (OWNER, written("Yes"), QUEUE, ASKED_LAST, AnswerQuestion("Yes")),
    (OWNER, written("/queue Buy milk", **COMMAND), {}, ASKED_LAST, HandOver("Buy milk")),
    (OWNER, written("Note: buy milk"), NOTE, ASKED_LAST, HandOver("buy milk")),
    (OWNER, written("/queue Buy milk", **COMMAND, **REPLY), {}, QUESTION, AnswerQuestion("Buy milk")),
    (OWNER, written("Hello", **REPLY), {}, Ties(replied_to=3), Answer()),
    # what was forwarded
    (OWNER, written("At noon", **REPLY), {}, ORIGINAL, Return(6, "At noon")),
    (OWNER, written("Stop", **REPLY), QUEUE, ORIGINAL, Return(6, "Stop")),
    (GUEST, written("At noon", **REPLY), {}, ORIGINAL, Answer()),
]


@pytest.mark.parametrize(("role", "message", "routes", "ties", "action"), WRITTEN)
def test_what_is_written_is_decided_when_it_arrives(
    role: Role, message: Inbound, routes: dict[str, str], ties: Ties, action: Action
) -> None:
    assert decide(message, role, rules(**routes), ties=ties) == action


SPOKEN: list[tuple[Role, Inbound, dict[str, str], Ties, str, Route, Action]] = [
    # who, what, what is set, ties, what is heard; the route before it is heard; what becomes of it
    (OWNER, spoken(), {}, Ties(), "What is blue?", "assistant", Answer()),
    (OWNER, spoken(), {}, Ties(), "", "assistant", Answer()),  # which says that nothing was heard
    (OWNER, spoken(), {}, Ties(), "Stop.", "assistant", Stop()),
    (OWNER, spoken("Stop!"), {}, Ties(), "What is blue?", "assistant", Answer()),
    # groups
    (GUEST, spoken(**GROUP), {}, Ties(), "June, why?", "assistant", Answer()),
    (GUEST, spoken(**GROUP), {}, Ties(), "Why?", "assistant", Ignore()),
    (GUEST, spoken("June!", **GROUP), {}, Ties(), "Why?", "assistant", Ignore()),
    (GUEST, spoken(**GROUP), {}, Ties(), "Stop.", "assistant", Ignore()),
    (GUEST, spoken(**GROUP), {}, Ties(), "June, stop.", "assistant", Stop()),
    (GUEST, spoken(**GROUP), QUEUE, Ties(), "Why?", "queue", Ignore()),
    (GUEST, spoken(**GROUP), QUEUE, Ties(), "June, why?", "queue", HandOver("June, why?")),
    # the queue
    (OWNER, spoken(), NOTE, Ties(), "Note: buy milk.", "assistant", HandOver("buy milk.")),
    (OWNER, spoken(), NOTE, Ties(), "A note: buy milk.", "assistant", Answer()),
    (GUEST, spoken(), NOTE, Ties(), "Note: buy milk.", "assistant", Answer()),
    (OWNER, spoken("Note: this"), NOTE, Ties(), "Buy milk.", "queue", HandOver("Buy milk.")),
    (OWNER, spoken(), QUEUE, Ties(), "Stop.", "queue", HandOver("Stop.")),
    (OWNER, spoken(), QUEUE | NOTE, Ties(), "Note: buy milk.", "queue", HandOver("buy milk.")),
    (GUEST, spoken(), QUEUE | NOTE, Ties(), "Note: buy milk.", "queue", HandOver("Note: buy milk.")),
    # a program's question
    (OWNER, spoken(**REPLY), {}, QUESTION, "Yes.", "answer", AnswerQuestion("Yes.")),
    (OWNER, spoken(), {}, ASKED_LAST, "Stop.", "answer", AnswerQuestion("Stop.")),
    (OWNER, spoken(**GROUP), {}, ASKED_LAST, "June, yes.", "assistant", Answer()),
    (OWNER, spoken(**REPLY, **GROUP), {}, QUESTION, "June, yes.", "answer", AnswerQuestion("June, yes.")),
    (OWNER, spoken("Note: this"), NOTE, ASKED_LAST, "Yes.", "queue", HandOver("Yes.")),
    # what is forwarded, and comes back
    (GUEST, spoken("Look"), FORWARD, Ties(), "Why?", "forward", Forward("Look\nWhy?")),
    (OWNER, spoken(**REPLY), NOTE, ORIGINAL, "Note: at noon.", "return", Return(6, "Note: at noon.")),
]


@pytest.mark.parametrize(("role", "message", "routes", "ties", "heard", "route", "action"), SPOKEN)
def test_a_recording_is_heard_and_then_decided(
    *,
    role: Role,
    message: Inbound,
    routes: dict[str, str],
    ties: Ties,
    heard: str,
    route: Route,
    action: Action,
) -> None:
    assert decide(message, role, rules(**routes), ties=ties) == Hear(route)
    placed = place(message, role, ties, rules(**routes))
    assert (placed.route, placed.taker) == (route, "june")
    transcript = Transcript(heard, "en", 6)
    stored = as_stored(placed, role)
    assert decide_received(stored, rules(**routes), transcript=transcript) == action
    # What an earlier attempt heard, and what was stored, holds whatever is set now.
    again = replace(stored, transcript=transcript)
    assert decide_received(again, rules(**NOTE if NOTE.items() <= routes.items() else {})) == action


def as_stored(placed: Placed, role: Role) -> Received:
    """Return the message as the store gives it out again."""
    message = replace(placed.message, route=placed.route)
    return Received(1, message, role, 1, None, "", "", 0.0, answers=placed.answers or 0)


@pytest.mark.parametrize(
    ("message", "routes", "ties", "placed"),
    [
        (written("Hello", **REPLY), {}, Ties(3), ("Hello", "text", "assistant", 3, "june")),
        (written("/help", **COMMAND), {}, Ties(), ("/help", "command", "assistant", None, "june")),
        (written("/queue Buy milk", **COMMAND), {}, Ties(), ("Buy milk", "text", "queue", None, "program")),
        (written("Note: buy milk", **REPLY), NOTE, Ties(3), ("buy milk", "text", "queue", 3, "program")),
        (spoken("Note: this"), NOTE, Ties(), ("this", "voice", "queue", None, "june")),
        (written("Hello"), FORWARD, Ties(), ("Hello", "text", "forward", None, "june")),
        (written("Yes", **REPLY), {}, QUESTION, ("Yes", "text", "answer", 4, "nobody")),
        (spoken(), {}, ASKED_LAST, ("", "voice", "answer", 4, "june")),
        (written("At noon", **REPLY), {}, ORIGINAL, ("At noon", "text", "return", 6, "june")),
        (written("Stop"), {}, Ties(), ("Stop", "text", "assistant", None, "june")),
    ],
)
def test_a_message_is_stored_with_its_route_and_who_takes_it(
    message: Inbound, routes: dict[str, str], ties: Ties, placed: tuple[str, str, Route, int | None, str]
) -> None:
    kept = place(message, OWNER, ties, rules(**routes))
    assert (kept.message.text, kept.message.kind, kept.route, kept.answers, kept.taker) == placed


@pytest.mark.parametrize(
    ("message", "routes", "heard", "action"),
    [
        (written("Stop!"), {}, None, Stop()),
        (written("/stop", **COMMAND), QUEUE, None, Stop()),
        (written("/Stop now", **COMMAND), {}, None, Stop()),
        (written("/stopwatch", **COMMAND), {}, None, RunCommand()),
        (written("/help", **COMMAND), {}, None, RunCommand()),
        (written("And now?"), {}, None, Answer()),
        (written("Stop!"), QUEUE, None, HandOver("Stop!")),
        (spoken(), {}, None, Hear("assistant")),
        (spoken("Stop!"), {}, None, Stop()),
        (spoken(), {}, "Stop.", Stop()),
        (spoken(), {}, "And now?", Answer()),
        (spoken(**GROUP), {}, None, Hear("assistant")),
        (spoken("Stop!", **GROUP), {}, None, Hear("assistant")),
        (spoken(**GROUP), {}, "Stop.", Stop()),  # no need to say june's name while june speaks
        (spoken(**GROUP), {}, "And now?", Ignore()),
        (spoken(**GROUP), QUEUE, "Stop.", Ignore()),
    ],
)
def test_while_june_answers_stop_is_for_june(
    message: Inbound, routes: dict[str, str], heard: str | None, action: Action
) -> None:
    transcript = None if heard is None else Transcript(heard, "en", 1)
    assert decide(message, OWNER, rules(**routes), transcript=transcript, is_answering=True) == action
