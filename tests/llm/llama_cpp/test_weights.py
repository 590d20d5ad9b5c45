"""Promises of a model's copy in the CPU's number format."""

import os
from pathlib import Path

import pytest

from june.llm.llama_cpp.weights import converted
from tests.conftest import LLM


@pytest.fixture
def original(model_paths: dict[str, Path], tmp_path: Path) -> Path:
    link = tmp_path / model_paths[LLM].name
    link.symlink_to(model_paths[LLM])
    return link


def test_the_copy_is_made_once_and_again_when_the_original_is_younger(original: Path) -> None:
    copy = converted(original, "Q8_0", threads=2)
    assert copy != original
    assert copy.read_bytes()[:4] == b"GGUF"
    made_at_ns = copy.stat().st_mtime_ns

    assert converted(original, "Q8_0", threads=2) == copy
    assert copy.stat().st_mtime_ns == made_at_ns

    original.unlink()
    original.write_bytes(b"no model")  # younger than the copy
    assert converted(original, "Q8_0", threads=2) == original


def test_a_file_that_llama_cpp_refuses_is_left_alone(tmp_path: Path) -> None:
    original = tmp_path / "text.gguf"
    original.write_text("no model")
    assert converted(original, "Q8_0", threads=1) == original
    assert list(tmp_path.iterdir()) == [original]


def test_without_room_for_the_copy_the_original_is_used(original: Path) -> None:
    taken = original.with_suffix(".as-Q8_0.gguf")
    taken.mkdir()
    assert converted(original, "Q8_0", threads=2) == original
    assert sorted(original.parent.iterdir()) == sorted([original, taken])


def test_what_a_killed_june_left_half_converted_is_removed(original: Path) -> None:
    nobody = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    left, at_work = (original.with_suffix(f".as-Q8_0.{process}.partial") for process in (nobody, os.getpid()))
    for partial in (left, at_work):
        partial.touch()
    original.with_suffix(".as-Q8_0.gguf").touch()  # made by another one meanwhile
    converted(original, "Q8_0", threads=1)
    assert not left.exists()
    assert at_work.exists()
