"""june's own answer to a message: remembered, written, spoken, and put in the outbox.

The text goes into the outbox as soon as the model has written it, the voice when it has been spoken. Each
step is committed: a turn that is repeated after a crash writes nothing twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from june.conversation.apps import ChatApps, Preview
from june.conversation.failing import TurnRecord
from june.conversation.listening import Heard
from june.conversation.memory import fit, newer_half
from june.conversation.turn import AlreadyWritten, ToWrite, TurnRequest, TurnResult, VoicePipeline, Written
from june.conversation.work import Work
from june.errors import GenerationError
from june.messages import ChatPreferences, Outbound
from june.sections import LlmSettings, ReplySettings
from june.store import Store


@dataclass(frozen=True, slots=True)
class Mode:
    """How a chat wants to be answered."""

    speaks: bool
    writes: bool


def choose_mode(name: str, *, is_recording: bool) -> Mode:
    """Return what a reply mode ("mirror", "voice", "text", "both") means for one message."""
    speaks = name in {"voice", "both"} or (name == "mirror" and is_recording)
    return Mode(speaks, writes=name != "voice")


class Answerer:
    """Answers messages.

    Args:
        store: holds the conversations and the outbox.
        apps: show an answer that grows.
        pipeline: makes answers.
        settings: the section `[reply]`.
        llm_settings: the section `[llm]`, which says how much of a conversation the model is shown.
        history_messages: the most messages of a conversation that it is shown.
        wake_delivery: called when there is something to send.
        record: is told which stages were passed, and where speech failed.
    """

    def __init__(
        self,
        store: Store,
        apps: ChatApps,
        pipeline: VoicePipeline,
        settings: ReplySettings,
        *,
        llm_settings: LlmSettings,
        history_messages: int,
        wake_delivery: Callable[[], None],
        record: TurnRecord,
    ) -> None:
        self._record = record
        self._store = store
        self._apps = apps
        self._pipeline = pipeline
        self._settings = settings
        self._llm_settings = llm_settings
        self._history_messages = history_messages
        self._wake_delivery = wake_delivery

    async def show_working(self, work: Work) -> None:
        """Show in the message's chat that june works on its answer."""
        mode = self._mode(work, await work.preferences())
        await work.show_working("recording" if mode.speaks else "typing")

    async def answer(self, work: Work, heard: Heard | None) -> None:
        """Answer the message.

        Args:
            work: the message.
            heard: what its recording says; None: it has none.

        Raises:
            StageError: it cannot be answered.
            StoreError: the store failed; the message stays claimed.
        """
        message = work.received.message
        preferences = await work.preferences()
        mode = self._mode(work, preferences)
        await work.show_working("recording" if mode.speaks else "typing")
        making = _Making(work, self._store, mode, self._wake_delivery)
        work.ending = making
        transcript = heard.transcript.text if heard is not None else ""
        if self._settings.echo_transcript:
            making.echo = transcript
        earlier = work.received.answer
        request = TurnRequest(
            Written(message.text) if heard is None else replace(heard, caption=message.text),
            AlreadyWritten(earlier)
            if earlier
            else await self._to_write(message.chat, message.text + transcript),
            preferences.language,
            mode.speaks,
        )
        if mode.writes and self._settings.stream_text and not making.is_committed:
            making.preview = self._apps.preview(work.received, making.echo)
        result = await self._turn(request, making)
        work.timings_s = result.timings_s
        self._note(result)
        await making.finish(result)

    def _note(self, result: TurnResult) -> None:
        """Note which stages the turn passed, and where its speech failed."""
        error = result.speech_error
        failed = error.stage if error is not None else ""
        self._record.passed(name for name in result.timings_s if name != failed)
        if error is not None:
            self._record.refused(error)

    def _mode(self, work: Work, preferences: ChatPreferences) -> Mode:
        is_recording = work.received.message.attachment is not None
        return choose_mode(preferences.mode or self._settings.mode, is_recording=is_recording)

    async def _to_write(self, chat: str, question: str) -> ToWrite:
        """Return an answer to be written, with as much of the conversation as the model has room for."""
        history = await self._store.conversations.messages(chat, self._history_messages)
        return ToWrite(fit(history, question, self._llm_settings), chat)

    async def _turn(self, request: TurnRequest, making: "_Making") -> TurnResult:
        while True:
            try:
                return await self._pipeline.answer(request, making)
            except GenerationError as error:
                asked = request.answer
                if error.code != "context_overflow" or isinstance(asked, AlreadyWritten) or not asked.history:
                    raise
            # `fit` guessed too low
            request = replace(request, answer=replace(asked, history=newer_half(asked.history)))


