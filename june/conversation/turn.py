"""One turn: decode, transcribe, answer, speak, encode.

The answer is cut into sentences while it is being written, and a sentence is encoded while the next is
being spoken. With `overlap` speaking begins with the first finished sentence; without it, when the model
has written its last word. A long answer becomes several voice messages, cut between sentences. A failure in
speech leaves the text whole.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from june import audio
from june.conversation.gathering import Gathering
from june.conversation.speakable import SentenceStream
from june.errors import SENTENCES, GenerationError, Stage, StageError, SynthesisError
from june.llm import ChatModel
from june.messages import (
    ChatMessage,
    ChatRequest,
    Delta,
    Device,
    JsonObject,
    Pcm,
    Sampling,
    Speech,
    Transcript,
    Usage,
    Voice,
)
from june.sections import LlmSettings
from june.settings import Settings
from june.stt import SpeechToText
from june.telemetry import Facts, count_error, log, stage
from june.tts import TextToSpeech
from june.workers import ModelThread, StopFlag, settled

T = TypeVar("T")

CORES_FOR_OVERLAP = 8
"""With the language model on the CPU, speaking meanwhile needs cores to spare: on 2, where both engines can
use both, a turn took as long either way (0.99 to 1.07 of its time over four runs of the bench), and the
answer's text came later. That 8 are enough is an estimate."""
CODEC_TIMEOUT_S = 30.0
SENTENCES_AHEAD = 4
"""Spoken sentences that may wait for the encoder, which is some five times faster than the voice."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a recording says, and the seconds of decode and stt that it took to hear it."""

    transcript: Transcript
    timings_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What a person said (`audio`, the bytes of a recording, or what was `heard` of it) or wrote (`text`).

    Text beside a recording is its caption, and a part of the question.
    """

    audio: bytes | None = None
    heard: Heard | None = None
    text: str = ""
    language: str = ""
    """ISO 639-1 code of what is spoken; empty: heard from the recording."""
    history: tuple[ChatMessage, ...] = ()
    conversation: str = ""
    speak: bool = True
    """Whether the answer is wanted as a voice message too."""
    answer: str = ""
    """The answer, if it was written already: it is only spoken."""
    json_schema: JsonObject | None = None
    """What the answer follows, if it is to be JSON."""


class TurnListener(Protocol):
    """Who wants to know of an answer before it is spoken to its end."""

    def text_grew(self, text: str) -> None:
        """The model wrote more; `text` is the answer so far."""

    async def text_finished(self, text: str) -> None:
        """The model has written the whole answer; the turn goes on when this returns."""


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
    """Turns questions into answers with three loaded models, which it does not own."""

    def __init__(
        self, settings: Settings, stt: SpeechToText, llm: ChatModel, tts: TextToSpeech, *, cores: int
    ) -> None:
        self._settings = settings
        self._stt = stt
        self._llm = llm
        self._tts = tts
        self._codec = ModelThread("decode")
        self._cores = cores
        self._gathering = Gathering(settings.llm.slots)

    @property
    def overlap(self) -> bool:
        """Whether to speak while the model still writes; another model may compute elsewhere."""
        return choose_overlap(self._settings.reply.overlap, self._llm.describe().device, self._cores)

    async def close(self) -> None:
        """End the codec's thread."""
        await self._codec.close()

    async def hear(self, recording: bytes, language: str = "") -> Heard:
        """What a recording says.

        Args:
            recording: OGG, MP3, M4A, WAV, FLAC or WebM.
            language: ISO 639-1 code of what is spoken; empty: heard from the recording.

        Raises:
            AudioError: the bytes are no recording that june accepts.
            TranscriptionError: speech to text failed.
        """
        timings_s: dict[str, float] = {}
        with self._gathering.hearing():
            pcm = await self._decode(recording, timings_s)
            return Heard(await self._transcribe(pcm, language, timings_s), timings_s)

    async def record(self, recording: bytes) -> Voice:
        """A person's recording as it is heard here, as a voice message.

        Raises:
            AudioError: the bytes are no recording that june accepts.
        """

        def rewrite(_: StopFlag) -> Voice:
            encoder = audio.OpusEncoder(self._settings.audio.opus_bitrate)
            pcm = audio.decode(recording, self._settings.audio)
            encoder.write((pcm * np.iinfo(np.int16).max).astype(np.int16), audio.DECODED_RATE_HZ)
            return encoder.finish()

        async with _limited("encode", CODEC_TIMEOUT_S, {}):
            return await self._codec.run(rewrite)

    async def speak(self, text: str, language: str = "") -> tuple[Voice, ...]:
        """A text as voice messages, each at most `reply.max_voice_s` long.

        Raises:
            StageError: nothing in it can be said, or speaking or encoding failed.
        """
        answer = _Answer()
        answer.write_whole(text)
        return await self._voices(answer, self._voice_for(language), {})

    async def answer(self, request: TurnRequest, listener: TurnListener | None = None) -> TurnResult:
        """The answer to one question; cancelling it stops the models.

        Raises:
            StageError: a stage before speech failed; its `sentence` is what the person is told.
        """
        timings_s: dict[str, float] = {}
        outcome = "cancelled"
        measures: dict[str, int | float] = {}
        begin = time.perf_counter()
        try:
            result = await self._answer(request, listener, timings_s)
            outcome = result.outcome if result.speech_error is None else result.speech_error.code
            measures = _measure(result)
        except StageError as error:
            outcome = error.code
            raise
        finally:
            timings_s["total"] = timings_s.get("total", 0.0) + time.perf_counter() - begin
            seconds = {f"{name}_s": round(value, 4) for name, value in timings_s.items()}
            log.info("turn.finished", outcome=outcome, **measures, **seconds)
        if self._settings.telemetry.log_content:
            heard = result.transcript.text if result.transcript else request.text
            log.info("turn.content", heard=heard, answered=result.text)
        return result

    async def _answer(
        self, request: TurnRequest, listener: TurnListener | None, timings_s: dict[str, float]
    ) -> TurnResult:
        heard = request.heard
        if request.audio is not None:
            heard = await self.hear(request.audio, request.language)
        transcript = None
        question = request.text
        if heard is not None:
            timings_s |= heard.timings_s
            timings_s["total"] = sum(request.heard.timings_s.values()) if request.heard is not None else 0.0
            transcript = heard.transcript
            question = "\n".join(filter(None, (request.text, transcript.text)))
            if not question:
                sentence = SENTENCES["nothing_heard"]
                return TurnResult("nothing_heard", transcript, sentence, (), None, None, timings_s)
        messages = (*request.history, ChatMessage("user", question))
        language = request.language or (transcript.language if transcript is not None else "")
        answer = _Answer()
        voices: tuple[Voice, ...] = ()
        error = None
        async with _owned(self._voices(answer, self._voice_for(language), timings_s)) as speaking:
            if request.answer:
                answer.write_whole(request.answer)
            else:
                if heard is not None and not self.overlap:
                    await self._gathering.wait()
                asked = self.chat_request(messages, request.conversation, request.json_schema)
                await self._write(answer, asked, request.speak, listener, timings_s)
            try:
                if request.speak:
                    voices = await speaking
            except StageError as speech_error:
                error = speech_error
                count_error(error.stage, error.code)
                log.warning("speech.failed", stage=error.stage, code=error.code, detail=str(error))
        return TurnResult("answered", transcript, answer.text, voices, error, answer.usage, timings_s)

    def _voice_for(self, language: str) -> str:
        """The voice for a language; "" is the one that speaks everything else."""
        return self._settings.tts.voices.get(language, "")

    async def _decode(self, data: bytes, timings_s: dict[str, float]) -> Pcm:
        async with _limited("decode", CODEC_TIMEOUT_S, timings_s, audio_bytes=len(data)):
            return await self._codec.run(lambda _: audio.decode(data, self._settings.audio))

    async def _transcribe(self, pcm: Pcm, language: str, timings_s: dict[str, float]) -> Transcript:
        async with _limited("stt", self._settings.stt.timeout_s, timings_s, **_named(self._stt)) as facts:
            transcript = await self._stt.transcribe(pcm, language=language)
            facts |= {"audio_s": transcript.duration_s, "language": transcript.language}
            return transcript

    def chat_request(
        self,
        messages: tuple[ChatMessage, ...],
        conversation: str = "",
        json_schema: JsonObject | None = None,
    ) -> ChatRequest:
        """What the language model is asked: the system prompt, then the messages."""
        settings = self._settings.llm
        return ChatRequest(
            (ChatMessage("system", settings.system_prompt), *messages),
            sampling_of(settings),
            settings.max_tokens,
            settings.thinking,
            conversation,
            stop=tuple(settings.stop),
            thinking_budget_tokens=settings.thinking_budget_tokens,
            json_schema=json_schema,
        )

    async def _write(
        self,
        answer: "_Answer",
        request: ChatRequest,
        speak: bool,
        listener: TurnListener | None,
        timings_s: dict[str, float],
    ) -> None:
        """Have the model write into `answer`, and let it be spoken when it is time."""
        if self.overlap and speak:
            answer.may_be_spoken.set()
        sentences = SentenceStream()
        begin = time.perf_counter()
        async with (
            _limited("llm", self._settings.llm.timeout_s, timings_s, **_named(self._llm)) as facts,
            aclosing(self._llm.stream(request)) as deltas,
        ):
            async for delta in deltas:
                if delta.text:
                    timings_s.setdefault("llm_first_token", time.perf_counter() - begin)
                    answer.add(delta.text, sentences.feed(delta.text))
                    if listener is not None:
                        listener.text_grew(answer.text)
                answer.usage = delta.usage or answer.usage
                facts.update(_counted(delta))
            facts["time_to_first_token_s"] = timings_s.get("llm_first_token", 0.0)
        answer.finish(sentences.finish())
        if not answer.text:
            raise GenerationError("llm_empty", "The language model wrote nothing.")
        if speak:
            answer.may_be_spoken.set()
        if listener is not None:
            await listener.text_finished(answer.text)

    async def _voices(self, answer: "_Answer", voice: str, timings_s: dict[str, float]) -> tuple[Voice, ...]:
        """The answer as voice messages.

        Raises:
            StageError: nothing in it can be said, or speaking or encoding failed.
        """
        await answer.may_be_spoken.wait()
        spoken: asyncio.Queue[_Sentence | None] = asyncio.Queue(SENTENCES_AHEAD)
        try:
            async with asyncio.TaskGroup() as group:
                encoding = group.create_task(self._encode(spoken, timings_s))
                await self._speak(answer, voice, spoken, timings_s)
        except ExceptionGroup as failures:  # the first failure cancelled the rest
            raise failures.exceptions[0] from None
        return encoding.result()

    async def _speak(
        self,
        answer: "_Answer",
        voice: str,
        spoken: "asyncio.Queue[_Sentence | None]",
        timings_s: dict[str, float],
    ) -> None:
        begin = time.perf_counter()
        known = {**_named(self._tts), "voice": voice}
        async for sentence in answer.sentences():
            async with (
                _limited(
                    "tts", self._settings.tts.timeout_s, timings_s, characters=len(sentence), **known
                ) as facts,
                aclosing(self._tts.synthesize(sentence, voice=voice)) as pieces,
            ):
                speech = [piece async for piece in pieces]
                if "tts_first_audio" not in timings_s:
                    timings_s["tts_first_audio"] = time.perf_counter() - begin
                    facts["time_to_first_audio_s"] = timings_s["tts_first_audio"]
            await spoken.put(_Sentence(sentence, speech))
        if not answer.has_sentences:
            raise SynthesisError("nothing_to_say", "Nothing in the answer can be spoken.")
        await spoken.put(None)

    async def _encode(
        self, spoken: "asyncio.Queue[_Sentence | None]", timings_s: dict[str, float]
    ) -> tuple[Voice, ...]:
        """Each sentence is encoded as it comes; one that would make a message too long begins the next."""
        finished: list[Voice] = []
        message = _VoiceMessage(self._settings)
        while (sentence := await spoken.get()) is not None:
            if not message.has_room_for(sentence):
                finished.append(await self._finish(message, timings_s))
                message = _VoiceMessage(self._settings)
            async with _limited("encode", CODEC_TIMEOUT_S, timings_s):
                await self._codec.run(lambda _, one, more: one.append(more), message, sentence)
        return (*finished, await self._finish(message, timings_s))

    async def _finish(self, message: "_VoiceMessage", timings_s: dict[str, float]) -> Voice:
        async with _limited("encode", CODEC_TIMEOUT_S, timings_s, codec="opus") as facts:
            voice = await self._codec.run(lambda _: message.finish())
            facts |= {"audio_s": voice.duration_s, "audio_bytes": len(voice.ogg_opus)}
            return voice


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    speech: list[Speech]


