"""Fakes that do what the real parts cannot be made to do: fail, hang, and wait for one another."""

import asyncio
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from june.chat import AdapterHealth, CommandInfo, Intake
from june.errors import DeliveryError, GenerationError
from june.messages import (
    ChatRequest,
    Delivered,
    Delta,
    Device,
    Inbound,
    ModelDescription,
    Pcm,
    Platform,
    PlatformState,
    Speech,
    Transcript,
    Usage,
    Voice,
)


@dataclass
class FakeModel:
    """The base of the fake models. A call hangs if `hangs` is set and fails with `error` if given."""

    device: Device = "cpu"
    hangs: bool = False
    error: Exception | None = None
    called: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    calls_running: int = 0

    async def load(self) -> None:
        """Do nothing: there is nothing to load."""

    async def warm_up(self) -> None:
        """Do nothing: there is nothing to warm up."""

    async def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def describe(self) -> ModelDescription:
        """Return a description of a fake on `device`."""
        return ModelDescription("fake", "fake", self.device, {})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note one call, from its beginning to its end, however it ends."""
        self.calls_running += 1
        self.called.set()
        try:
            yield
        finally:
            self.calls_running -= 1

    async def come_to_it(self) -> None:
        """Hang or fail, if the test set so."""
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


@dataclass
class FakeStt(FakeModel):
    """`SpeechToText` that always hears `text`, as soon as `before` is set."""

    text: str = "What is the sky?"
    before: asyncio.Event | None = None
    languages: list[str] = field(default_factory=list)

    async def transcribe(self, pcm: Pcm, *, language: str = "") -> Transcript:
        """See the Protocol."""
        with self.running():
            self.languages.append(language)
            if self.before is not None:
                await self.before.wait()
            await self.come_to_it()
            return Transcript(self.text, language or "en", len(pcm) / 16_000)


@dataclass
class FakeLlm(FakeModel):
    """`ChatModel` that writes `pieces`, the last of them when `before_last` is set, then comes to its end.

    Its context holds `most_messages`.
    """

    pieces: tuple[str, ...] = ("The sky is blue. The", " sea is", " too.")
    before_last: asyncio.Event | None = None
    most_messages: int = 1_000
    requests: list[ChatRequest] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    async def forget(self, conversation: str) -> None:
        """Note the conversation."""
        self.forgotten.append(conversation)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """See the Protocol."""
        with self.running():
            self.requests.append(request)
            if len(request.messages) > self.most_messages:
                raise GenerationError("context_overflow", "The prompt is longer than the context.")
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
    voices: list[str] = field(default_factory=list)

    async def synthesize(self, text: str, *, voice: str = "") -> AsyncGenerator[Speech, None]:
        """See the Protocol."""
        self.voices.append(voice)
        with self.running():
            rate_hz = self.rates_hz[min(len(self.sentences), len(self.rates_hz) - 1)]
            self.sentences.append(text)
            await self.come_to_it()
            time_s = np.arange(int(self.seconds * rate_hz)) / rate_hz
            yield Speech((8_000 * np.sin(2 * np.pi * 200 * time_s)).astype(np.int16), rate_hz)
            self.finished.set()


@dataclass
class FakeAdapter:
    """`Adapter` of an app that takes what it is sent, unless a failure comes first.

    A request to a chat with a gate waits until that is open. Then it takes the first of `failures`, where
    None is a success, and then what `refuses` holds for its name.
    """

    platform: Platform = "telegram"
    max_characters: int = 40
    knows_drafts: bool = False
    sign_s: float = 5.0
    state: PlatformState = "up"
    failures: deque[Exception | None] = field(default_factory=deque)
    refuses: dict[str, Exception] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Names and chats, failed ones included."""
    drafts: list[tuple[int, str]] = field(default_factory=list)
    replies: dict[str, str] = field(default_factory=dict)
    """What each message replies to, by the message's id."""
    running: Counter[str] = field(default_factory=Counter)
    """Requests that have not ended, by chat."""
    most_running: Counter[str] = field(default_factory=Counter)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1001))
    chats: dict[str, dict[str, Delivered]] = field(default_factory=lambda: defaultdict(dict))
    """What each chat shows, by the message's id, in order."""

    async def run(self, intake: Intake, commands: Sequence[CommandInfo]) -> None:
        """Wait for ever: no message arrives."""

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def health(self) -> AdapterHealth:
        """Return the status that `state` says."""
        return AdapterHealth(self.state)

    def shown(self, chat: str) -> list[str]:
        """Return what a person reads and hears there."""
        return [message.text for message in self.chats[chat].values()]

    async def requested(self, count: int) -> None:
        """Wait until this many requests were made."""
        await self.until(lambda: len(self.requests) >= count)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until a condition holds after a request began or ended.

        Raises:
            TimeoutError: it was not for 20 s.
        """
        async with asyncio.timeout(20):
            while not is_so():
                self.changed.clear()
                await self.changed.wait()

    @asynccontextmanager
    async def request(self, name: str, chat: str) -> AsyncIterator[None]:
        """Make one request, as the class says."""
        self.requests.append((name, chat))
        self.changed.set()
        self.running[chat] += 1
        self.most_running |= self.running
        try:
            if chat in self.gates:
                await self.gates[chat].wait()
            failure = self.failures.popleft() if self.failures else None
            if (failure := failure or self.refuses.get(name)) is not None:
                raise failure
            yield
        finally:
            self.running[chat] -= 1
            self.changed.set()

    def _take(self, chat: str, kind: Literal["text", "voice"], text: str, reply_to: str) -> Delivered:
        message = Delivered(str(next(self.ids)), kind, text)
        self.chats[chat][message.message_id] = message
        self.replies[message.message_id] = reply_to
        return message

    async def download(self, message: Inbound, *, max_bytes: int) -> bytes:
        """Fail: there is nothing to download."""
        raise NotImplementedError

    def parts(self, text: str) -> list[str]:
        """Return the text cut after every `max_characters`; its markup is the characters themselves."""
        cuts = range(0, len(text.strip()), self.max_characters)
        return [text.strip()[cut : cut + self.max_characters] for cut in cuts]

    async def send_text(self, chat: str, part: str, *, reply_to: str = "") -> Delivered:
        """See the Protocol."""
        async with self.request("send_text", chat):
            return self._take(chat, "text", part, reply_to)

    async def send_plain(self, chat: str, text: str, *, reply_to: str = "") -> Delivered:
        """See the Protocol."""
        async with self.request("send_plain", chat):
            return self._take(chat, "text", text, reply_to)

    async def send_voice(self, chat: str, voice: Voice, *, reply_to: str = "") -> Delivered:
        """See the Protocol."""
        async with self.request("send_voice", chat):
            return self._take(chat, "voice", voice.ogg_opus.decode(), reply_to)

    async def edit_text(self, chat: str, message_id: str, part: str) -> Delivered:
        """See the Protocol."""
        async with self.request("edit_text", chat):
            if message_id not in self.chats[chat]:
                raise DeliveryError("gone", "there is no such message")
            self.chats[chat][message_id] = Delivered(message_id, "text", part, edited=True)
            return self.chats[chat][message_id]

    async def delete(self, chat: str, message_id: str) -> None:
        """See the Protocol."""
        async with self.request("delete", chat):
            self.chats[chat].pop(message_id, None)

    async def private_chat(self, user: str) -> str:
        """See the Protocol."""
        async with self.request("private_chat", user):
            return user

    async def show_draft(self, chat: str, draft_id: int, part: str) -> bool:
        """See the Protocol."""
        if self.knows_drafts:
            async with self.request("show_draft", chat):
                self.drafts.append((draft_id, part))
        return self.knows_drafts

    async def show_working(self, chat: str, doing: Literal["recording", "typing"]) -> float:
        """See the Protocol."""
        async with self.request(doing, chat):
            return self.sign_s