class _Making:
    """One answer in the making: it observes its own turn, and says how the message ends.

    Attributes:
        preview: shows the text while it grows, where the chat reads along.
        echo: what was heard, shown above the text.
        is_committed: whether the whole text is stored, and on its way if it is to be sent.
    """

    def __init__(self, work: Work, store: Store, mode: Mode, wake_delivery: Callable[[], None]) -> None:
        self.preview: Preview | None = None
        self.echo = ""
        self.is_committed = bool(work.received.answer)
        self._work = work
        self._store = store
        self._mode = mode
        self._wake_delivery = wake_delivery
        self._text = work.received.answer

    def text_grew(self, text: str) -> None:
        """Show the text, where the chat reads along."""
        self._text = text
        if self.preview is not None:
            self.preview.show(text)

    async def text_finished(self, text: str) -> None:
        """Commit the text, and have it sent while it is still being spoken."""
        self._text = text
        preview_id = await self._finish_preview()
        written = [self._work.reply(text, preview_id, self.echo)] if self._mode.writes else []
        await self._store.inbox.note_answer(self._work.received.id, text, written)
        self.is_committed = True
        self._wake_delivery()

    async def finish(self, result: TurnResult) -> None:
        """Settle the message with what is to be sent beside the text."""
        await self._work.finish(
            self._rest(result),
            result.outcome,
            answer=self._text,
            timings_s=result.timings_s,
            usage=result.usage,
        )

    async def give_up(self, code: str, sentence: str) -> None:
        """Tell the person why there is no answer, where its beginning stood if there was one."""
        if self.is_committed:  # the text is on its way; only its voice is missing
            replies = [self._work.reply(sentence)]
            await self._work.finish(replies, "answered", answer=self._text, error=code)
            return
        told = self._work.reply(sentence, await self._finish_preview())
        is_expected = self._work.received.message.is_addressed or self._text
        await self._work.finish([told] if is_expected else [], "failed", error=code, status="ERROR")

    async def stop(self) -> None:
        """End the answer where it is; what its chat has seen of it stays."""
        preview_id = await self._finish_preview()
        if self.is_committed:
            await self._work.finish([], "answered", answer=self._text)
        elif preview_id:
            await self._work.finish([self._work.reply(f"{self._text} …", preview_id)], "stopped")
        else:
            await self._work.finish([], "stopped")

    def _rest(self, result: TurnResult) -> list[Outbound]:
        """Return what is to be sent when the turn is over, beside the text."""
        if result.outcome == "nothing_heard":
            return [self._work.reply(result.text)]
        is_one = len(result.voices) == 1
        voices = [
            replace(
                self._work.reply(result.text if is_one else voice.text),
                kind="voice",
                voice=voice,
                text_is_sent=self._mode.writes,
            )
            for voice in result.voices
        ]
        if voices or not self._mode.speaks:
            return voices
        instead = [] if self._mode.writes else [self._work.reply(result.text)]
        if result.speech_error is not None and result.speech_error.code != "nothing_to_say":
            instead.append(self._work.reply(result.speech_error.sentence))
        return instead

    async def _finish_preview(self) -> str:
        """Return the id of the message that shows the beginning; "" if there is none."""
        return await self.preview.finish() if self.preview is not None else self._work.received.preview_id
