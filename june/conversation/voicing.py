"""Text becomes voice messages: a sentence is encoded while the next one is being spoken.

A long text becomes several voice messages, cut between sentences.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np

from june import audio
from june.conversation.draft import Draft
from june.conversation.limits import codec_limited, limited, named
from june.errors import SynthesisError
from june.messages import Speech, Voice
from june.sections import TtsSettings
from june.tts import TextToSpeech
from june.workers import ModelThread

SENTENCES_AHEAD = 4
"""Spoken sentences that may wait for the encoder, which is some five times faster than the voice."""


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    speech: list[Speech]


_Spoken = asyncio.Queue[_Sentence | None]
"""Sentences on their way to the encoder; None: that was the last one."""


class Voicer:
    """Speaks texts.

    Args:
        tts: the model, loaded; it is not owned.
        settings: its section.
        codec: the thread that encodes.
        max_voice_s: the longest voice message.
        opus_bitrate: of a voice message, in bit/s.
    """

    def __init__(
        self,
        tts: TextToSpeech,
        settings: TtsSettings,
        codec: ModelThread,
        *,
        max_voice_s: float,
        opus_bitrate: int,
    ) -> None:
        self._tts = tts
        self._settings = settings
        self._codec = codec
        self._max_voice_s = max_voice_s
        self._opus_bitrate = opus_bitrate

    async def speak_text(self, text: str, language: str = "") -> tuple[Voice, ...]:
        """Return a whole text as voice messages; see `speak`."""
        draft = Draft()
        draft.write_whole(text)
        return await self.speak(draft.sentences(), language, {})

    async def speak(
        self, sentences: AsyncIterator[str], language: str, timings_s: dict[str, float]
    ) -> tuple[Voice, ...]:
        """Return sentences as voice messages, each at most `max_voice_s` long.

        Args:
            sentences: as they are finished.
            language: ISO 639-1 code of what they are written in, which chooses the voice; empty: unknown.
            timings_s: seconds by stage, which those of tts and encode are added to.

        Raises:
            StageError: there is nothing that can be said, or speaking or encoding failed.
        """
        voice = self._settings.voices.get(language, "")
        spoken = _Spoken(SENTENCES_AHEAD)
        try:
            async with asyncio.TaskGroup() as group:
                encoding = group.create_task(self._encode(spoken, timings_s))
                await self._synthesize(sentences, voice, spoken, timings_s)
        except ExceptionGroup as failures:  # the first failure cancelled the rest
            raise failures.exceptions[0] from None
        return encoding.result()

    async def _synthesize(
        self, sentences: AsyncIterator[str], voice: str, spoken: _Spoken, timings_s: dict[str, float]
    ) -> None:
        begin = time.perf_counter()
        known = {**named(self._tts), "voice": voice}
        is_silent = True
        async for sentence in sentences:
            is_silent = False
            async with (
                limited(
                    "tts", self._settings.timeout_s, timings_s, characters=len(sentence), **known
                ) as facts,
                aclosing(self._tts.synthesize(sentence, voice=voice)) as pieces,
            ):
                speech = [piece async for piece in pieces]
                if "tts_first_audio" not in timings_s:
                    timings_s["tts_first_audio"] = time.perf_counter() - begin
                    facts["time_to_first_audio_s"] = timings_s["tts_first_audio"]
            await spoken.put(_Sentence(sentence, speech))
        if is_silent:
            raise SynthesisError("nothing_to_say", "Nothing in the answer can be spoken.")
        await spoken.put(None)

    async def _encode(self, spoken: _Spoken, timings_s: dict[str, float]) -> tuple[Voice, ...]:
        """Encode each sentence as it comes; one that would make a message too long begins the next."""
        finished: list[Voice] = []
        message = self._new_message()
        while (sentence := await spoken.get()) is not None:
            if not message.has_room_for(sentence):
                finished.append(await self._finish(message, timings_s))
                message = self._new_message()
            async with codec_limited("encode", timings_s):
                await self._codec.run(lambda _, one, more: one.append(more), message, sentence)
        return (*finished, await self._finish(message, timings_s))

    def _new_message(self) -> "_VoiceMessage":
        encoder = audio.OpusEncoder(self._opus_bitrate)
        return _VoiceMessage(encoder, pause_s=self._settings.sentence_pause_s, max_s=self._max_voice_s)

    async def _finish(self, message: "_VoiceMessage", timings_s: dict[str, float]) -> Voice:
        async with codec_limited("encode", timings_s, codec="opus") as facts:
            voice = await self._codec.run(lambda _: message.finish())
            facts |= {"audio_s": voice.duration_s, "audio_bytes": len(voice.ogg_opus)}
            return voice


class _VoiceMessage:
    """One voice message, as it is encoded sentence by sentence."""

    def __init__(self, encoder: audio.OpusEncoder, *, pause_s: float, max_s: float) -> None:
        self._encoder = encoder
        self._pause_s = pause_s
        self._max_s = max_s
        self._sentences: list[str] = []

    def has_room_for(self, sentence: _Sentence) -> bool:
        more_s = sum(piece.samples.size / piece.sample_rate_hz for piece in sentence.speech)
        return not self._sentences or self._encoder.duration_s + self._pause_s + more_s <= self._max_s

    def append(self, sentence: _Sentence) -> None:
        append_sentence(self._encoder, sentence.speech, self._pause_s if self._sentences else 0.0)
        self._sentences.append(sentence.text)

    def finish(self) -> Voice:
        return replace(self._encoder.finish(), text=" ".join(self._sentences))


def append_sentence(encoder: audio.OpusEncoder, speech: list[Speech], pause_s: float) -> None:
    """Encode the pieces of one spoken sentence at an even loudness, after a pause."""
    if not speech:
        return
    rate_hz = speech[0].sample_rate_hz
    pause = np.zeros(round(pause_s * rate_hz), np.int16)
    samples = audio.level_speech(np.concatenate([piece.samples for piece in speech]), rate_hz)
    encoder.write(np.concatenate([pause, samples]), rate_hz)
