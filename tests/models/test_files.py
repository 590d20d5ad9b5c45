"""Promises of verifying the files of models."""

import os
from pathlib import Path

import pytest

from june.errors import ModelFileError
from june.models import (
    find_faults,
    require,
)
from june.models.own import describe
from tests.models.conftest import CONTENT, HUGGING_FACE, catalogue_of, model_toml, sha256
from tests.models.gguf_writer import gguf, write


def test_a_file_is_required_to_be_the_catalogues(tmp_path: Path) -> None:
    model = catalogue_of(model_toml(HUGGING_FACE, model_bin=CONTENT), tmp_path)["small"]
    remedy = "python -m june models pull small"
    with pytest.raises(ModelFileError, match=f"model.bin is missing; run: {remedy}"):
        require(model, tmp_path / "small")
    path = tmp_path / "small" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    require(model, path.parent)
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(ModelFileError, match=rf"has sha256 \w+… instead of {sha256(CONTENT)[:12]}…; run"):
        require(model, tmp_path / "small")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ModelFileError, match="has 299999 bytes instead of 300000"):
        require(model, tmp_path / "small")


def test_a_file_of_the_owners_own_is_not_to_be_pulled(tmp_path: Path) -> None:
    own = describe("llm", write(tmp_path / "x.gguf", gguf()))
    own.path.write_bytes(gguf()[:-1])
    with pytest.raises(ModelFileError, match="it is your own file: put it back, or let the settings name an"):
        require(own.entry, own.folder)


def test_a_start_does_not_read_an_unchanged_file_again_and_verify_does(tmp_path: Path) -> None:
    model = catalogue_of(model_toml(HUGGING_FACE, model_bin=CONTENT), tmp_path)["small"]
    path = tmp_path / "small" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    require(model, tmp_path / "small")
    before = path.stat()
    path.write_bytes(bytes(len(CONTENT)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    require(model, path.parent)
    assert "model.bin" in find_faults(model, path.parent, trust_stamps=False)
    with pytest.raises(ModelFileError):  # the stamp is gone since it was found wrong
        require(model, tmp_path / "small")


def test_a_damaged_stamp_file_only_costs_a_new_look(tmp_path: Path) -> None:
    model = catalogue_of(model_toml(HUGGING_FACE, model_bin=CONTENT), tmp_path)["small"]
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "model.bin").write_bytes(CONTENT)
    (folder / ".verified.json").write_text("{")
    require(model, folder)
    assert "model.bin" in (folder / ".verified.json").read_text()
