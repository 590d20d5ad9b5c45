"""Models that do what the real ones cannot be made to do: fail, hang, and wait for one another."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from june.errors import StageError
from june.messages import ChatRequest, Delta, Device, ModelDescription, Pcm, Speech, Transcript, Usage


@dataclass
class FakeModel:
    """What the three have in common. `hangs` and `error` are what a call comes to."""

    device: Device = "cpu"
    hangs: bool = False
    error: StageError | None = None
    called: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    calls_running: int = 0

    async def load(self) -> None:
        """Nothing to load."""

    async def warm_up(self) -> None:
        """Nothing to warm."""

    async def close(self) -> None:
        """Nothing to free."""

    def describe(self) -> ModelDescription:
        """A fake on `device`."""
        return ModelDescription("fake", "fake", self.device, {})

    @contextmanager
    def running(self) -> Iterator[None]:
        """One call, from its begin to its end, whatever that is."""
        self.calls_running += 1
        self.called.set()
        try:
            yield
        finally:
            self.calls_running -= 1

    async def come_to_it(self) -> None:
        """Hang or fail, if that is the plan."""
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


@dataclass
class FakeStt(FakeModel):
    """`SpeechToText` that always hears `text`."""

    text: str = "What is the sky?"
    languages: list[str] = field(default_factory=list)

    async def transcribe(self, pcm: Pcm, *, language: str = "") -> Transcript:
        """See the Protocol."""
        with self.running():
            self.languages.append(language)
            await self.come_to_it()
            return Transcript(self.text, language or "en", len(pcm) / 16_000)


@dataclass
class FakeLlm(FakeModel):
    """`ChatModel` that writes `pieces`, the last of them when `before_last` is set, then comes to its end."""

    pieces: tuple[str, ...] = ("The sky is blue. The", " sea is", " too.")
    before_last: asyncio.Event | None = None
    requests: list[ChatRequest] = field(default_factory=list)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """See the Protocol."""
        with self.running():
            self.requests.append(request)
            for piece in self.pieces[:-1]:
                yield Delta(piece)
            if self.before_last is not None:
                await self.before_last.wait()
            await self.come_to_it()
            yield Delta(self.pieces[-1])
            self.finished.set()
            yield Delta(usage=Usage(7, len(self.pieces)), finish_reason="stop")


@dataclass
class FakeTts(FakeModel):
    """`TextToSpeech` that hums for `seconds` at each sentence's rate, the last rate over and over."""

    seconds: float = 0.5
    rates_hz: tuple[int, ...] = (22_050,)
    sentences: list[str] = field(default_factory=list)

    async def synthesize(self, text: str, *, voice: str = "") -> AsyncGenerator[Speech, None]:
        """See the Protocol."""
        del voice
        with self.running():
            rate_hz = self.rates_hz[min(len(self.sentences), len(self.rates_hz) - 1)]
            self.sentences.append(text)
            await self.come_to_it()
            time_s = np.arange(int(self.seconds * rate_hz)) / rate_hz
            yield Speech((8_000 * np.sin(2 * np.pi * 200 * time_s)).astype(np.int16), rate_hz)
            self.finished.set()
