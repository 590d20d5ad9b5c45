"""Promises of which models are here, and what they are called by."""

import os
from pathlib import Path

import pytest

from june.errors import ModelFileError
from june.models.own import describe
from june.models.present import find_present, loose_files, present_llms, present_own
from tests.conftest import CATALOGUE, LLM
from tests.models.gguf_writer import gguf, write


def test_the_owners_files_in_the_folder_are_here(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", gguf())
    write(tmp_path / "b" / "b.gguf", gguf())
    write(tmp_path / "c-00001-of-00002.gguf", gguf())
    write(tmp_path / "c-00002-of-00002.gguf", gguf())
    write(tmp_path / "too" / "deep" / "d.gguf", gguf())
    write(tmp_path / "folder.gguf" / "readme.txt", b"x")
    write(CATALOGUE[LLM].path(tmp_path), b"of the catalogue, and too short")
    write(CATALOGUE[LLM].path(tmp_path).with_suffix(".as-Q8_0.gguf"), b"june's own copy")
    names = ["a.gguf", "b.gguf", "c-00001-of-00002.gguf"]
    assert sorted(path.name for path in loose_files(CATALOGUE, tmp_path)) == names
    assert sorted(present_llms("", CATALOGUE, tmp_path)) == names


def test_what_the_settings_name_is_here_wherever_it_lies_and_unless_it_is_gone(tmp_path: Path) -> None:
    file = write(tmp_path / "elsewhere" / "mine.gguf", gguf())
    directory = tmp_path / "models"
    assert present_llms(str(file), CATALOGUE, directory) == {"mine.gguf": str(file)}
    assert present_llms(str(file.parent), CATALOGUE, directory) == {"mine.gguf": str(file.parent)}
    file.unlink()
    assert present_llms(str(file), CATALOGUE, directory) == {}


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    outside = write(tmp_path / "elsewhere" / "model.gguf", gguf())
    directory = tmp_path / "models"
    a, b = (write(directory / folder / "model.gguf", gguf()) for folder in ("a", "b"))
    other = write(directory / "c" / "other.gguf", gguf())
    here = {"a/model.gguf": str(a), "b/model.gguf": str(b), "other.gguf": str(other)}
    assert present_llms("", CATALOGUE, directory) == here
    assert present_llms(str(outside), CATALOGUE, directory) == here | {"model.gguf": str(outside)}
    assert present_llms(str(a), CATALOGUE, directory) == {
        "model.gguf": str(a),
        "b/model.gguf": str(b),
        "other.gguf": str(other),
    }
    first = write(directory / "model.gguf", gguf())
    found = present_llms(str(outside), CATALOGUE, directory)
    assert found == here | {"model.gguf": str(outside), str(first): str(first)}
    assert find_present(str(first), found) == str(first)


def test_a_file_whose_path_is_not_text_is_passed_over_and_refused_in_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / os.fsdecode(b"caf\xe9.gguf"), gguf())
    assert present_llms("", CATALOGUE, tmp_path) == {}
    assert present_own(CATALOGUE, tmp_path) == []
    with pytest.raises(ModelFileError) as refusal:
        describe("llm", path)
    assert str(refusal.value) == f"{tmp_path}/caf\\xe9.gguf cannot be used: its path is not in UTF-8."


def test_what_no_path_can_be_is_not_here(tmp_path: Path) -> None:
    for named in (f"{tmp_path}/{'x' * 300}.gguf", "a\0b.gguf"):
        assert present_llms(named, CATALOGUE, tmp_path) == {}
        assert find_present(named, {"x.gguf": f"{tmp_path}/x.gguf"}) is None


def test_a_model_is_called_by_its_name_or_its_path(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.gguf", gguf())
    present = {"mine.gguf": str(file), "qwen3-8b": "qwen3-8b"}
    assert find_present("mine.gguf", present) == "mine.gguf"
    assert find_present(f"{tmp_path}/x/../mine.gguf", present) == "mine.gguf"
    assert find_present("qwen3-8b", present) == "qwen3-8b"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for unknown in (
        "other",
        str(tmp_path / "other.gguf"),
        "~nobody/x.gguf",
        "/" * 900,
        f"{loop}/x.gguf",
        "hf:a/b",
    ):
        assert find_present(unknown, present) is None
