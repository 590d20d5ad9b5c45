"""What becomes of a message: here, and nowhere else, it is decided.

`decide` is asked when a message arrives, for what must be stored with it (`place`) and for what cannot wait
its turn ("stop"); and again when its turn comes, with what was heard in it. Each action has one handler,
which `june.conversation.attending` calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from june.conversation.addressing import is_stop, names_june
from june.messages import Inbound, Route, Transcript
from june.sections import RoutesSettings
from june.store import Placed, Received, Role, Ties


@dataclass(frozen=True, slots=True)
class Answer:
    """june answers it."""


@dataclass(frozen=True, slots=True)
class Hear:
    """Its recording must be heard before anything else can be decided."""

    route: Route
    """As far as it is decided."""


@dataclass(frozen=True, slots=True)
class Stop:
    """It says "stop", or is /stop while june answers: the answer in the making ends."""


@dataclass(frozen=True, slots=True)
class RunCommand:
    """It is a command, such as /voice."""


@dataclass(frozen=True, slots=True)
class Ignore:
    """It is not for june."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """It waits in the owner's queue for a program."""

    words: str
    """What was written, or what was heard."""


@dataclass(frozen=True, slots=True)
class AnswerQuestion:
    """It answers the question of a program."""

    words: str
    """What was written, or what was heard."""


@dataclass(frozen=True, slots=True)
class Forward:
    """It goes to the owner."""

    words: str
    """What was written and what was heard."""


@dataclass(frozen=True, slots=True)
class Return:
    """It is the owner's, and goes back to whoever wrote the message that it replies to."""

    original: int | None
    """The id of that message; None: it is not known any more."""
    words: str
    """What was written and what was heard."""


Action = Answer | Hear | Stop | RunCommand | Ignore | HandOver | AnswerQuestion | Forward | Return

NO_TIES = Ties()


@dataclass(frozen=True, slots=True)
class Rules:
    """What the owner has set."""

    routes: RoutesSettings
    names: Sequence[str]
    """june's names, one of which must be heard in a group."""


def decide(  # noqa: PLR0911 - one guard for each thing that must be known first
    message: Inbound,
    role: Role,
    rules: Rules,
    *,
    ties: Ties = NO_TIES,
    transcript: Transcript | None = None,
    is_answering: bool = False,
) -> Action:
    """Return what becomes of a message.

    Args:
        message: as it arrived, or as it was stored.
        role: of its sender.
        rules: what the owner has set.
        ties: how it relates to earlier messages.
        transcript: what was heard in its recording; None: it was not heard yet, or has none.
        is_answering: whether june is answering in its chat now, so that "stop" is for june whoever hears it.
    """
    if not message.may_be_for_june:
        return Ignore()
    message, route = _routed(message, role, rules, ties)
    if message.kind == "command":
        return Stop() if is_answering and message.is_stop_command else RunCommand()
    if is_answering and route == "assistant" and _says_stop(message, transcript, rules):
        return Stop()
    if message.attachment is not None and transcript is None:
        return Hear(route)
    heard = transcript.text if transcript is not None else None
    if not message.is_addressed and not names_june(heard or "", rules.names):
        return Ignore()
    note = rules.routes.after_queue_word(heard or "") if role == "owner" else None
    if route == "assistant" and note is None:
        return Stop() if is_stop(message.text if heard is None else heard, rules.names) else Answer()
    return _pass_on(route, ties, message.text, heard, note)


def _pass_on(route: Route, ties: Ties, written: str, heard: str | None, note: str | None) -> Action:
    """Return to whom a message goes that june does not answer.

    Args:
        route: whom it is for.
        ties: how it relates to earlier messages.
        written: what it says in writing.
        heard: what was heard in its recording; None: it has none.
        note: what was heard behind the queue's word; None: that was not heard.
    """
    said = "\n".join(filter(None, (written, heard)))
    words = written if heard is None else heard
    match route:
        case "forward":
            return Forward(said)
        case "return":
            return Return(ties.forwarded, said)
        case "answer":
            return AnswerQuestion(words)
        case "queue" | "assistant":
            return HandOver(words if note is None else note)


def _says_stop(message: Inbound, transcript: Transcript | None, rules: Rules) -> bool:
    """Return whether a message that arrives while june answers says "stop", in writing or as it was heard.

    What is heard then is for june even if june is not named.
    """
    is_written = message.is_addressed and is_stop(message.text, rules.names)
    return is_written or (transcript is not None and is_stop(transcript.text, rules.names))


def decide_received(
    received: Received,
    rules: Rules,
    *,
    transcript: Transcript | None = None,
    is_answering: bool = False,
) -> Action:
    """Return what becomes of a stored message; an earlier attempt may have heard it."""
    return decide(
        received.message,
        received.role,
        rules,
        ties=received.ties,
        transcript=transcript or received.transcript,
        is_answering=is_answering,
    )


def place(message: Inbound, role: Role, ties: Ties, rules: Rules) -> Placed:
    """Return how a message is stored that has arrived."""
    kept, route = _routed(message, role, rules, ties)
    match route:
        case "answer":
            answers = ties.question
        case "return":
            answers = ties.forwarded
        case _:
            answers = ties.replied_to
    match decide(replace(kept, route=route), role, rules, ties=ties):
        case HandOver():
            return Placed(kept, route, answers, taker="program")
        case AnswerQuestion():
            return Placed(kept, route, answers, taker="nobody")
        case _:
            return Placed(kept, route, answers, taker="june")


def _routed(message: Inbound, role: Role, rules: Rules, ties: Ties) -> tuple[Inbound, Route]:
    """Return whom a message is for; one of the owner's that names the queue loses that name.

    A stored message keeps the route that it was stored with, whatever is set now.
    """
    if message.route is not None:
        return message, message.route
    note = _written_note(message, rules.routes) if role == "owner" else None
    if note is not None:
        message = replace(message, kind="text" if message.kind == "command" else message.kind, text=note)
    if message.kind == "command":
        return message, "assistant"
    # A reply answers whatever it says; without one, only what names no other use.
    may_answer = message.reply_to or (message.is_addressed and note is None)
    if ties.question is not None and may_answer:
        return message, "answer"
    if ties.forwarded is not None and role == "owner":
        return message, "return"
    if note is not None:
        return message, "queue"
    return message, rules.routes.owner if role == "owner" else rules.routes.allowed


def _written_note(message: Inbound, routes: RoutesSettings) -> str | None:
    """Return what follows /queue or the queue's word in writing; None: neither begins the message."""
    if message.kind != "command":
        return routes.after_queue_word(message.text)
    parts = message.text.split(maxsplit=1)
    return parts[1] if len(parts) > 1 and parts[0].casefold() == "/queue" else None
