"""What an engine opens: a model whose files are here, or a server that has one."""

from dataclasses import dataclass
from pathlib import Path

from june.models.catalogue import Model


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model whose files are on this machine.

    Attributes:
        entry: what june knows of it, from the catalogue or from its files.
        path: what the engine loads: the folder of a CTranslate2 model, the GGUF file (the first of a split
            one), or the ONNX file of a voice.
    """

    entry: Model
    path: Path

    @property
    def name(self) -> str:
        """What people and logs call it."""
        return self.entry.name

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.path if self.entry.format == "ctranslate2" else self.path.parent


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model that a server has.

    Attributes:
        url: the server's address; empty: the engine knows it.
        model: what the server calls the model; empty: the engine knows it.
    """

    url: str
    model: str

    @property
    def name(self) -> str:
        """What people and logs call it."""
        return self.model


Source = LocalModel | Endpoint


def parse_endpoint(reference: str) -> Endpoint:
    """Return the server that the settings name: by URL#MODEL, or by the model's name alone."""
    if "://" not in reference:
        return Endpoint("", reference)
    url, _, model = reference.partition("#")
    return Endpoint(url, model)
