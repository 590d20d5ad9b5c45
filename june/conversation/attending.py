"""One received message, from its claim to its end: it is heard, its action is decided, and acted on."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import assert_never

from june.conversation.answering import Answerer
from june.conversation.apps import Addresses, ChatApps
from june.conversation.deciding import (
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
    decide_received,
)
from june.conversation.failing import TURN, TurnRecord
from june.conversation.forwarding import Forwarding
from june.conversation.handing_over import HandingOver
from june.conversation.hearing import Hearing
from june.conversation.listening import Heard
from june.conversation.turn import VoicePipeline
from june.conversation.work import Work
from june.errors import SENTENCES, StageError, StoreError
from june.sections import ChatSettings, LlmSettings, ReplySettings
from june.store import Received, Store
from june.telemetry import count_error, log, where

STOPPED = "Stopped."

CommandRunner = Callable[[Received], Awaitable[str]]
"""Runs a command; returns the Markdown that answers it, or "" if nothing does."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What work on messages takes.

    Attributes:
        chat, reply, llm: sections of the settings.
        rules: what of the settings decides.
        store: holds the messages.
        pipeline: makes answers.
        apps: the chat apps.
        addresses: where people are reached.
        run_command: runs a command.
        wake_delivery: called when there is something to send.
        record: what became of the newest turns.
    """

    chat: ChatSettings
    reply: ReplySettings
    llm: LlmSettings
    rules: Rules
    store: Store
    pipeline: VoicePipeline
    apps: ChatApps
    addresses: Addresses
    run_command: CommandRunner
    wake_delivery: Callable[[], None]
    record: TurnRecord = field(default_factory=TurnRecord)


class Attendant:
    """Works on messages, many at a time.

    Attributes:
        rules: what of the settings decides.
        hearing: hears messages, before their turn too.
    """

    def __init__(self, desk: Desk) -> None:
        self.rules = desk.rules
        self.hearing = Hearing(
            desk.store, desk.apps, desk.pipeline.listener, desk.record, max_early=desk.chat.max_turns
        )
        self._desk = desk
        self._answerer = Answerer(
            desk.store,
            desk.apps,
            desk.pipeline,
            desk.reply,
            llm_settings=desk.llm,
            history_messages=desk.chat.history_messages,
            wake_delivery=desk.wake_delivery,
            record=desk.record,
        )
        self._handing_over = HandingOver(self.hearing)
        self._forwarding = Forwarding(desk.store, desk.apps, desk.addresses, self.hearing)

    def take(self, received: Received) -> Work:
        """Return the work on a message, which begins now."""
        return Work(received, self._desk.store, self._desk.apps, self._desk.wake_delivery)

    async def attend(self, work: Work) -> None:
        """Work on a message, or say why not; what is to be sent is in the outbox then.

        Raises:
            StoreError: the store failed; the message stays claimed.
        """
        try:
            try:
                await self._attend(work)
            finally:
                self.hearing.forget(work.received.id)
                await work.hide_working()
            self._desk.record.passed((TURN,))
        except StageError as error:
            self._desk.record.refused(error)
            count_error(error.stage, error.code)
            report = log.error if error.code == "internal" else log.warning
            report("turn.refused", stage=error.stage, code=error.code, detail=str(error))
            await work.ending.give_up(error.code, error.sentence)
        except StoreError:
            raise
        except Exception as error:  # the turn's boundary: one message never ends june
            self._desk.record.failed(TURN, "internal")
            count_error("turn", type(error).__name__)
            log.error("turn.failed", type=type(error).__name__, where=where(error))
            await work.ending.give_up("internal", SENTENCES["internal"])

    async def _attend(self, work: Work) -> None:
        heard = await self._hear(work)
        transcript = heard.transcript if heard is not None else None
        match decide_received(work.received, self.rules, transcript=transcript):
            case Answer():
                self.hearing.forget(work.received.id)
                await self._answerer.answer(work, heard)
            case HandOver(words):
                await self._handing_over.hand_over(work, words)
            case AnswerQuestion(words):
                await self._handing_over.answer_question(work, words)
            case Forward(words):
                await self._forwarding.forward(work, words)
            case Return(original_id, words):
                await self._forwarding.give_back(work, original_id, words)
            case RunCommand():
                text = await self._desk.run_command(work.received)
                await work.finish([work.reply(text)] if text else [], "command")
            case Stop():  # the dispatcher has ended the answer, if there was one
                await work.finish([work.reply(STOPPED)], "command")
            case Ignore():
                await work.finish([], "not_addressed", forget_text=True)
            case Hear():
                raise AssertionError("What was heard needs no hearing.")
            case action:
                assert_never(action)

    async def _hear(self, work: Work) -> Heard | None:
        """Return what the message's recording says; None: it has none."""
        message = work.received.message
        if message.attachment is None or message.kind == "command":
            return None
        if message.route == "assistant" and message.is_addressed:
            await self._answerer.show_working(work)  # hearing takes its time
        return await self.hearing.hear(work.received)
