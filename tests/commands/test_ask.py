"""`python -m june ask`, run as people run it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from june.audio import decode
from june.bench.recordings import Question, wrong_words
from june.sections import PROJECT_ROOT, AudioSettings
from tests.test_audio import four_hours_of_silence, opus, wav


def ask(*arguments: str | Path, settings_file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "june", "ask", *arguments, "--settings", settings_file],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT_ROOT,
    )


def test_a_spoken_question_is_answered_in_one_json_object_and_a_voice_message(
    questions: tuple[Question, ...], settings_file: Path, tmp_path: Path
) -> None:
    recording, reply = tmp_path / "question.ogg", tmp_path / "reply.ogg"
    recording.write_bytes(questions[0].audio)
    child = ask(recording, "--json", "--out", reply, settings_file=settings_file)
    assert child.returncode == 0
    (line,) = child.stdout.splitlines()
    told = json.loads(line)
    assert told.keys() == {"transcript", "reply", "timings_s", "usage", "models"}
    assert told["transcript"].keys() == {"text", "language", "duration_s"}
    assert wrong_words(questions[0].text, told["transcript"]["text"]) <= 3
    assert told["transcript"]["language"] == "en"
    assert told["reply"].keys() == {"text", "audio_duration_s", "path"}
    assert told["reply"]["path"] == str(reply)
    assert len(told["reply"]["text"]) > 40
    pcm = decode(reply.read_bytes(), AudioSettings())
    assert told["reply"]["audio_duration_s"] == pytest.approx(pcm.size / 16_000, abs=0.05)
    stages = ["decode", "stt", "llm_first_token", "llm", "tts_first_audio", "tts", "encode", "total"]
    assert list(told["timings_s"]) == stages
    assert all(seconds > 0 for seconds in told["timings_s"].values())
    assert told["usage"].keys() == {"prompt_tokens", "completion_tokens"}
    assert told["usage"]["completion_tokens"] == 40
    assert told["models"] == {
        "stt": "whisper-tiny-en",
        "llm": "smollm2-135m-instruct",
        "tts": "en_US-joe-medium",
    }


def test_a_written_question_is_answered_for_people_to_read(settings_file: Path, tmp_path: Path) -> None:
    reply = tmp_path / "reply.ogg"
    child = ask("--text", "Repeat: Hello [/b].", "--out", reply, settings_file=settings_file)
    assert child.returncode == 0
    assert "heard" not in child.stdout
    assert "answered  " in child.stdout
    assert "total" in child.stdout
    assert str(reply) in child.stdout.replace("\n", "")
    assert decode(reply.read_bytes(), AudioSettings()).size > 1_600


def test_a_question_with_a_schema_is_answered_in_json_and_not_spoken(
    settings_file: Path, tmp_path: Path
) -> None:
    reply, schema = tmp_path / "reply.ogg", tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"blue": {"type": "boolean"}}, "required": ["blue"]}')
    child = ask("--text", "Is the sky blue?", "--schema", schema, "--out", reply, settings_file=settings_file)
    assert child.returncode == 0
    answer = json.loads(child.stdout)
    assert answer.keys() == {"blue"}
    assert answer["blue"] in {True, False}
    assert not reply.exists()


def test_json_that_is_cut_off_is_no_answer(settings_file: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"type": "string", "minLength": 300}, "minItems": 2}')
    child = ask("--text", "Tell me a story.", "--schema", schema, settings_file=settings_file)
    assert (child.returncode, child.stdout) == (2, "")
    assert "The JSON did not end within 40 tokens" in child.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "expected an object"),
        ('{"type": "string", "pattern": "a"}', "has pattern, which cannot be kept"),
    ],
)
def test_a_bad_schema_is_refused_before_the_models_are_loaded(
    schema: str, told: str, no_models: Path, tmp_path: Path
) -> None:
    file = tmp_path / "schema.json"
    file.write_text(schema)
    assert told in complaint(ask("--text", "Hello", "--schema", file, settings_file=no_models))


def test_silence_is_answered_in_writing(settings_file: Path, tmp_path: Path) -> None:
    recording, reply = tmp_path / "silence.wav", tmp_path / "reply.ogg"
    recording.write_bytes(wav(bytes(64_000)))
    child = ask(recording, "--json", "--out", reply, settings_file=settings_file)
    assert child.returncode == 0
    told = json.loads(child.stdout)
    assert told["transcript"]["text"] == ""
    assert told["reply"] == {
        "text": "I heard nothing in that recording.",
        "audio_duration_s": None,
        "path": None,
    }
    assert told["usage"] is None
    assert not reply.exists()


@pytest.fixture(scope="module")
def no_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return settings for which every model is missing, so that a command that loads one fails."""
    file = tmp_path_factory.mktemp("no models") / "settings.toml"
    file.write_text('[models]\ndirectory = "nowhere"\npreset = "starter"\n')
    return file


@pytest.mark.parametrize(
    ("recording", "told"),
    [
        (lambda: b"", "0 bytes"),
        (lambda: b"OggS, says the text.", "recording"),
        (lambda: b"This is a text.", "recording"),
        (lambda: opus()[:-2_000], "cut off"),
        (lambda: wav(bytes(2)), "lasts"),
        (four_hours_of_silence, "longer than 600 s"),
        (lambda: wav(bytes(8_900), rate_hz=234_925_124), "234925124 Hz"),
        (lambda: bytes(20_000_001), "20000000"),
    ],
    ids=["empty", "a text", "another text", "cut off", "1 sample", "4 hours", "forged", "20 MB"],
)
def test_a_bad_recording_is_refused_before_the_models_are_loaded(
    recording: Callable[[], bytes], told: str, no_models: Path, tmp_path: Path
) -> None:
    file = tmp_path / "question.ogg"
    file.write_bytes(recording())
    assert told in complaint(ask(file, "--out", tmp_path / "reply.ogg", settings_file=no_models))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.ogg"], "No such file"),
        (["."], "Is a directory"),
        ([], "either a recording or --text"),
        (["question.ogg", "--text", "Hello"], "either a recording or --text"),
        (["--text", "Hello", "--out", "missing/reply.ogg"], "missing/reply.ogg"),
        (["--text", "Hello", "--out", "."], "cannot be written"),
        (["--text", "Hello", "--schema", "missing.json"], "missing.json cannot be read"),
        (["--text", "Hello", "--voice", "nobody"], "'nobody' is not in the catalogue"),
        (["--text", "Hello", "--voice", "whisper-tiny-en"], "not for tts"),
        (["--text", "Hello"], "python -m june models pull whisper-tiny-en"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(
    arguments: list[str], told: str, no_models: Path
) -> None:
    assert told in complaint(ask(*arguments, settings_file=no_models))


def complaint(child: subprocess.CompletedProcess[str]) -> str:
    """Check that a command is refused and return its only output, one line on standard error."""
    assert child.returncode == 2
    assert child.stdout == ""
    (line,) = child.stderr.splitlines()
    assert line.startswith("june: ")
    return line
