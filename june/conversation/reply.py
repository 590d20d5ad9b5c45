"""One received message, answered: heard, remembered, written, spoken, and put in the outbox.

The text goes into the outbox as soon as the model has written it, the voice when it has been spoken. Each
step is committed: a turn that is repeated after a crash hears and writes nothing twice.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from june.conversation.addressing import is_stop, names_june
from june.conversation.apps import Addresses, ChatApps, Preview
from june.conversation.failing import TURN, TurnRecord, naming_stage
from june.conversation.listening import Heard
from june.conversation.memory import fit, newer_half
from june.conversation.turn import AlreadyWritten, ToWrite, TurnRequest, TurnResult, VoicePipeline, Written
from june.errors import SENTENCES, DeliveryError, GenerationError, StageError, StoreError
from june.messages import ChatPreferences, Inbound, Outbound, Transcript, Usage, Voice
from june.settings import Settings
from june.store import Received, Store
from june.telemetry import count_error, finish_trace, log, stage, where

STOPPED = "Stopped."

CommandRunner = Callable[[Received], Awaitable[str]]
"""Runs a command; the Markdown that answers it, or "" if nothing does."""


@dataclass(frozen=True, slots=True)
class Mode:
    """How a chat wants to be answered."""

    speaks: bool
    writes: bool


def choose_mode(name: str, *, is_recording: bool) -> Mode:
    """What a reply mode ("mirror", "voice", "text", "both") means for one message."""
    speaks = name in {"voice", "both"} or (name == "mirror" and is_recording)
    return Mode(speaks, writes=name != "voice")


@dataclass(frozen=True, slots=True)
class Desk:
    """What answering takes.

    Attributes:
        addresses: where the owner is reached.
        run_command: what becomes of a command.
        on_outbox: called when there is something to send.
        record: what became of the newest turns.
    """

    settings: Settings
    store: Store
    pipeline: VoicePipeline
    apps: ChatApps
    addresses: Addresses
    run_command: CommandRunner
    on_outbox: Callable[[], None]
    record: TurnRecord = field(default_factory=TurnRecord)

    async def hear(self, received: Received) -> Heard:
        """What a message's recording says; it is kept, and heard once only.

        Raises:
            StageError: the recording cannot be had, or is none.
        """
        if received.transcript is not None:
            return Heard(received.transcript)
        timings_s: dict[str, float] = {}
        heard = await self._hear(received, await self._download(received, timings_s))
        heard.timings_s.update(timings_s)
        return heard

    async def hear_and_record(self, received: Received) -> tuple[Transcript, Voice]:
        """What a message's recording says, and the recording, to be kept: the app's link to it expires.

        Raises:
            StageError: the recording cannot be had, or is none.
        """
        recording = await self._download(received, {})
        transcript = received.transcript or (await self._hear(received, recording)).transcript
        return transcript, await self.pipeline.listener.record(recording)

    async def _download(self, received: Received, timings_s: dict[str, float]) -> bytes:
        platform = received.message.platform
        with naming_stage("download"), stage("download", timings_s, platform=platform) as facts:
            recording = await self._fetch(received.message)
            facts["audio_bytes"] = len(recording)
            return recording

    async def _fetch(self, message: Inbound) -> bytes:
        try:
            return await self.apps.download(message)
        except DeliveryError as error:
            if error.reason == "too_large":
                raise StageError("download", "audio_too_large_for_app", str(error)) from None
            raise StageError("download", "download_failed", str(error)) from None

    async def _hear(self, received: Received, recording: bytes) -> Heard:
        preferences = await self.store.conversations.preferences(received.message.chat)
        heard = await self.pipeline.listener.hear(recording, preferences.language)
        self.record.passed(("download", *heard.timings_s))
        await self.store.inbox.note_transcript(received.id, heard.transcript)
        return heard


class Reply:
    """The answer to one received message, in the making; it listens to its own turn."""

    def __init__(self, desk: Desk, received: Received) -> None:
        self._desk = desk
        self._settings = desk.settings
        self.received = received
        self._begin = time.perf_counter()
        self.timings_s: dict[str, float] = {}
        """Seconds by stage, once it is answered."""
        self._mode = Mode(speaks=False, writes=True)
        self._echo = ""
        self._text = received.answer
        self._is_committed = bool(received.answer)
        self._preview: Preview | None = None

    @property
    def may_be_stopped(self) -> bool:
        """Whether "stop" ends it: it is june's answer to a person."""
        return self.received.message.kind != "command" and self.received.message.route == "assistant"

    async def make(self) -> None:
        """Answer the message, or say why not; what is to be sent is in the outbox then.

        Raises:
            StoreError: the store failed; the message stays claimed.
        """
        try:
            if self.received.message.kind == "command":
                await self._run_command()
            else:
                await self._answer()
            self._desk.record.passed((TURN,))
        except StageError as error:
            self._desk.record.refused(error)
            count_error(error.stage, error.code)
            log.warning("turn.refused", stage=error.stage, code=error.code, detail=str(error))
            await self._give_up(error.code, error.sentence)
        except StoreError:
            raise
        except Exception as error:  # the turn's boundary: one message never ends june
            self._desk.record.failed(TURN, "internal")
            count_error("turn", type(error).__name__)
            log.error("turn.failed", type=type(error).__name__, where=where(error))
            await self._give_up("internal", SENTENCES["internal"])

    async def end_early(self) -> None:
        """Settle a message whose answer was ended on demand; what its chat has seen of it stays."""
        preview_id = await self._finish_preview()
        if self._is_committed:
            await self._finish([], "answered", answer=self._text)
        elif preview_id:
            await self._finish([self._outbound(f"{self._text} …", preview_id)], "stopped")
        else:
            await self._finish([], "stopped")

    def text_grew(self, text: str) -> None:
        """Show it, where the chat reads along."""
        self._text = text
        if self._preview is not None:
            self._preview.show(text)

    async def text_finished(self, text: str) -> None:
        """Commit the text, and have it sent while it is still being spoken."""
        self._text = text
        preview_id = await self._finish_preview()
        written = [self._outbound(text, preview_id, self._echo)] if self._mode.writes else []
        await self._desk.store.inbox.note_answer(self.received.id, text, written)
        self._is_committed = True
        self._desk.on_outbox()

    async def _run_command(self) -> None:
        text = await self._desk.run_command(self.received)
        await self._finish([self._outbound(text)] if text else [], "command")

    async def _answer(self) -> None:
        message = self.received.message
        names = self._settings.chat.names
        is_recording = message.attachment is not None
        if not message.is_addressed:
            transcript = (await self._desk.hear(self.received)).transcript
            if not names_june(transcript.text, names):
                await self._finish([], "not_addressed", forget_text=True)
                return
            self.received = replace(self.received, transcript=transcript)
        preferences = await self._desk.store.conversations.preferences(message.chat)
        self._mode = choose_mode(preferences.mode or self._settings.reply.mode, is_recording=is_recording)
        async with self._desk.apps.working(message, "recording" if self._mode.speaks else "typing"):
            heard = await self._desk.hear(self.received) if is_recording else None
            if heard is not None and (note := self._for_the_queue(heard.transcript)) is not None:
                await self._hand_over(note)
                return
            if is_stop(heard.transcript.text if heard is not None else message.text, names):
                await self._finish([self._outbound(STOPPED)], "command")  # the dispatcher has done it
                return
            result = await self._turn(heard, preferences)
            self.timings_s = result.timings_s
            self._note(result)
            await self._finish(
                self._rest(result),
                result.outcome,
                answer=self._text,
                timings_s=result.timings_s,
                usage=result.usage,
            )

    def _note(self, result: TurnResult) -> None:
        """Note which stages the turn passed, and where its speech failed."""
        error = result.speech_error
        failed = error.stage if error is not None else ""
        self._desk.record.passed(name for name in result.timings_s if name != failed)
        if error is not None:
            self._desk.record.refused(error)

    def _for_the_queue(self, transcript: Transcript) -> str | None:
        """What an owner said behind the queue's word; None: the word was not said."""
        is_owner = self.received.role == "owner"
        return self._settings.routes.after_queue_word(transcript.text) if is_owner else None

    async def _hand_over(self, text: str) -> None:
        """Let one of the owner's programs have the message, with its recording and what was heard."""
        _, voice = await self._desk.hear_and_record(self.received)
        await self._desk.store.inbox.hand_over(self.received.id, voice, text=text)

    async def _turn(self, heard: Heard | None, preferences: ChatPreferences) -> TurnResult:
        message = self.received.message
        transcript = heard.transcript.text if heard is not None else ""
        if self._settings.reply.echo_transcript:
            self._echo = transcript
        history = await self._desk.store.conversations.messages(
            message.chat, self._settings.chat.history_messages
        )
        answer = ToWrite(fit(history, message.text + transcript, self._settings.llm), message.chat)
        request = TurnRequest(
            Written(message.text) if heard is None else replace(heard, caption=message.text),
            AlreadyWritten(self.received.answer) if self.received.answer else answer,
            preferences.language,
            self._mode.speaks,
        )
        if self._mode.writes and self._settings.reply.stream_text and not self._is_committed:
            self._preview = self._desk.apps.preview(self.received, self._echo)
        while True:
            try:
                return await self._desk.pipeline.answer(request, self)
            except GenerationError as error:
                if error.code != "context_overflow" or not answer.history:
                    raise
                answer = replace(answer, history=newer_half(answer.history))  # `fit` guessed too low
                request = replace(request, answer=answer)

    def _rest(self, result: TurnResult) -> list[Outbound]:
        """What is to be sent when the turn is over, beside the text."""
        if result.outcome == "nothing_heard":
            return [self._outbound(result.text)]
        is_one = len(result.voices) == 1
        voices = [
            replace(
                self._outbound(result.text if is_one else voice.text),
                kind="voice",
                voice=voice,
                text_is_sent=self._mode.writes,
            )
            for voice in result.voices
        ]
        if voices or not self._mode.speaks:
            return voices
        instead = [] if self._mode.writes else [self._outbound(result.text)]
        if result.speech_error is not None and result.speech_error.code != "nothing_to_say":
            instead.append(self._outbound(result.speech_error.sentence))
        return instead

    async def _give_up(self, code: str, sentence: str) -> None:
        """Tell the person why there is no answer, where its beginning stood if there was one."""
        if self._is_committed:  # the text is on its way; only its voice is missing
            await self._finish([self._outbound(sentence)], "answered", answer=self._text, error=code)
            return
        told = self._outbound(sentence, await self._finish_preview())
        is_expected = self.received.message.is_addressed or self._text
        await self._finish([told] if is_expected else [], "failed", error=code, status="ERROR")

    async def _finish_preview(self) -> str:
        return await self._preview.finish() if self._preview is not None else self.received.preview_id

    async def _finish(
        self,
        replies: list[Outbound],
        outcome: str,
        *,
        answer: str = "",
        error: str = "",
        status: Literal["RESPONDED", "FORWARDED", "ERROR"] = "RESPONDED",
        forget_text: bool = False,
        timings_s: Mapping[str, float] | None = None,
        usage: Usage | None = None,
    ) -> None:
        is_finished = await self._desk.store.inbox.finish(
            self.received.id,
            replies,
            outcome=outcome,
            answer=answer,
            error=error,
            status=status,
            forget_text=forget_text,
            timings_s=timings_s,
            usage=usage,
        )
        self._desk.on_outbox()
        if is_finished:
            self._end_trace(outcome, error)

    def _end_trace(self, outcome: str, error: str = "") -> None:
        received = self.received
        finish_trace(
            received.received_at_s,
            turn_s=time.perf_counter() - self._begin if received.message.attachment else None,
            platform=received.message.platform,
            outcome=outcome,
            error=error,
            message_id=received.message.message_id,
            kind=received.message.kind,
            role=received.role,
        )

    def _outbound(self, text: str, preview_id: str = "", echo: str = "") -> Outbound:
        message = self.received.message
        return Outbound(
            message.chat, "text", text, reply_to=message.message_id, preview_id=preview_id, echo=echo
        )
