"""Speech to text: the Protocol, and the one place that picks a backend."""

from typing import Protocol, cast

from june.messages import ModelDescription, Pcm, Transcript
from june.models import Source
from june.models.backends import Backend, find_backend, load_class
from june.sections import SttSettings


class SpeechToText(Protocol):
    """A speech to text model."""

    async def load(self) -> None:
        """Read the weights; once.

        Raises:
            ModelLoadError: the model cannot be loaded on this machine.
        """

    async def warm_up(self) -> None:
        """Compute once, so that the first turn is as fast as the second."""

    async def transcribe(self, pcm: Pcm, *, language: str = "") -> Transcript:
        """Return what is said in `pcm` (float32, (n_samples,), mono, 16 000 Hz, [-1, 1]).

        Args:
            pcm: the recording.
            language: ISO 639-1 code of the language spoken; empty: detected in the recording.

        Raises:
            TranscriptionError: the engine failed.
        """

    def describe(self) -> ModelDescription:
        """Return what the model is, for people and machines to read."""

    async def close(self) -> None:
        """Free the model and end its thread."""


BACKENDS = {"faster_whisper": Backend("june.stt.faster_whisper:FasterWhisper", library="faster_whisper")}
"""The engines, by their names in `stt.backend`."""


def create(settings: SttSettings, source: Source) -> SpeechToText:
    """Return a model of the engine that the settings name, not yet loaded.

    Args:
        settings: the section `[stt]`.
        source: what it opens.

    Raises:
        SettingsError: there is no such engine.
    """
    backend = find_backend(BACKENDS, settings.backend, "stt.backend")
    return cast("SpeechToText", load_class(backend.path)(settings, source, *backend.own(settings)))
