"""`bench voice`: voice turns over recorded questions.

One run times three ways to the same answer, question by question and in changing order:

- june: the pipeline in normal service;
- bare: the same calls of the same loaded engines without june's threads, event loop and logs. If june
  overlaps stages, the time is the critical path, the best that overlapping allows: a sentence is spoken once
  it is written and the voice is free, and encoded once it is spoken. If june does not overlap, the time is
  the sum of the calls;
- serial: june's parts, each stage whole, one after another.

Before each way, the prompt's cache is put into the same state, so that no way profits from another's cache.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from june import audio
from june.bench.recordings import Question, split_words, wrong_words
from june.bench.report import percentiles
from june.conversation.speakable import SentenceStream
from june.conversation.turn import Recording, TurnRequest, TurnResult
from june.conversation.voicing import append_sentence
from june.errors import JuneError
from june.lineup import create_pipeline
from june.llm import ChatModel
from june.llm.llama_cpp.model import LlamaCpp
from june.messages import ChatMessage, ChatRequest, Delta, ModelDescription, Sampling, Speech, Usage
from june.sections import TelemetrySettings
from june.settings import Settings
from june.stt import SpeechToText
from june.stt.faster_whisper import FULL_WINDOW_S, FasterWhisper, Window
from june.telemetry import close_traces, following, new_trace_context, open_traces
from june.tts import TextToSpeech
from june.tts.piper import Piper
from june.workers import StopFlag, try_for

CHARACTERS_PER_TOKEN = 4.5
"""English prose in the vocabularies of SmolLM2 and Qwen3."""
PACED_PROSE = (
    "The sky looks blue because the air scatters short waves of light more than long ones. "
    "Sunlight holds every color, and each color travels as a wave of its own length. "
    "When it meets the gases of the atmosphere, the blue part is sent in all directions. "
    "So wherever you look, some of that scattered blue light reaches your eyes. "
    "In the evening the light takes a longer way through the air, and most of the blue is lost. "
    "What is left is orange and red, and that is why a sunset glows. "
)

SEND_REST_S = 10.0
RECEIVER = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
"""


class BenchModel(ChatModel, Protocol):
    """A language model whose answers have a fixed length."""

    def write_now(self, request: ChatRequest) -> Iterator[tuple[str, float]]:
        """Yield the pieces of the answer, each with the seconds since the call; blocks, or acts as if."""


