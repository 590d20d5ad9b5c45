"""Promises of `python -m june models` without a june that runs."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from june.commands.models import app
from june.errors import JuneError


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
