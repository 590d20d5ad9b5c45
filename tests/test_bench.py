"""The bench: its arithmetic, its stand-in model, and one whole run of the command."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from june.audio import decode
from june.bench.report import emit, percentiles, process_age_s
from june.bench.voice import PACED_PROSE, PacedModel, Question, VoiceBench, compare_windows, wrong_words
from june.errors import JuneError
from june.messages import ChatMessage, ChatRequest, Sampling
from june.settings import PROJECT_ROOT, AudioSettings, Settings
from june.stt.faster_whisper import FasterWhisper
from june.tts.piper import Piper
from tests.conftest import STT, TTS

REQUEST = ChatRequest((ChatMessage("user", "Why is the sky blue?"),), Sampling(), max_tokens=1)


@pytest.mark.parametrize(
    ("spoken", "heard", "wrong"),
    [
        ("The sky is blue.", "the sky is blue", 0),
        ("The sky is blue.", "", 4),
        ("", "Thank you.", 2),
        ("The sky is blue.", "The sky was blue.", 1),
        ("The sky is blue.", "The very sky is so blue.", 2),
        ("The sky is blue.", "Sky blue.", 2),
        ("Don't go", "dont go", 1),
        ("one two three four", "two three four five", 2),
    ],
)
def test_wrong_words_are_those_to_insert_delete_or_replace(spoken: str, heard: str, wrong: int) -> None:
    assert wrong_words(spoken, heard) == wrong


def test_percentiles_are_interpolated() -> None:
    assert percentiles([1.0]) == {"p50_s": 1, "p95_s": 1}
    assert percentiles([float(n) for n in range(101)]) == {"p50_s": 50, "p95_s": 95}
    assert percentiles([1.0, 2.0]) == {"p50_s": 1.5, "p95_s": 1.95}


def test_a_process_is_older_than_what_it_has_done() -> None:
    cpu_s = time.process_time()
    assert cpu_s / 8 < process_age_s() < 86_400  # up to eight threads


def test_a_report_that_cannot_be_written_is_printed_all_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    emit({"suite": "voice"}, tmp_path / "report.json")
    with pytest.raises(JuneError, match="missing"):
        emit({"suite": "voice"}, tmp_path / "missing" / "report.json")
    assert capsys.readouterr().out == '{"suite": "voice"}\n' * 2
    assert (tmp_path / "report.json").read_text() == '{"suite": "voice"}\n'


def test_the_questions_are_recordings_under_six_seconds(questions: tuple[Question, ...]) -> None:
    assert len(questions) >= 6
    for question in questions:
        assert len(question.text.split()) > 10
        assert 5 < decode(question.audio, AudioSettings()).size / 16_000 < 6


async def test_the_stand_in_writes_its_tokens_in_time() -> None:
    model = PacedModel(tokens=30, tokens_per_s=100)
    planned = list(model.write_now(REQUEST))
    assert [at_s for _, at_s in planned] == pytest.approx([n / 100 for n in range(1, 31)])
    assert "".join(text for text, _ in planned) == PACED_PROSE[:135]
    begin = time.perf_counter()
    *deltas, last = [delta async for delta in model.stream(REQUEST)]
    assert time.perf_counter() - begin >= 0.3
    assert [delta.text for delta in deltas] == [text for text, _ in planned]
    assert last.usage is not None
    assert last.usage.completion_tokens == 30


async def test_with_a_model_that_uses_no_cores_the_overlap_pays(
    settings: Settings, stt: FasterWhisper, tts: Piper, questions: tuple[Question, ...]
) -> None:
    bench = VoiceBench(settings, stt, PacedModel(tokens=80, tokens_per_s=100), tts, cores=2)
    figures = await bench.run(questions[:1], turns=1)
    await bench.close()
    assert figures["overlap"] is True
    assert figures["serial_ratio"] > 1.1
    assert figures["stages"]["llm"]["p50_s"] >= 0.8
    assert figures["tokens_per_second"] == pytest.approx(100, rel=0.1)


async def test_the_window_that_follows_the_note_is_faster(
    settings: Settings, stt: FasterWhisper, questions: tuple[Question, ...]
) -> None:
    figures = compare_windows(stt, settings, questions[:2], rounds=1)
    assert figures["stt_window_ratio"] > 1.5
    assert figures["stt_wrong_words"].keys() == {"full", "auto", "spoken"}
    assert figures["stt_wrong_words"]["spoken"] == sum(len(each.text.split()) for each in questions[:2])


@pytest.mark.parametrize(
    ("options", "llm"),
    [
        (["--answer-tokens", "20"], "smollm2-135m-instruct"),
        pytest.param(["--paced", "100"], "paced", marks=pytest.mark.slow),
    ],
)
def test_the_last_line_of_a_run_is_its_report(
    options: list[str], llm: str, settings_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    command: list[str | Path] = [sys.executable, "-m", "june", "bench", "--turns", "1", *options]
    child = subprocess.run(
        [*command, "--json", file, "--settings", settings_file],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT_ROOT,
    )
    *table, line = child.stdout.splitlines()
    assert any("voice to voice" in row for row in table)
    assert file.read_text() == line + "\n"
    report = json.loads(line)
    stages = {"decode", "stt", "llm_first_token", "llm", "tts_first_audio", "tts", "encode"}
    assert report.keys() >= {"suite", "machine", "models", "turns", "stages", "total"}
    assert report["suite"] == "voice"
    assert report["models"] == {"stt": STT, "llm": llm, "tts": TTS}
    assert report["turns"] == 1
    assert report["stages"].keys() == stages
    for figures in (*report["stages"].values(), report["total"]):
        assert figures.keys() == {"p50_s", "p95_s"}
        assert 0 < figures["p50_s"] <= figures["p95_s"]
    for name in ("overhead_ratio", "serial_ratio", "stt_window_ratio", "ready_s"):
        assert 0.1 < report[name] < 100
    assert 300 < report["peak_rss_mb"] < 2_000
