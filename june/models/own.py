"""Models of the owner's own: what june has to know of one is read from its files.

Nothing is hashed, since nobody published what is right. Each file may be a stranger's, so that every size and
count in it is bounded, and a fault is one sentence that names the file and what june expects of it.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from june.errors import ModelFileError
from june.languages import language_code
from june.models.catalogue import MAIN_FILE, Model, ModelFile, Role
from june.models.gguf import Value, read_header
from june.models.sources import LocalModel
from june.models.weights import read_weights

SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
"""The name of a part of a GGUF file that was split."""
MAX_PARTS = 1000

MAX_JSON_BYTES = 50_000_000
MAX_LAYERS = 10_000
MAX_HEADS = 1_000_000
F16_BYTES = 2
F32_BYTES = 4
ENGLISH_VOCABULARY = 51_864
"""Tokens of Whisper's English models; the multilingual ones have at least one more."""
WHISPER = "WhisperSpec"
PLAIN_MELS = 80
"""What faster-whisper computes unless preprocessor_config.json says otherwise."""
MAX_LICENCE = 100


def describe(role: Role, path: Path) -> LocalModel:
    """Return the owner's own model.

    Args:
        role: what it is to do.
        path: a file or folder: a Whisper model for CTranslate2, a GGUF file, or a voice for Piper.

    Raises:
        ModelFileError: it is not there, or is no such model; or its files do not say what june has to know.
    """
    return {"stt": _whisper, "llm": _language_model, "tts": _voice}[role](path)


def split_parts(name: str) -> list[str]:
    """Return the names of all parts of a split GGUF file; the name alone if it is not split.

    Raises:
        ModelFileError: the name is that of a later part.
    """
    match = SPLIT.fullmatch(name)
    if match is None:
        return [name]
    parts = int(match["parts"])
    if int(match["part"]) != 1 or not 1 <= parts <= MAX_PARTS:
        first = f"{match['stem']}-00001-of-{match['parts']}.gguf"
        raise ModelFileError(f"{name} is one part of a split model: name the first part, {first}.")
    return [f"{match['stem']}-{part:05}-of-{parts:05}.gguf" for part in range(1, parts + 1)]


def gguf_file(path: Path) -> Path:
    """Return the GGUF file that `path` is, or that lies in the folder `path`; reads nothing.

    Raises:
        ModelFileError: there is no such file, or more than one.
    """
    return _only(path, MAIN_FILE["gguf"])


def _language_model(path: Path) -> LocalModel:
    path = gguf_file(path)
    parts = [path.with_name(name) for name in split_parts(path.name)]
    headers = [read_header(_present(part, f"the split model {path.name}")) for part in parts]
    facts = _Facts(path, headers[0].values)
    model = Model(
        name=path.name,
        role="llm",
        format="gguf",
        licence=facts.text("general.license")[:MAX_LICENCE],
        languages=facts.languages(),
        parameters_b=max(sum(header.parameters for header in headers), 1) / 1e9,
        kv_bytes_per_token=facts.kv_bytes_per_token(),
        context_tokens_max=facts.number("context_length"),
        files=_files(parts),
    )
    return LocalModel(model, path)


