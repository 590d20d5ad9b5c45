"""A recording becomes words; and a voice message that is kept."""

from dataclasses import dataclass, field

import numpy as np

from june import audio
from june.conversation.gathering import Gathering
from june.conversation.limits import codec_limited, limited, named
from june.messages import Pcm, Transcript, Voice
from june.sections import AudioSettings, SttSettings
from june.stt import SpeechToText
from june.workers import ModelThread, StopFlag


@dataclass(frozen=True, slots=True)
class Heard:
    """What a recording says."""

    transcript: Transcript
    timings_s: dict[str, float] = field(default_factory=dict)
    """Seconds of the stages that it took to hear it, such as decode and stt."""
    caption: str = ""
    """What was written beside the recording, which is a part of the question."""


class Listener:
    """Hears recordings.

    Args:
        stt: the model, loaded; it is not owned.
        settings: its section.
        audio_settings: what recordings are accepted, and how they are kept.
        codec: the thread that decodes and encodes.
        gathering: lets answers to recordings that came together begin together.
    """

    def __init__(
        self,
        stt: SpeechToText,
        settings: SttSettings,
        audio_settings: AudioSettings,
        codec: ModelThread,
        gathering: Gathering,
    ) -> None:
        self._stt = stt
        self._settings = settings
        self._audio = audio_settings
        self._codec = codec
        self._gathering = gathering

    async def hear(self, recording: bytes, language: str = "") -> Heard:
        """Return what a recording says.

        Args:
            recording: OGG, MP3, M4A, WAV, FLAC or WebM.
            language: ISO 639-1 code of what is spoken; empty: heard from the recording.

        Raises:
            AudioError: june does not accept the bytes as a recording.
            TranscriptionError: speech to text failed.
        """
        timings_s: dict[str, float] = {}
        with self._gathering.hearing():
            pcm = await self._decode(recording, timings_s)
            return Heard(await self._transcribe(pcm, language, timings_s), timings_s)

    async def wait_for_others(self) -> None:
        """Wait until the recordings are heard that are being heard now, for a moment at the most."""
        await self._gathering.wait()

    async def record(self, recording: bytes) -> Voice:
        """Return a person's recording as a voice message: decoded, and encoded as june's own are.

        Raises:
            AudioError: june does not accept the bytes as a recording.
        """

        def rewrite(_: StopFlag) -> Voice:
            encoder = audio.OpusEncoder(self._audio.opus_bitrate)
            pcm = audio.decode(recording, self._audio)
            encoder.write((pcm * np.iinfo(np.int16).max).astype(np.int16), audio.DECODED_RATE_HZ)
            return encoder.finish()

        async with codec_limited("encode", {}):
            return await self._codec.run(rewrite)

    async def _decode(self, data: bytes, timings_s: dict[str, float]) -> Pcm:
        async with codec_limited("decode", timings_s, audio_bytes=len(data)):
            return await self._codec.run(lambda _: audio.decode(data, self._audio))

    async def _transcribe(self, pcm: Pcm, language: str, timings_s: dict[str, float]) -> Transcript:
        async with limited("stt", self._settings.timeout_s, timings_s, **named(self._stt)) as facts:
            transcript = await self._stt.transcribe(pcm, language=language)
            facts |= {"audio_s": transcript.duration_s, "language": transcript.language}
            return transcript
