"""Text to speech: the Protocol, and the one place that picks a backend."""

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol, cast

from june.messages import ModelDescription, Speech
from june.models import Source
from june.models.backends import Backend, find_backend, load_class
from june.sections import TtsSettings


class TextToSpeech(Protocol):
    """A model that speaks."""

    async def load(self) -> None:
        """Read the weights; once.

        Raises:
            ModelLoadError: the model cannot be loaded on this machine.
        """

    async def warm_up(self) -> None:
        """Compute once, so that the first turn is as fast as the second."""

    def synthesize(self, text: str, *, voice: str = "") -> AsyncGenerator[Speech, None]:
        """Yield the text, spoken: int16 (n_samples,), mono, one piece a sentence; closing it cancels.

        Args:
            text: plain text, as `conversation.speakable` leaves it.
            voice: a voice as `tts.voices` names it; empty: the one that speaks where none is asked for.

        Raises:
            SynthesisError: there is no such voice, or the engine failed.
        """

    def describe(self) -> ModelDescription:
        """Return what the model is, for people and machines to read."""

    async def close(self) -> None:
        """Free the model and end its thread."""


BACKENDS = {"piper": Backend("june.tts.piper:Piper", library="piper")}
"""The engines, by their names in `tts.backend`."""


def create(settings: TtsSettings, source: Source, voices: Mapping[str, Source]) -> TextToSpeech:
    """Return a voice of the engine that the settings name, not yet loaded.

    Args:
        settings: the section `[tts]`.
        source: the voice that speaks where none is asked for.
        voices: more voices, by what `tts.voices` calls them.

    Raises:
        SettingsError: there is no such engine.
    """
    backend = find_backend(BACKENDS, settings.backend, "tts.backend")
    return cast("TextToSpeech", load_class(backend.path)(settings, source, voices, *backend.own(settings)))
