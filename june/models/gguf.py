"""What a GGUF file says of itself: the metadata in its header, and how many weights it holds.

The reader is june's own, since the file may be a stranger's and a dozen values are wanted: the package `gguf`
maps the whole file, builds every array of the vocabulary, and has no bounds. This one reads the header only,
keeps short values, steps over long ones, and ends with one sentence when a count or a length is absurd.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from june.errors import ModelFileError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Those that llama.cpp reads; both have lengths of 64 bits."""

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The formats of `struct` by the numbers of the value types."""
STRING, ARRAY = 8, 9

MAX_HEADER_BYTES = 256_000_000
MAX_KEYS = 10_000
MAX_TENSORS = 100_000
MAX_STRINGS = 4_000_000
"""In all arrays together; the largest vocabularies have 0.3 million tokens and as many merges."""
MAX_DIMENSIONS = 4
MAX_KEPT = 4096
"""Items of an array that is kept: one value for each layer, or the languages."""
MAX_KEPT_IN_ALL = 100_000
"""Items of all arrays that are kept; further arrays are stepped over."""
MAX_TEXT_BYTES = 10_000
"""Of a text that is kept; a longer one, such as a chat template, is read as empty."""

Value = int | float | bool | str | tuple[int | float | bool | str, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The beginning of a GGUF file.

    Attributes:
        values: the metadata, without arrays of more than `MAX_KEPT` items, or beyond `MAX_KEPT_IN_ALL`.
        parameters: weights in this file.
    """

    values: dict[str, Value]
    parameters: int


def read_header(path: Path) -> Header:
    """Return what the file's header holds.

    Raises:
        ModelFileError: the file cannot be read, or is not a GGUF file that llama.cpp could read.
    """
    try:
        with path.open("rb", buffering=1 << 20) as stream:
            return _Reader(stream).header()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error
    except _BrokenError as error:
        raise ModelFileError(f"{path} is not a GGUF file that june can use: {error}.") from None


class _BrokenError(Exception):
    """The end of a sentence that begins with the file's name."""


class _Reader:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left_bytes = MAX_HEADER_BYTES
        self._strings = 0
        self._kept = 0

    def header(self) -> Header:
        if self._take(4) != MAGIC:
            raise _BrokenError("it does not begin with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            raise _BrokenError(f"its version is {version}, and known are {VERSIONS[0]} and {VERSIONS[1]}")
        tensors, keys = self._count(MAX_TENSORS, "tensors"), self._count(MAX_KEYS, "keys")
        values: dict[str, Value] = {}
        for _ in range(keys):
            key, value = self._text(), self._value(self._number("I"))
            if value is not None:
                values[key] = value
        parameters = sum(self._tensor_size() for _ in range(tensors))
        if self._stream.tell() > self._stream.seek(0, 2):
            raise _BrokenError("it ends in the middle of its header")
        return Header(values, parameters)

    def _value(self, kind: int) -> Value | None:
        """Return a value, or None for an array that is too long to keep."""
        if kind == ARRAY:
            return self._array(self._number("I"), self._number("Q"))
        return self._single(kind)

    def _single(self, kind: int) -> int | float | bool | str:
        if kind == STRING:
            return self._text()
        if kind not in SCALARS:
            raise _BrokenError(f"it holds a value of the unknown type {kind}")
        value: int | float | bool = struct.unpack(f"<{SCALARS[kind]}", self._take_scalar(kind))[0]
        return value

    def _array(self, kind: int, items: int) -> Value | None:
        if kind == STRING:
            self._strings += items
            if self._strings > MAX_STRINGS:
                raise _BrokenError(f"it holds more than {MAX_STRINGS:,} strings")
        elif kind not in SCALARS:
            raise _BrokenError(f"it holds an array of the unknown type {kind}")
        if items <= MAX_KEPT and self._kept + items <= MAX_KEPT_IN_ALL:
            self._kept += items
            if kind == STRING:
                return tuple(self._text() for _ in range(items))
            form = f"<{items}{SCALARS[kind]}"
            return struct.unpack(form, self._take(struct.calcsize(form)))
        if kind == STRING:
            self._skip_strings(items)
        else:
            self._skip(items * struct.calcsize(f"<{SCALARS[kind]}"))
        return None

    def _skip_strings(self, items: int) -> None:
        """Step over a vocabulary: a loop of few calls, since it has some 100,000 items."""
        read, seek, size_of = self._stream.read, self._stream.seek, struct.Struct("<Q").unpack
        total_bytes = 0
        for _ in range(items):
            length = read(8)
            if len(length) < 8:  # noqa: PLR2004 - 64 bits
                raise _BrokenError("it ends in the middle of its header")
            (size_bytes,) = size_of(length)
            total_bytes += 8 + size_bytes
            if total_bytes > self._left_bytes:
                break
            seek(size_bytes, 1)
        self._spend(total_bytes)

    def _tensor_size(self) -> int:
        """Return how many weights the next tensor has; its name, type and place are stepped over."""
        self._skip(self._number("Q"))
        dimensions = self._number("I")
        if dimensions > MAX_DIMENSIONS:
            raise _BrokenError(f"a tensor of it has {dimensions} dimensions")
        size = prod(self._number("Q") for _ in range(dimensions))
        self._skip(4 + 8)
        return size

    def _text(self) -> str:
        size_bytes = self._number("Q")
        if size_bytes > MAX_TEXT_BYTES:
            self._skip(size_bytes)
            return ""
        return self._take(size_bytes).decode("utf-8", errors="replace")

    def _count(self, most: int, of: str) -> int:
        count = self._number("Q")
        if count > most:
            raise _BrokenError(f"it claims to hold {count:,} {of}")
        return count

    def _number(self, form: str) -> int:
        return int(struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0])

    def _take_scalar(self, kind: int) -> bytes:
        return self._take(struct.calcsize(f"<{SCALARS[kind]}"))

    def _take(self, size_bytes: int) -> bytes:
        self._spend(size_bytes)
        data = self._stream.read(size_bytes)
        if len(data) < size_bytes:
            raise _BrokenError("it ends in the middle of its header")
        return data

    def _skip(self, size_bytes: int) -> None:
        self._spend(size_bytes)
        self._stream.seek(size_bytes, 1)

    def _spend(self, size_bytes: int) -> None:
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise _BrokenError(f"its header is longer than {MAX_HEADER_BYTES / 1e6:,.0f} MB")
