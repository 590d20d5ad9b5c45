"""Promises of `python -m june models` without a june that runs."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from june.commands.models import OWN_FILES, app
from june.errors import JuneError
from tests.conftest import STT


def test_list_marks_the_chosen_models_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUNE_MODELS__DIRECTORY", str(tmp_path))
    monkeypatch.setenv("JUNE_MODELS__PRESET", "starter")
    monkeypatch.setenv("JUNE_LLM__MODEL", "qwen3-8b")
    result = CliRunner().invoke(app, ["list"])
    assert [line.split()[1] for line in result.output.splitlines() if line.startswith("*")] == [
        "whisper-tiny-en",
        "en_US-joe-medium",
        "qwen3-8b",
        "Starter",
    ]


def test_a_model_of_ones_own_may_be_called_as_one_of_the_catalogue(
    tmp_path: Path, model_paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(model_paths[STT], tmp_path / "own" / STT)
    (tmp_path / STT).symlink_to(model_paths[STT])
    monkeypatch.setenv("JUNE_MODELS__DIRECTORY", str(tmp_path))
    monkeypatch.setenv("JUNE_MODELS__PRESET", "starter")
    monkeypatch.setenv("JUNE_STT__MODEL", str(own))
    rows = [line for line in CliRunner().invoke(app, ["list"]).output.splitlines() if f"{STT} " in line]
    assert [(row.startswith("*"), "MIT" in row) for row in rows] == [(False, True), (True, False)]
    verified = CliRunner().invoke(app, ["verify"]).output.splitlines()
    assert verified == [f"{STT}: verified", f"{STT}: {OWN_FILES}"]


def test_verify_fails_on_a_wrong_file_and_on_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUNE_MODELS__DIRECTORY", str(tmp_path))
    assert CliRunner().invoke(app, ["verify"]).exit_code == 1
    folder = tmp_path / "en_US-joe-medium"
    folder.mkdir()
    (folder / "en_US-joe-medium.onnx").write_bytes(b"no voice")
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "en_US-joe-medium: en_US-joe-medium.onnx has 8 bytes instead of 63201294",
        "en_US-joe-medium: en_US-joe-medium.onnx.json is missing",
    ]


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUNE_MODELS__DIRECTORY", str(tmp_path))
    result = CliRunner().invoke(app, ["pull", "whisper-huge"])
    assert isinstance(result.exception, JuneError)
    assert "'whisper-huge' is not in the catalogue" in str(result.exception)