class _VoiceMessage:
    """One voice message, as it is encoded sentence by sentence."""

    def __init__(self, settings: Settings) -> None:
        self._pause_s = settings.tts.sentence_pause_s
        self._max_s = settings.reply.max_voice_s
        self._encoder = audio.OpusEncoder(settings.audio.opus_bitrate)
        self._sentences: list[str] = []

    def has_room_for(self, sentence: _Sentence) -> bool:
        more_s = sum(piece.samples.size / piece.sample_rate_hz for piece in sentence.speech)
        return not self._sentences or self._encoder.duration_s + self._pause_s + more_s <= self._max_s

    def append(self, sentence: _Sentence) -> None:
        append_sentence(self._encoder, sentence.speech, self._pause_s if self._sentences else 0.0)
        self._sentences.append(sentence.text)

    def finish(self) -> Voice:
        return replace(self._encoder.finish(), text=" ".join(self._sentences))


class _Answer:
    """An answer that one task writes and another speaks meanwhile."""

    def __init__(self) -> None:
        self.text = ""
        self.usage: Usage | None = None
        self.may_be_spoken = asyncio.Event()
        self._sentences: list[str] = []
        self._finished = False
        self._changed = asyncio.Event()

    @property
    def has_sentences(self) -> bool:
        """Whether anything in it can be said."""
        return bool(self._sentences)

    def add(self, text: str, sentences: list[str]) -> None:
        """Text as the model wrote it, and the sentences that it finished."""
        self.text += text
        self._sentences += sentences
        self._changed.set()

    def finish(self, sentences: list[str]) -> None:
        """No more text comes."""
        self.text = self.text.strip()
        self._sentences += sentences
        self._finished = True
        self._changed.set()

    def write_whole(self, text: str) -> None:
        """A text that needs no model any more; it may be spoken at once."""
        sentences = SentenceStream()
        self.add(text, sentences.feed(text))
        self.finish(sentences.finish())
        self.may_be_spoken.set()

    async def sentences(self) -> AsyncIterator[str]:
        """Each sentence as soon as it is finished."""
        spoken = 0
        while spoken < len(self._sentences) or not self._finished:
            self._changed.clear()
            while spoken < len(self._sentences):
                yield self._sentences[spoken]
                spoken += 1
            if not self._finished:
                await self._changed.wait()


