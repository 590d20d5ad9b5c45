"""Text to speech: the Protocol, and the one place that picks a backend."""

from collections.abc import AsyncGenerator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from june.messages import ModelDescription, Speech
from june.models import Model
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
        """The text, spoken: int16 (n_samples,), mono, one piece a sentence; closing it cancels.

        Args:
            text: plain text, as `conversation.speakable` leaves it.
            voice: a voice's name in the catalogue; empty: the one that is set.

        Raises:
            SynthesisError: there is no such voice, or the engine failed.
        """

    def describe(self) -> ModelDescription:
        """The model, for people and machines to read."""

    async def close(self) -> None:
        """Free the model and end its thread."""


_BACKENDS = {"piper": "june.tts.piper:Piper"}


def create(settings: TtsSettings, model: Model, path: Path, others: Mapping[str, Path]) -> TextToSpeech:
    """The backend that the settings name, not yet loaded.

    Args:
        settings: the section `[tts]`.
        model: the entry in the catalogue of the voice that speaks where none is asked for.
        path: its ONNX file.
        others: the ONNX files of more voices, by their names in the catalogue.
    """
    module, _, backend = _BACKENDS[settings.backend].partition(":")
    return cast("TextToSpeech", getattr(import_module(module), backend)(settings, model, path, others))
