"""Language models of the owner's own: GGUF files, whole or split."""

from collections.abc import Sequence
from pathlib import Path

from june.errors import ModelFileError
from june.models.catalogue import MAIN_FILE, Model
from june.models.gguf import Value, read_header
from june.models.own_files import SPLIT, code_of, only_file, own_files, present_file, printable
from june.models.sources import LocalModel
from june.workers import StopFlag

MAX_PARTS = 1000
MAX_LAYERS = 10_000
MAX_HEADS = 1_000_000
F16_BYTES = 2


def describe_llm(path: Path, stop: StopFlag | None = None) -> LocalModel:
    """Return a language model of the owner's own.

    Args:
        path: the GGUF file, the first of a split one, or a folder with one of them.
        stop: ends the reading between two parts when it is set.

    Raises:
        ModelFileError: it is not there, is not a model of that kind, or does not say what june has to know;
            or `stop` was set.
    """
    path = gguf_file(path)
    parts = [path.with_name(name) for name in split_parts(path.name)]
    headers = []
    for part in parts:
        if stop is not None and stop.is_set():
            raise ModelFileError(f"{path.name} was not read to its end: june was asked to stop.")
        headers.append(read_header(present_file(part, f"the split model {path.name}")))
    facts = _Facts(path, headers[0].values)
    model = Model(
        name=path.name,
        role="llm",
        format="gguf",
        licence=facts.text("general.license"),
        languages=facts.languages(),
        parameters_b=max(sum(header.parameters for header in headers), 1) / 1e9,
        kv_bytes_per_token=facts.kv_bytes_per_token(),
        context_tokens_max=facts.number("context_length"),
        files=own_files(parts),
    )
    return LocalModel(model, path)


def gguf_file(path: Path) -> Path:
    """Return the GGUF file that `path` is, or that lies in the folder `path`; reads nothing.

    Raises:
        ModelFileError: there is no such file, or more than one.
    """
    return only_file(path, MAIN_FILE["gguf"])


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
        """Return a text, fit to be shown; "" if there is none."""
        value = self._values.get(key)
        return printable(value) if isinstance(value, str) else ""

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
        return tuple(filter(None, map(code_of, named if isinstance(named, tuple) else ())))

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
