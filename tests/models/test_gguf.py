"""Promises of the reader of GGUF headers: real files, and files of strangers."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from june.errors import ModelFileError
from june.models.gguf import MAX_KEPT, MAX_KEPT_IN_ALL, MAX_STRINGS, read_header
from tests.conftest import LLM as STARTER
from tests.models.gguf_writer import LLM, gguf, text, write


def test_the_starter_model_says_what_the_catalogue_says_of_it(model_paths: dict[str, Path]) -> None:
    header = read_header(model_paths[STARTER])
    assert header.parameters == 134_515_008
    assert header.values["llama.context_length"] == 8192
    assert header.values["general.languages"] == ("en",)
    assert "tokenizer.ggml.tokens" not in header.values  # nobody needs 49,152 strings


@pytest.mark.parametrize("version", [2, 3])
def test_each_kind_of_value_is_read(version: int, tmp_path: Path) -> None:
    values = {"a": 7, "b": 1.5, "c": True, "d": "ü", "e": [1, 2], "f": ["x", "y"]}
    header = read_header(write(tmp_path / "x.gguf", gguf(values, [(2, 3, 4), ()], version=version)))
    assert header.values == {"a": 7, "b": 1.5, "c": True, "d": "ü", "e": (1, 2), "f": ("x", "y")}
    assert header.parameters == 24 + 1


def test_long_arrays_and_texts_are_stepped_over(tmp_path: Path) -> None:
    values = {"long": ["word"] * 5000, "numbers": [1] * 5000, "template": "x" * 20_000, "last": 1}
    header = read_header(write(tmp_path / "x.gguf", gguf(values)))
    assert header.values == {"template": "", "last": 1}


def test_what_is_kept_of_all_arrays_together_is_bounded(tmp_path: Path) -> None:
    values = {f"array {number}": [number] * MAX_KEPT for number in range(30)}
    header = read_header(write(tmp_path / "x.gguf", gguf(values | {"last": 1})))
    assert header.values["array 1"] == (1,) * MAX_KEPT
    assert len(header.values) == MAX_KEPT_IN_ALL // MAX_KEPT + 1
    assert header.values["last"] == 1


HEAD = b"GGUF" + struct.pack("<I", 3)
ONE_KEY = HEAD + struct.pack("<QQ", 0, 1) + text("k")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "ends in the middle of its header"),
        (b"MZ\x90\x00", "does not begin with GGUF"),
        (b"GGUF" + struct.pack(">I", 3), "its version is"),
        (b"GGUF" + struct.pack("<I", 1), "its version is 1"),
        (HEAD + struct.pack("<QQ", 1 << 60, 0), "claims to hold 1,152,921,504,606,846,976 tensors"),
        (HEAD + struct.pack("<QQ", 0, 1 << 60), "claims to hold 1,152,921,504,606,846,976 keys"),
        (HEAD + struct.pack("<QQQ", 0, 1, 1 << 63), "its header is longer than"),
        (ONE_KEY + struct.pack("<I", 99), "unknown type 99"),
        (ONE_KEY + struct.pack("<IIQ", 9, 9, 1), "array of the unknown type 9"),
        (ONE_KEY + struct.pack("<IIQ", 9, 8, MAX_STRINGS + 1), "4,000,000 strings"),
        (ONE_KEY + struct.pack("<IIQ", 9, 8, MAX_STRINGS), "ends in the middle"),
        (ONE_KEY + struct.pack("<IIQ", 9, 10, 1 << 62), "its header is longer than"),
        (HEAD + struct.pack("<QQ", 1, 0) + text("t") + struct.pack("<I", 200), "200 dimensions"),
        (gguf()[:-1], "ends in the middle"),
    ],
)  # fmt: skip
def test_a_broken_or_hostile_file_gets_one_sentence(data: bytes, told: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", data)
    with pytest.raises(ModelFileError) as refusal:
        read_header(path)
    assert str(refusal.value).startswith(f"{path} is not a GGUF file that june can use: ")
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), begin=st.integers(0, 200))
def test_whatever_the_file_holds_it_is_read_or_refused(
    data: bytes, begin: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = gguf(LLM)
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes(whole[:begin] + data + whole[begin + len(data) :])
    with suppress(ModelFileError):  # whatever else is raised fails the test
        read_header(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        read_header(tmp_path / "x.gguf")
