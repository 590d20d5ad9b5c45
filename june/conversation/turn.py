"""One turn: a question is heard (`listening`), answered (`writing`) and spoken (`voicing`).

The answer is cut into sentences while it is being written. With `overlap` speaking begins with the first
finished sentence; without it, when the model has written its last word. A failure in speech leaves the text
whole.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from june.conversation.draft import Draft
from june.conversation.listening import Heard, Listener
from june.conversation.voicing import Voicer
from june.conversation.writing import Writer
from june.errors import SENTENCES, StageError
from june.messages import ChatMessage, ChatRequest, Device, JsonObject, Transcript, Usage, Voice
from june.sections import ReplySettings
from june.telemetry import count_error, log
from june.workers import ModelThread, settled

T = TypeVar("T")

CORES_FOR_OVERLAP = 8
"""With the language model on the CPU, speaking meanwhile needs cores to spare: on 2, where both engines can
use both, a turn took as long either way (0.99 to 1.07 of its time over four runs of the bench), and the
answer's text came later. That 8 are enough is an estimate."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A question that a person spoke, yet to be heard."""

    audio: bytes
    """OGG, MP3, M4A, WAV, FLAC or WebM."""
    caption: str = ""
    """What was written beside it, which is a part of the question."""


@dataclass(frozen=True, slots=True)
class Written:
    """A question that a person wrote."""

    text: str


@dataclass(frozen=True, slots=True)
class ToWrite:
    """An answer that the language model is to write."""

    history: tuple[ChatMessage, ...] = ()
    """What was said before the question, the oldest first."""
    conversation: str = ""
    """Names the chat, so that the model can keep what it has evaluated."""
    json_schema: JsonObject | None = None
    """What the answer follows, if it is to be JSON."""


@dataclass(frozen=True, slots=True)
class AlreadyWritten:
    """An answer that was written before, and only needs to be spoken."""

    text: str


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A question, and how it is to be answered."""

    question: Recording | Heard | Written
    answer: ToWrite | AlreadyWritten = field(default_factory=ToWrite)
    language: str = ""
    """ISO 639-1 code of what is spoken; empty: heard from the recording."""
    speak: bool = True
    """Whether the answer is wanted as a voice message too."""


class TurnObserver(Protocol):
    """Who wants to know of an answer before it is spoken to its end."""

    def text_grew(self, text: str) -> None:
        """Take note that the model wrote more; `text` is the answer so far."""

    async def text_finished(self, text: str) -> None:
        """Take note that the model has written all of it; the turn goes on when this returns."""


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What june answers."""

    outcome: Literal["answered", "nothing_heard"]
    transcript: Transcript | None
    """None if the person wrote."""
    text: str
    voices: tuple[Voice, ...]
    """The answer, spoken, each at most `reply.max_voice_s` long; empty if it was not to be spoken, there was
    nothing to say, or speech failed."""
    speech_error: StageError | None
    usage: Usage | None
    timings_s: dict[str, float]
    """Seconds of decode, stt, llm_first_token, llm, tts_first_audio, tts, encode and total. Stages
    overlap, so that the total is not their sum."""


