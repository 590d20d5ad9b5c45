"""Speech to text: the Protocol, and the one place that picks a backend."""

from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from june.messages import ModelDescription, Pcm, Transcript
from june.models import Model
from june.sections import SttSettings


class SpeechToText(Protocol):
    """A model that hears."""

    async def load(self) -> None:
        """Read the weights; once.

        Raises:
            ModelLoadError: the model cannot be loaded on this machine.
        """

    async def warm_up(self) -> None:
        """Compute once, so that the first turn is as fast as the second."""

    async def transcribe(self, pcm: Pcm, *, language: str = "") -> Transcript:
        """What is said in `pcm` (float32, (n_samples,), mono, 16 000 Hz, [-1, 1]).

        Args:
            pcm: the recording.
            language: ISO 639-1 code of what is spoken; empty: heard from the recording.

        Raises:
            TranscriptionError: the engine failed.
        """

    def describe(self) -> ModelDescription:
        """The model, for people and machines to read."""

    async def close(self) -> None:
        """Free the model and end its thread."""


_BACKENDS = {"faster_whisper": "june.stt.faster_whisper:FasterWhisper"}


def create(settings: SttSettings, model: Model, path: Path) -> SpeechToText:
    """The backend that the settings name, not yet loaded.

    Args:
        settings: the section `[stt]`.
        model: its entry in the catalogue.
        path: its folder.
    """
    module, _, backend = _BACKENDS[settings.backend].partition(":")
    return cast("SpeechToText", getattr(import_module(module), backend)(settings, model, path))