class FixedLength:
    """A real model with greedy sampling and a fixed length of answers, so that runs can be compared."""

    def __init__(self, llm: LlamaCpp, tokens: int) -> None:
        self._llm = llm
        self._tokens = tokens
        self.load, self.warm_up, self.close = llm.load, llm.warm_up, llm.close
        self.describe, self.forget = llm.describe, llm.forget

    def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Return the stream of an answer of `tokens` tokens."""
        return self._llm.stream(self._fix(request))

    def write_now(self, request: ChatRequest) -> Iterator[tuple[str, float]]:
        """Yield the same answer from the bare engine."""
        begin = time.perf_counter()
        for delta in self._llm.write_now(self._fix(request)):
            yield delta.text, time.perf_counter() - begin

    def _fix(self, request: ChatRequest) -> ChatRequest:
        return replace(
            request,
            sampling=Sampling(temperature=0),
            max_tokens=self._tokens,
            thinking=False,
            ignore_eos=True,
        )


class PacedModel:
    """A model that writes at a steady rate without using a core, like a GPU or a server."""

    def __init__(self, tokens: int, tokens_per_s: float) -> None:
        self._tokens = tokens
        self._tokens_per_s = tokens_per_s

    async def load(self) -> None:
        """Do nothing: there is nothing to load."""

    async def warm_up(self) -> None:
        """Do nothing: there is nothing to warm up."""

    async def close(self) -> None:
        """Do nothing: there is nothing to free."""

    async def forget(self, conversation: str) -> None:
        """Do nothing: nothing is kept."""

    def describe(self) -> ModelDescription:
        """Return a description with the device "remote", since june's cores do not compute."""
        return ModelDescription("paced", "bench", "remote", {"tokens_per_second": self._tokens_per_s})

    def write_now(self, request: ChatRequest) -> Iterator[tuple[str, float]]:
        """Yield the pieces and their times without waiting."""
        del request
        prose = PACED_PROSE * (1 + int(self._tokens * CHARACTERS_PER_TOKEN) // len(PACED_PROSE))
        for token in range(self._tokens):
            piece = prose[int(token * CHARACTERS_PER_TOKEN) : int((token + 1) * CHARACTERS_PER_TOKEN)]
            yield piece, (token + 1) / self._tokens_per_s

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Yield each piece at its time."""
        begin = time.perf_counter()
        for piece, due_s in self.write_now(request):
            await asyncio.sleep(begin + due_s - time.perf_counter())
            yield Delta(piece)
        yield Delta(usage=Usage(0, self._tokens), finish_reason="length")


@dataclass(slots=True)
class _Timings:
    """Seconds of each way to the answer, by question and turn."""

    june: list[TurnResult] = field(default_factory=list)
    june_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    serial_s: list[float] = field(default_factory=list)


class VoiceBench:
    """Times turns with loaded models."""

    def __init__(
        self, settings: Settings, stt: FasterWhisper, llm: BenchModel, tts: Piper, *, cores: int
    ) -> None:
        self._settings = settings
        self._stt = stt
        self._llm = llm
        self._tts = tts
        self._pause_s = settings.tts.sentence_pause_s
        self._pipeline = create_pipeline(settings, stt, llm, tts, cores=cores)

    async def close(self) -> None:
        """End the pipeline; the models stay loaded."""
        await self._pipeline.close()

    async def run(self, questions: tuple[Question, ...], turns: int) -> dict[str, Any]:
        """Time `turns` turns over the questions in rotation and return the report's figures."""
        await self._pipeline.answer(TurnRequest(Recording(questions[0].audio)))  # warm-up
        timings = _Timings()
        for turn in range(turns):
            question = questions[turn % len(questions)]
            ways = [self._time_june, self._time_bare, self._time_serial]
            for way in ways[turn % 3 :] + ways[: turn % 3]:
                await self._llm.warm_up()
                await way(question, timings)
        return self._figures(timings)

    async def run_at_once(self, questions: tuple[Question, ...], people: int, rounds: int) -> dict[str, Any]:
        """Return the figures of `rounds` in which `people` ask different questions at the same moment."""
        all_s: list[float] = []
        rounds_s: list[list[float]] = []
        for number in range(rounds):
            asked = [questions[(number + person) % len(questions)] for person in range(people)]
            begin = time.perf_counter()

            async def answered_s(question: Question, begin: float = begin) -> float:
                await self._pipeline.answer(TurnRequest(Recording(question.audio)))
                return time.perf_counter() - begin

            rounds_s.append(sorted(await asyncio.gather(*map(answered_s, asked))))
            all_s += rounds_s[-1]
        return {
            "people": people,
            "turns_per_minute": round(60 * len(all_s) / sum(seconds[-1] for seconds in rounds_s), 2),
            **percentiles(all_s),
            "first_s": _median([seconds[0] for seconds in rounds_s]),
            "last_s": _median([seconds[-1] for seconds in rounds_s]),
        }

    async def compare_traced(self, questions: tuple[Question, ...], turns: int) -> float:
        """Return the time of a turn with its trace sent, divided by one without; the median of pairs."""
        seconds: dict[bool, list[float]] = {False: [], True: []}
        async with _receiver() as endpoint:
            open_traces(TelemetrySettings(otlp_endpoint=endpoint))
            for turn in range(turns):
                for is_traced in (False, True) if turn % 2 else (True, False):
                    await self._llm.warm_up()
                    request = TurnRequest(Recording(questions[turn % len(questions)].audio))
                    context = new_trace_context() if is_traced else ""
                    with following(context, turn=turn, chat="bench"):
                        result = await self._pipeline.answer(request)
                    seconds[is_traced].append(result.timings_s["total"])
            await try_for(SEND_REST_S, close_traces)
        return _median_ratio(seconds[True], seconds[False])

    async def _time_june(self, question: Question, timings: _Timings) -> None:
        result = await self._pipeline.answer(TurnRequest(Recording(question.audio)))
        timings.june.append(result)
        timings.june_s.append(result.timings_s["total"])

    async def _time_bare(self, question: Question, timings: _Timings) -> None:
        stop = StopFlag()
        begin = time.perf_counter()
        pcm = audio.decode(question.audio, self._settings.audio)
        transcript = self._stt.transcribe_now(stop, pcm)
        heard_s = time.perf_counter() - begin
        written = list(_sentences(self._llm.write_now(self._request(transcript.text))))
        written_s = written[-1][1]
        encoder = audio.OpusEncoder(self._settings.audio.opus_bitrate)
        spoken_s = encoded_s = 0.0 if self._pipeline.overlap else written_s
        for index, (sentence, at_s) in enumerate(written):
            begin = time.perf_counter()
            speech = list(self._tts.synthesize_now(stop, sentence))
            tts_s = time.perf_counter() - begin
            begin = time.perf_counter()
            append_sentence(encoder, speech, self._pause_s if index else 0)
            if index == len(written) - 1:
                encoder.finish()
            encode_s = time.perf_counter() - begin
            if self._pipeline.overlap:
                spoken_s = max(spoken_s, at_s) + tts_s
                encoded_s = max(encoded_s, spoken_s) + encode_s
            else:
                encoded_s += tts_s + encode_s
        timings.bare_s.append(heard_s + encoded_s)

    async def _time_serial(self, question: Question, timings: _Timings) -> None:
        begin = time.perf_counter()
        pcm = audio.decode(question.audio, self._settings.audio)
        transcript = await self._stt.transcribe(pcm)
        sentences = SentenceStream()
        written: list[str] = []
        async with aclosing(self._llm.stream(self._request(transcript.text))) as deltas:
            async for delta in deltas:
                written += sentences.feed(delta.text)
        spoken: list[list[Speech]] = []
        for sentence in written + sentences.finish():
            async with aclosing(self._tts.synthesize(sentence)) as pieces:
                spoken.append([speech async for speech in pieces])
        encoder = audio.OpusEncoder(self._settings.audio.opus_bitrate)
        for index, speech in enumerate(spoken):
            append_sentence(encoder, speech, self._pause_s if index else 0)
        encoder.finish()
        timings.serial_s.append(time.perf_counter() - begin)

    def _request(self, question: str) -> ChatRequest:
        return self._pipeline.writer.request((ChatMessage("user", question),))

    def _figures(self, timings: _Timings) -> dict[str, Any]:
        turns = timings.june
        stages = {
            name: percentiles([turn.timings_s[name] for turn in turns])
            for name in turns[0].timings_s
            if name != "total"
        }
        return {
            "turns": len(turns),
            "overlap": self._pipeline.overlap,
            "stages": stages,
            "total": percentiles(timings.june_s),
            "overhead_ratio": _median_ratio(timings.june_s, timings.bare_s),
            "serial_ratio": _median_ratio(timings.serial_s, timings.june_s),
            "real_time_factors": {
                "stt": _median([t.timings_s["stt"] / t.transcript.duration_s for t in turns if t.transcript]),
                "tts": _median([t.timings_s["tts"] / t.voices[0].duration_s for t in turns if t.voices]),
            },
            "tokens_per_second": _median([_tokens_per_second(turn) for turn in turns]),
        }


@asynccontextmanager
async def _receiver() -> AsyncIterator[str]:
    """Yield the address of a receiver for traces, in its own process, that discards them."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RECEIVER, stdout=asyncio.subprocess.PIPE
    )
    try:
        port = await process.stdout.readline() if process.stdout else b""
        yield f"http://127.0.0.1:{int(port)}"
    finally:
        process.kill()
        await process.wait()


def bare_engines(
    stt: SpeechToText, llm: ChatModel, tts: TextToSpeech
) -> tuple[FasterWhisper, LlamaCpp, Piper]:
    """Return the same models as what they are.

    Raises:
        JuneError: one of them is of an engine whose bare calls the bench does not know.
    """
    if isinstance(stt, FasterWhisper) and isinstance(llm, LlamaCpp) and isinstance(tts, Piper):
        return stt, llm, tts
    raise JuneError("bench voice knows the bare calls of faster_whisper, llama_cpp and piper only.")


def compare_windows(
    stt: FasterWhisper, settings: Settings, questions: tuple[Question, ...], rounds: int = 3
) -> dict[str, Any]:
    """Compare the encoder's 30 s window with the automatic one: time and wrong words."""
    stop = StopFlag()
    full_s: list[float] = []
    auto_s: list[float] = []
    wrong = {"full": 0, "auto": 0}
    for question in questions:
        pcm = audio.decode(question.audio, settings.audio)
        for turn in range(rounds):
            ways: tuple[tuple[str, Window, list[float]], ...] = (
                ("full", FULL_WINDOW_S, full_s),
                ("auto", "auto", auto_s),
            )
            for name, window, seconds in ways:
                begin = time.perf_counter()
                transcript = stt.transcribe_now(stop, pcm, window=window)
                seconds.append(time.perf_counter() - begin)
                if turn == 0:
                    wrong[name] += wrong_words(question.text, transcript.text)
    words = sum(len(split_words(question.text)) for question in questions)
    return {
        "stt_window_ratio": _median_ratio(full_s, auto_s),
        "stt_wrong_words": {**wrong, "spoken": words},
    }


def _sentences(pieces: Iterator[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Each sentence and the second at which its last word was written."""
    sentences = SentenceStream()
    at_s = 0.0
    for text, at_s in pieces:
        for sentence in sentences.feed(text):
            yield sentence, at_s
    for sentence in sentences.finish():
        yield sentence, at_s


def _tokens_per_second(turn: TurnResult) -> float:
    tokens = turn.usage.completion_tokens if turn.usage else 0
    return (tokens - 1) / (turn.timings_s["llm"] - turn.timings_s["llm_first_token"])


def _median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return _median([a / b for a, b in zip(numerators, denominators, strict=True)])


def _median(figures: list[float]) -> float:
    return round(statistics.median(figures), 4)
