"""GGUF files for tests: a header of whatever it takes, and no weights."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

LLM: dict[str, object] = {
    "general.architecture": "llama",
    "general.license": "mit",
    "general.languages": ["en", "de-DE", "Klingon"],
    "llama.block_count": 4,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
}
"""What a language model's file says at least, and a little more."""


def text(value: str) -> bytes:
    """Return a string of the format."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii", 5, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    assert isinstance(value, list)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def gguf(
    values: Mapping[str, object] = LLM,
    tensors: Sequence[tuple[int, ...]] = ((64, 1000), (64,)),
    *,
    version: int = 3,
) -> bytes:
    """Return a file with this metadata and tensors of these shapes."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    keys = b"".join(text(key) + _value(value) for key, value in values.items())
    shapes = b"".join(
        text(f"t{number}") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
        for number, shape in enumerate(tensors)
    )
    return head + keys + shapes


def write(path: Path, data: bytes) -> Path:
    """Write a file, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
