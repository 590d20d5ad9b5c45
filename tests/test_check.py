"""`python -m june check`: what is well, and what helps where something is not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from june.__main__ import app
from june.settings import PROJECT_ROOT


def check(*arguments: str | Path) -> tuple[int, list[str]]:
    """Exit status and lines of output."""
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, result.output.splitlines()


def findings(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit status, and what was found by name."""
    status, lines = check("--json", *arguments)
    (line,) = lines
    told = json.loads(line)
    assert told["can_start"] is (status == 0)
    return status, {finding.pop("name"): finding for finding in told["findings"]}


def test_on_this_machine_june_can_start(settings_file: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "june", "check", "--settings", settings_file],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT_ROOT,
    )
    _, found = findings("--settings", settings_file)
    assert len(child.stdout.splitlines()) == len(found)
    assert child.stderr == ""


def test_each_line_is_one_finding_with_its_status(settings_file: Path) -> None:
    status, found = findings("--settings", settings_file)
    assert status == 0
    assert found.keys() >= {
        "python", "libraries", "compiler", "settings", "gpu", "choice", "stt", "llm", "tts", "disk", "memory"
    }  # fmt: skip
    assert all(finding.keys() == {"status", "found", "remedy"} for finding in found.values())
    assert all(finding["remedy"] for finding in found.values() if finding["status"] != "ok")
    _, lines = check("--settings", settings_file)
    for line, (name, finding) in zip(lines, found.items(), strict=True):
        assert line.split(maxsplit=1)[0] == finding["status"]
        assert name in line


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("[stt]\nwindw = 8", "did you mean 'window'?"),
        ("[stt]\nwindow = 3", "stt.window"),
        ("[llm", "expected TOML"),
    ],
)
def test_wrong_settings_are_named_with_where_to_look(wrong: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(wrong)
    status, found = findings("--settings", file)
    assert status == 1
    assert found["settings"]["status"] == "failed"
    assert told in found["settings"]["found"]
    assert "settings.example.toml" in found["settings"]["remedy"]
    status, lines = check("--settings", file)
    assert status == 1
    assert [line.split(maxsplit=1)[0] for line in lines].count("failed") == 1
    assert len(lines) == len(found)


def test_missing_models_are_named_with_the_command_that_gets_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[models]\ndirectory = "empty"\npreset = "starter"\n')
    (tmp_path / "empty").mkdir()
    status, found = findings("--settings", file)
    assert status == 1
    for role, model in {"stt": "whisper-tiny-en", "llm": "smollm2-135m-instruct", "tts": "en_US-joe"}.items():
        assert found[role]["status"] == "failed"
        assert f"python -m june models pull {model}" in found[role]["remedy"]
    assert found["disk"]["status"] in {"ok", "warning"}


def test_a_model_that_is_not_in_the_catalogue_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[llm]\nmodel = "gpt-17"\n')
    status, found = findings("--settings", file)
    assert status == 1
    assert "gpt-17" in found["models"]["found"]
    assert "models list" in found["models"]["remedy"]