class VoicePipeline:
    """Turns questions into answers.

    Args:
        listener: hears.
        writer: writes.
        voicer: speaks.
        codec: the thread that listener and voicer share; it ends with the pipeline.
        settings: the section `[reply]`.
        cores: that the machine has.
        log_content: whether what is said may stand in the log.
    """

    def __init__(
        self,
        listener: Listener,
        writer: Writer,
        voicer: Voicer,
        codec: ModelThread,
        settings: ReplySettings,
        *,
        cores: int,
        log_content: bool,
    ) -> None:
        self.listener = listener
        self.writer = writer
        self.voicer = voicer
        self._codec = codec
        self._settings = settings
        self._cores = cores
        self._log_content = log_content

    @property
    def overlap(self) -> bool:
        """Whether to speak while the model still writes; another model may compute elsewhere."""
        return choose_overlap(self._settings.overlap, self.writer.device, self._cores)

    async def close(self) -> None:
        """End the codec's thread."""
        await self._codec.close()

    async def answer(self, request: TurnRequest, observer: TurnObserver | None = None) -> TurnResult:
        """Return the answer to one question; cancelling it stops the models.

        Raises:
            StageError: a stage before speech failed; its `sentence` is what the person is told.
        """
        timings_s: dict[str, float] = {}
        outcome = "cancelled"
        measures: dict[str, int | float] = {}
        begin = time.perf_counter()
        try:
            result = await self._answer(request, observer, timings_s)
            outcome = result.outcome if result.speech_error is None else result.speech_error.code
            measures = _measure(result)
        except StageError as error:
            outcome = error.code
            raise
        finally:
            timings_s["total"] = timings_s.get("total", 0.0) + time.perf_counter() - begin
            seconds = {f"{name}_s": round(value, 4) for name, value in timings_s.items()}
            log.info("turn.finished", outcome=outcome, **measures, **seconds)
        if self._log_content:
            heard = result.transcript.text if result.transcript else _written(request.question)
            log.info("turn.quoted", heard=heard, answered=result.text)
        return result

    async def _answer(
        self, request: TurnRequest, observer: TurnObserver | None, timings_s: dict[str, float]
    ) -> TurnResult:
        heard = await self._hear(request, timings_s)
        transcript = heard.transcript if heard is not None else None
        said = transcript.text if transcript is not None else ""
        question = "\n".join(filter(None, (_written(request.question), said)))
        if heard is not None and not question:
            sentence = SENTENCES["nothing_heard"]
            return TurnResult("nothing_heard", transcript, sentence, (), None, None, timings_s)
        language = request.language or (transcript.language if transcript is not None else "")
        draft = Draft() if observer is None else Draft(observer.text_grew)
        voices: tuple[Voice, ...] = ()
        error = None
        async with _owned(self._speak(draft, language, timings_s)) as speaking:
            match request.answer:
                case AlreadyWritten(text):
                    draft.write_whole(text)
                case ToWrite() as wanted:
                    if heard is not None and not self.overlap:
                        await self.listener.wait_for_others()
                    messages = (*wanted.history, ChatMessage("user", question))
                    asked = self.writer.request(messages, wanted.conversation, wanted.json_schema)
                    await self._write(draft, asked, request.speak, observer, timings_s)
            try:
                if request.speak:
                    voices = await speaking
            except StageError as speech_error:
                error = speech_error
                count_error(error.stage, error.code)
                log.warning("speech.failed", stage=error.stage, code=error.code, detail=str(error))
        return TurnResult("answered", transcript, draft.text, voices, error, draft.usage, timings_s)

    async def _hear(self, request: TurnRequest, timings_s: dict[str, float]) -> Heard | None:
        """Return what was heard of a spoken question; None: it was written."""
        match request.question:
            case Recording(audio):
                heard = await self.listener.hear(audio, request.language)
                timings_s |= heard.timings_s
                return heard
            case Heard() as heard:
                timings_s |= heard.timings_s
                timings_s["total"] = sum(heard.timings_s.values())  # it was heard before the turn began
                return heard
            case Written():
                return None

    async def _write(
        self,
        draft: Draft,
        request: ChatRequest,
        speak: bool,
        observer: TurnObserver | None,
        timings_s: dict[str, float],
    ) -> None:
        """Have the answer written into the draft, and let it be spoken when it is time."""
        if self.overlap and speak:
            draft.may_be_spoken.set()
        await self.writer.write(draft, request, timings_s)
        if speak:
            draft.may_be_spoken.set()
        if observer is not None:
            await observer.text_finished(draft.text)

    async def _speak(self, draft: Draft, language: str, timings_s: dict[str, float]) -> tuple[Voice, ...]:
        """Return the draft as voice messages, from the moment that it may be spoken."""
        await draft.may_be_spoken.wait()
        return await self.voicer.speak(draft.sentences(), language, timings_s)


def choose_overlap(setting: Literal["auto"] | bool, llm_device: Device, cores: int) -> bool:
    """Return whether to speak while the language model still writes."""
    if setting == "auto":
        return llm_device != "cpu" or cores >= CORES_FOR_OVERLAP
    return setting


@asynccontextmanager
async def _owned(coroutine: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run the coroutine beside the block; what is left of it is cancelled at the block's end."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await settled(task)


def _written(question: Recording | Heard | Written) -> str:
    """Return the part of a question that was written."""
    return question.text if isinstance(question, Written) else question.caption


def _measure(result: TurnResult) -> dict[str, int | float]:
    """Return lengths, which are not personal data."""
    measures: dict[str, int | float] = {"answer_characters": len(result.text)}
    if result.transcript is not None:
        measures["question_s"] = round(result.transcript.duration_s, 2)
        measures["question_characters"] = len(result.transcript.text)
    if result.usage is not None:
        measures["prompt_tokens"] = result.usage.prompt_tokens
        measures["cached_tokens"] = result.usage.cached_tokens
        measures["completion_tokens"] = result.usage.completion_tokens
    if result.voices:
        measures["answer_s"] = round(sum(voice.duration_s for voice in result.voices), 2)
    return measures
