"""The language model of docs/backends.md, made as the page says, answers a whole voice turn."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from june.bench.recordings import Question
from june.sections import PROJECT_ROOT
from tests.conftest import STT, TTS
from tests.documents import follow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of june with the page's language model, and the files of the other two models only."""
    follow("A language model", tmp_path, table="june/llm/__init__.py")
    (tmp_path / "own").mkdir()
    for name in (STT, TTS):
        (tmp_path / "own" / name).symlink_to(PROJECT_ROOT / "models" / name)
    (tmp_path / "settings.toml").write_text(
        '[models]\ndirectory = "own"\npreset = "starter"\n[llm]\nbackend = "echo"\n'
    )
    return tmp_path


def run(folder: Path, *arguments: str | Path, status: int = 0) -> str:
    """Return what a command of the copy prints on standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "june", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def test_the_documented_language_model_answers_a_spoken_question(
    folder: Path, questions: tuple[Question, ...]
) -> None:
    (folder / "question.ogg").write_bytes(questions[0].audio)
    answer: dict[str, Any] = json.loads(run(folder, "ask", "question.ogg", "--json"))
    assert answer["transcript"]["text"]
    assert answer["reply"]["text"].split() == answer["transcript"]["text"].split()
    assert answer["models"]["llm"] == "echo"
    assert (folder / "reply.ogg").stat().st_size > 1000


def test_nothing_asks_for_files_of_a_model_that_has_none(folder: Path) -> None:
    found = {each["name"]: each for each in json.loads(run(folder, "check", "--json"))["findings"]}
    assert found["llm"]["status"] == "ok"
    assert found["memory"]["status"] == "ok"
    assert "tokens of cache" not in found["memory"]["found"]
    assert "0.0 GB" not in run(folder, "models", "list")
    assert run(folder, "models", "verify").count("verified") == 2


def test_an_address_is_passed_on_and_a_backend_that_opens_files_refuses_it(folder: Path) -> None:
    settings = folder / "settings.toml"
    settings.write_text(settings.read_text() + 'model = "http://127.0.0.1:1/v1#parrot"\n')
    answer = json.loads(run(folder, "ask", "--text", "Hello there", "--json"))
    assert (answer["models"]["llm"], answer["reply"]["text"].strip()) == ("parrot", "Hello there")
    settings.write_text(settings.read_text().replace('"echo"', '"llama_cpp"'))
    (failed,) = (
        each
        for each in json.loads(run(folder, "check", "--json", status=1))["findings"]
        if each["name"] == "models"
    )
    assert failed["found"] == "llm.model: this is an address, and the backend opens files."


def test_an_unknown_backend_is_refused_with_the_known_names(folder: Path) -> None:
    settings = folder / "settings.toml"
    settings.write_text(settings.read_text().replace('"echo"', '"gpt"'))
    (failed,) = (
        each
        for each in json.loads(run(folder, "check", "--json", status=1))["findings"]
        if each["status"] == "failed"
    )
    assert "'gpt' is not a backend; expected one of: echo, llama_cpp" in failed["found"]
