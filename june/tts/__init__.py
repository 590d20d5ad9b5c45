"""Text to speech: the Protocol, and the one place that picks a backend."""

from collections.abc import AsyncGenerator, Mapping
from importlib import import_module
from typing import Protocol, cast

from june.messages import ModelDescription, Speech
from june.models import LocalModel
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


BACKENDS = {"piper": "june.tts.piper:Piper"}
"""Where each backend stands, by its name in `tts.backend`."""


def create(settings: TtsSettings, source: LocalModel, voices: Mapping[str, LocalModel]) -> TextToSpeech:
    """Return the backend that the settings name, not yet loaded.

    Args:
        settings: the section `[tts]`.
        source: the voice that speaks where none is asked for.
        voices: more voices, by what `tts.voices` calls them.
    """
    module, _, backend = BACKENDS[settings.backend].partition(":")
    return cast("TextToSpeech", getattr(import_module(module), backend)(settings, source, voices))
