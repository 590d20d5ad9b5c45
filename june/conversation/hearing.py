"""A received message's recording is fetched once and heard once.

What was heard is committed with the message, so that another attempt after a crash need not hear it again.
The recording itself stays in memory, until it is known that nobody gets it: an app's link to it expires.
"""

import asyncio
from collections.abc import Callable

from june.conversation.apps import ChatApps
from june.conversation.failing import TurnRecord, naming_stage
from june.conversation.listening import Heard, Listener
from june.errors import DeliveryError, JuneError, StageError
from june.messages import Transcript, Voice
from june.store import Received, Store
from june.telemetry import stage
from june.workers import settled

MAX_KEPT_BYTES = 64_000_000
"""Recordings in memory, of all messages together. Beyond it the oldest are given up, and are fetched again if
they are needed after all."""


class Hearing:
    """Hears what people send.

    Args:
        store: keeps what was heard.
        apps: hand out the recordings.
        listener: hears a recording.
        record: is told which stages were passed.
        max_early: how many messages are heard before their turn at a time.
    """

    def __init__(
        self, store: Store, apps: ChatApps, listener: Listener, record: TurnRecord, *, max_early: int
    ) -> None:
        self._store = store
        self._apps = apps
        self._listener = listener
        self._record = record
        self._max_early = max_early
        self._early: dict[int, asyncio.Task[Heard | None]] = {}
        self._kept: dict[int, bytes] = {}

    async def hear(self, received: Received) -> Heard:
        """Return what a message's recording says.

        Raises:
            StageError: the recording cannot be had, or june does not accept it.
        """
        if received.transcript is not None:
            return Heard(received.transcript)
        early = self._early.get(received.id)
        heard = await asyncio.shield(early) if early is not None else None
        return Heard(heard.transcript) if heard is not None else await self._hear(received)

    def hear_early(self, received: Received, on_heard: Callable[[Transcript], None]) -> None:
        """Begin to hear a message before its turn, unless too many are being heard so; then tell of it."""
        if sum(not task.done() for task in self._early.values()) < self._max_early:
            task = asyncio.create_task(self._hear_early(received, on_heard))
            self._early[received.id] = task
            task.add_done_callback(_retrieve_error)

    async def voice(self, received: Received) -> Voice:
        """Return a message's recording as a voice message that can be kept and sent.

        Raises:
            StageError: the recording cannot be had, or june does not accept it.
        """
        return await self._listener.record(await self._fetch(received, {}))

    def forget(self, message_id: int) -> None:
        """Keep nothing of a message any more; if it is still being heard before its turn, stop that."""
        self._kept.pop(message_id, None)
        if (early := self._early.pop(message_id, None)) is not None:
            early.cancel()

    async def close(self) -> None:
        """Stop hearing messages before their turn."""
        for task in list(self._early.values()):
            task.cancel()
            await settled(task)

    async def _hear_early(self, received: Received, on_heard: Callable[[Transcript], None]) -> Heard | None:
        try:
            heard = await self._hear(received)
        except JuneError:  # its turn tries again, and says so
            return None
        on_heard(heard.transcript)
        return heard

    async def _hear(self, received: Received) -> Heard:
        timings_s: dict[str, float] = {}
        recording = await self._fetch(received, timings_s)
        preferences = await self._store.conversations.preferences(received.message.chat)
        heard = await self._listener.hear(recording, preferences.language)
        self._record.passed(("download", *heard.timings_s))
        await self._store.inbox.note_transcript(received.id, heard.transcript)
        heard.timings_s.update(timings_s)
        return heard

    async def _fetch(self, received: Received, timings_s: dict[str, float]) -> bytes:
        if (kept := self._kept.get(received.id)) is not None:
            return kept
        platform = received.message.platform
        with naming_stage("download"), stage("download", timings_s, platform=platform) as facts:
            recording = await self._download(received)
            facts["audio_bytes"] = len(recording)
        self._keep(received.id, recording)
        return recording

    async def _download(self, received: Received) -> bytes:
        try:
            return await self._apps.download(received.message)
        except DeliveryError as error:
            if error.reason == "too_large":
                raise StageError("download", "audio_too_large_for_app", str(error)) from None
            raise StageError("download", "download_failed", str(error)) from None

    def _keep(self, message_id: int, recording: bytes) -> None:
        self._kept[message_id] = recording
        while sum(map(len, self._kept.values())) > MAX_KEPT_BYTES:
            del self._kept[next(iter(self._kept))]


def _retrieve_error(task: asyncio.Task[Heard | None]) -> None:
    """Keep asyncio from logging an error that nobody may have waited for."""
    if not task.cancelled():
        task.exception()  # its turn comes to the same, and says so
