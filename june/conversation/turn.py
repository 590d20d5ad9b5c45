"""One turn: decode, transcribe, answer, speak, encode.

The answer is cut into sentences while it is being written, and a sentence is encoded while the next is
being spoken. With `overlap` speaking begins with the first finished sentence; without it, when the model
has written its last word. A failure in speech leaves the text whole.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from june import audio
from june.conversation.speakable import SentenceStream
from june.errors import SENTENCES, GenerationError, Stage, StageError, SynthesisError
from june.llm import ChatModel
from june.messages import (
    ChatMessage,
    ChatRequest,
    Device,
    Pcm,
    Sampling,
    Speech,
    Transcript,
    Usage,
    Voice,
)
from june.settings import LlmSettings, Settings
from june.stt import SpeechToText
from june.telemetry import log, stage
from june.tts import TextToSpeech
from june.workers import ModelThread, settled

T = TypeVar("T")

CORES_FOR_OVERLAP = 8
"""With the language model on the CPU, speaking meanwhile needs cores to spare: on 2, where both engines can
use both, a turn took as long either way (0.99 to 1.07 of its time over four runs of the bench), and the
answer's text came later. That 8 are enough is an estimate."""
CODEC_TIMEOUT_S = 30.0
SENTENCES_AHEAD = 4
"""Spoken sentences that may wait for the encoder, which is some five times faster than the voice."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What a person said (`audio`, the bytes of a recording) or wrote (`text`)."""

    audio: bytes | None = None
    text: str = ""
    language: str = ""
    """ISO 639-1 code of what is spoken; empty: heard from the recording."""
    history: tuple[ChatMessage, ...] = ()
    conversation: str = ""


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What june answers."""

    outcome: Literal["answered", "nothing_heard"]
    transcript: Transcript | None
    """None if the person wrote."""
    text: str
    voice: Voice | None
    """None if there was nothing to say, or speech failed."""
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
        self.overlap = choose_overlap(settings.reply.overlap, llm.describe().device, cores)

    async def close(self) -> None:
        """End the codec's thread."""
        await self._codec.close()

    async def answer(self, request: TurnRequest) -> TurnResult:
        """The answer to one question; cancelling it stops the models.

        Raises:
            StageError: a stage before speech failed; its `sentence` is what the person is told.
        """
        timings_s: dict[str, float] = {}
        outcome = "cancelled"
        measures: dict[str, int | float] = {}
        try:
            with stage("total", timings_s):
                result = await self._answer(request, timings_s)
            outcome = result.outcome if result.speech_error is None else result.speech_error.code
            measures = _measure(result)
        except StageError as error:
            outcome = error.code
            raise
        finally:
            seconds = {f"{name}_s": round(value, 4) for name, value in timings_s.items()}
            log.info("turn.finished", outcome=outcome, **measures, **seconds)
        if self._settings.telemetry.log_content:
            heard = result.transcript.text if result.transcript else request.text
            log.info("turn.content", heard=heard, answered=result.text)
        return result

    async def _answer(self, request: TurnRequest, timings_s: dict[str, float]) -> TurnResult:
        transcript = None
        question = request.text
        if request.audio is not None:
            pcm = await self._decode(request.audio, timings_s)
            transcript = await self._transcribe(pcm, request.language, timings_s)
            question = transcript.text
            if not question:
                sentence = SENTENCES["nothing_heard"]
                return TurnResult("nothing_heard", transcript, sentence, None, None, None, timings_s)
        messages = (*request.history, ChatMessage("user", question))
        answer = _Answer()
        voice = error = None
        async with _owned(self._voice(answer, timings_s)) as speaking:
            await self._write(answer, self.chat_request(messages, request.conversation), timings_s)
            try:
                voice = await speaking
            except StageError as speech_error:
                error = speech_error
                log.warning("speech.failed", stage=error.stage, code=error.code, detail=str(error))
        return TurnResult("answered", transcript, answer.text, voice, error, answer.usage, timings_s)

    async def _decode(self, data: bytes, timings_s: dict[str, float]) -> Pcm:
        async with _limited("decode", CODEC_TIMEOUT_S, timings_s):
            return await self._codec.run(lambda _: audio.decode(data, self._settings.audio))

    async def _transcribe(self, pcm: Pcm, language: str, timings_s: dict[str, float]) -> Transcript:
        async with _limited("stt", self._settings.stt.timeout_s, timings_s):
            return await self._stt.transcribe(pcm, language=language)

    def chat_request(self, messages: tuple[ChatMessage, ...], conversation: str = "") -> ChatRequest:
        """What the language model is asked: the system prompt, then the messages."""
        settings = self._settings.llm
        return ChatRequest(
            (ChatMessage("system", settings.system_prompt), *messages),
            sampling_of(settings),
            settings.max_tokens,
            settings.thinking,
            conversation,
        )

    async def _write(self, answer: "_Answer", request: ChatRequest, timings_s: dict[str, float]) -> None:
        """Have the model write into `answer`, and let it be spoken when it is time."""
        if self.overlap:
            answer.may_be_spoken.set()
        sentences = SentenceStream()
        begin = time.perf_counter()
        async with (
            _limited("llm", self._settings.llm.timeout_s, timings_s),
            aclosing(self._llm.stream(request)) as deltas,
        ):
            async for delta in deltas:
                if delta.text:
                    timings_s.setdefault("llm_first_token", time.perf_counter() - begin)
                    answer.add(delta.text, sentences.feed(delta.text))
                answer.usage = delta.usage or answer.usage
        answer.finish(sentences.finish())
        if not answer.text:
            raise GenerationError("llm_empty", "The language model wrote nothing.")
        answer.may_be_spoken.set()

    async def _voice(self, answer: "_Answer", timings_s: dict[str, float]) -> Voice:
        """The answer as a voice message.

        Raises:
            StageError: nothing in it can be said, or speaking or encoding failed.
        """
        await answer.may_be_spoken.wait()
        spoken: asyncio.Queue[list[Speech] | None] = asyncio.Queue(SENTENCES_AHEAD)
        try:
            async with asyncio.TaskGroup() as group:
                encoding = group.create_task(self._encode(spoken, timings_s))
                await self._speak(answer, spoken, timings_s)
        except ExceptionGroup as failures:  # the first failure cancelled the rest
            raise failures.exceptions[0] from None
        return encoding.result()

    async def _speak(
        self, answer: "_Answer", spoken: asyncio.Queue[list[Speech] | None], timings_s: dict[str, float]
    ) -> None:
        begin = time.perf_counter()
        characters = 0
        async for sentence in answer.sentences():
            if characters + len(sentence) > self._settings.reply.max_characters:
                log.warning("speech.cut", max_characters=self._settings.reply.max_characters)
                break
            characters += len(sentence)
            async with (
                _limited("tts", self._settings.tts.timeout_s, timings_s),
                aclosing(self._tts.synthesize(sentence)) as pieces,
            ):
                speech = [piece async for piece in pieces]
            timings_s.setdefault("tts_first_audio", time.perf_counter() - begin)
            await spoken.put(speech)
        if characters == 0:
            raise SynthesisError("nothing_to_say", "Nothing in the answer can be spoken.")
        await spoken.put(None)

    async def _encode(self, spoken: asyncio.Queue[list[Speech] | None], timings_s: dict[str, float]) -> Voice:
        encoder = audio.OpusEncoder(self._settings.audio.opus_bitrate)
        pause_s = 0.0
        while (speech := await spoken.get()) is not None:
            async with _limited("encode", CODEC_TIMEOUT_S, timings_s):
                await self._codec.run(lambda _, s, p: append_sentence(encoder, s, p), speech, pause_s)
            pause_s = self._settings.tts.sentence_pause_s
        async with _limited("encode", CODEC_TIMEOUT_S, timings_s):
            return await self._codec.run(lambda _: encoder.finish())


class _Answer:
    """An answer that one task writes and another speaks meanwhile."""

    def __init__(self) -> None:
        self.text = ""
        self.usage: Usage | None = None
        self.may_be_spoken = asyncio.Event()
        self._sentences: list[str] = []
        self._finished = False
        self._changed = asyncio.Event()

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
async def _limited(name: Stage, limit_s: float, timings_s: dict[str, float]) -> AsyncIterator[None]:
    """Time the block as a stage, and end it with an error of that stage at its time limit."""
    with stage(name, timings_s):
        try:
            async with asyncio.timeout(limit_s):
                yield
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
    if result.voice is not None:
        measures["answer_s"] = round(result.voice.duration_s, 2)
    return measures


def append_sentence(encoder: audio.OpusEncoder, speech: list[Speech], pause_s: float) -> None:
    """Encode the pieces of one spoken sentence at an even loudness, after a pause."""
    if not speech:
        return
    rate_hz = speech[0].sample_rate_hz
    pause = np.zeros(round(pause_s * rate_hz), np.int16)
    samples = audio.level_speech(np.concatenate([piece.samples for piece in speech]), rate_hz)
    encoder.write(np.concatenate([pause, samples]), rate_hz)