class _Facts:
    """What a language model's metadata say, checked."""

    def __init__(self, path: Path, values: dict[str, Value]) -> None:
        self._path = path
        self._values = values
        kind = self.text("general.type") or "model"
        if kind != "model":
            raise ModelFileError(f"{path} is of the type {kind!r}, and june needs a whole model.")
        self._architecture = self.text("general.architecture")
        if not self._architecture:
            raise self._missing("general.architecture")

    def text(self, key: str) -> str:
        """Return a text; "" if there is none."""
        value = self._values.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str, default: int = 0) -> int:
        """Return a positive number of the architecture's.

        Raises:
            ModelFileError: there is none, and no default.
        """
        value = self._values.get(f"{self._architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 40:
            raise self._missing(f"{self._architecture}.{key}")
        return value

    def languages(self) -> tuple[str, ...]:
        """Return the languages that june knows of those that are named."""
        named = self._values.get("general.languages", ())
        return tuple(filter(None, map(_code, named if isinstance(named, tuple) else ())))

    def kv_bytes_per_token(self) -> int:
        """Return what the attention cache of a token takes at f16, in bytes.

        It is KV heads of all layers x (key length + value length) x 2 bytes. A model that looks back only so
        far, or shares its cache, takes less.
        """
        layers = self.number("block_count")
        if layers > MAX_LAYERS:
            raise self._missing(f"{self._architecture}.block_count")
        heads = max(self._per_layer("attention.head_count", layers))
        length = self.number("embedding_length") // max(heads, 1)
        lengths = self.number("attention.key_length", length) + self.number("attention.value_length", length)
        return max(sum(self._kv_heads(layers)) * lengths * F16_BYTES, 1)

    def _kv_heads(self, layers: int) -> Sequence[int]:
        has_own = f"{self._architecture}.attention.head_count_kv" in self._values
        return self._per_layer("attention.head_count_kv" if has_own else "attention.head_count", layers)

    def _per_layer(self, key: str, layers: int) -> Sequence[int]:
        """Return a number for each layer; the file gives one for all, or each, of which some may be 0."""
        value = self._values.get(f"{self._architecture}.{key}")
        numbers = value if isinstance(value, tuple) else (value,) * layers
        checked = [number for number in numbers if type(number) is int and 0 <= number < MAX_HEADS]
        if not checked or len(checked) != len(numbers):
            raise self._missing(f"{self._architecture}.{key}")
        return checked

    def _missing(self, key: str) -> ModelFileError:
        return ModelFileError(f"{self._path} does not say {key}, which june needs of a language model.")


def _whisper(path: Path) -> LocalModel:
    folder = path.parent if path.name == MAIN_FILE["ctranslate2"] else path
    user = "a Whisper model for CTranslate2"
    weights = read_weights(_present(folder / "model.bin", user))
    if weights.kind != WHISPER:
        raise ModelFileError(f"{folder} is a {weights.kind} for CTranslate2, and june hears with Whisper.")
    vocabulary = next(
        (file for file in (folder / "vocabulary.json", folder / "vocabulary.txt") if file.is_file()),
        folder / "vocabulary.json",
    )
    names = [folder / "model.bin", folder / "config.json", folder / "tokenizer.json", vocabulary]
    if weights.mels not in (0, PLAIN_MELS):
        names.append(folder / "preprocessor_config.json")
    files = _files([_present(name, user) for name in names])
    is_english = _tokens(vocabulary) <= ENGLISH_VOCABULARY
    model = Model(
        name=folder.name,
        role="stt",
        format="ctranslate2",
        languages=("en",) if is_english else ("mul",),
        parameters_b=max(weights.parameters, 1) / 1e9,
        files=files,
    )
    return LocalModel(model, folder)


def _tokens(vocabulary: Path) -> int:
    """Return how many tokens a vocabulary has: a list in JSON, or one a line."""
    if vocabulary.suffix != ".json":
        return _read(vocabulary).rstrip("\n").count("\n") + 1
    tokens = _json(vocabulary)
    if not isinstance(tokens, list):
        raise ModelFileError(f"{vocabulary} is not a vocabulary of CTranslate2, which is a list of tokens.")
    return len(tokens)


def _voice(path: Path) -> LocalModel:
    path = _only(path, MAIN_FILE["piper"])
    settings = _present(path.with_name(f"{path.name}.json"), f"the Piper voice {path.name}")
    said = _json(settings)
    for key in ("audio.sample_rate", "phoneme_id_map"):
        if _inside(said, *key.split(".")) is None:
            raise ModelFileError(f"{settings} does not say {key}, which june needs of a Piper voice.")
    code = _code(_inside(said, "language", "code"))
    files = _files([path, settings])
    model = Model(
        name=path.name,
        role="tts",
        format="piper",
        languages=(code,) if code else (),
        parameters_b=files[0].size_bytes / F32_BYTES / 1e9,  # its weights are in float32
        files=files,
    )
    return LocalModel(model, path)


def _only(path: Path, ending: str) -> Path:
    """Return the one file of a kind that `path` is, or that lies in the folder `path`.

    Raises:
        ModelFileError: there is no such file, or more than one.
    """
    if not path.is_dir():
        if path.suffix != ending:
            raise ModelFileError(f"{path} is not a file {ending}.")
        return _present(path, "june")
    found = sorted(path.glob(f"*{ending}"))
    first = [file for file in found if (part := SPLIT.fullmatch(file.name)) is None or int(part["part"]) == 1]
    if len(first) != 1:
        raise ModelFileError(f"{path} holds {len(first)} files {ending}: name the one that june shall use.")
    return first[0]


def _present(path: Path, user: str) -> Path:
    """Return the path of a file that is there and not empty; `user` says what needs it.

    Raises:
        ModelFileError: it is not.
    """
    try:
        if path.stat().st_size and path.is_file():
            return path
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error
        raise ModelFileError(f"{path} is missing, and {user} needs it.") from error
    raise ModelFileError(f"{path} is empty, or no file.")


def _files(paths: Sequence[Path]) -> tuple[ModelFile, ...]:
    stats = [(path, path.stat()) for path in paths]
    return tuple(
        ModelFile(name=path.name, size_bytes=stat.st_size, modified_ns=stat.st_mtime_ns)
        for path, stat in stats
    )


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path} has more than {MAX_JSON_BYTES / 1e6:.0f} MB.")
        return path.read_text("utf-8")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is not text in UTF-8.") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON.") from error


def _inside(value: Any, *keys: str) -> Any:
    """Return what stands under keys within one another; None if there is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _code(tag: Any) -> str:
    """Return a language's code; "" for what is none."""
    try:
        return language_code(tag) if isinstance(tag, str) else ""
    except ValueError:
        return ""