def choose_overlap(setting: Literal["auto"] | bool, llm_device: Device, cores: int) -> bool:
    """Whether to speak while the language model still writes."""
    if setting == "auto":
        return llm_device != "cpu" or cores >= CORES_FOR_OVERLAP
    return setting


def sampling_of(settings: LlmSettings) -> Sampling:
    """How the settings ask for tokens to be drawn."""
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        presence_penalty=settings.presence_penalty,
        repeat_penalty=settings.repeat_penalty,
        seed=None if settings.seed < 0 else settings.seed,
    )


@asynccontextmanager
async def _limited(
    name: Stage, limit_s: float, timings_s: dict[str, float], **facts: str | float
) -> AsyncIterator[Facts]:
    """Measure the block as a stage, and end it with an error of that stage at its time limit."""
    with stage(name, timings_s, **facts) as known:
        try:
            async with asyncio.timeout(limit_s):
                yield known
        except TimeoutError:
            detail = f"Stage {name} took longer than its limit of {limit_s:g} s."
            raise StageError(name, "timeout", detail) from None


@asynccontextmanager
async def _owned(coroutine: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run the coroutine beside the block; what is left of it is cancelled at the block's end."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await settled(task)


def _named(model: SpeechToText | ChatModel | TextToSpeech) -> dict[str, str]:
    description = model.describe()
    return {"model": description.name, "backend": description.backend}


def _counted(last: Delta) -> Facts:
    """What the last piece of an answer tells of all of it; nothing of any other piece."""
    facts: Facts = {} if last.finish_reason is None else {"finish_reason": last.finish_reason}
    if last.usage is not None:
        facts |= {
            "prompt_tokens": last.usage.prompt_tokens,
            "cached_tokens": last.usage.cached_tokens,
            "completion_tokens": last.usage.completion_tokens,
        }
    return facts


def _measure(result: TurnResult) -> dict[str, int | float]:
    """Lengths, which are no personal data."""
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


def append_sentence(encoder: audio.OpusEncoder, speech: list[Speech], pause_s: float) -> None:
    """Encode the pieces of one spoken sentence at an even loudness, after a pause."""
    if not speech:
        return
    rate_hz = speech[0].sample_rate_hz
    pause = np.zeros(round(pause_s * rate_hz), np.int16)
    samples = audio.level_speech(np.concatenate([piece.samples for piece in speech]), rate_hz)
    encoder.write(np.concatenate([pause, samples]), rate_hz)
