"""The benchmarks: their arithmetic, the stand-in model, and one whole run of the command."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from june.audio import decode
from june.bench.llm import Plan, contest_settings, open_peer, weights_file
from june.bench.peers import Contest, Name
from june.bench.plot import draw
from june.bench.recordings import Question, wrong_words
from june.bench.report import emit, percentiles, process_age_s
from june.bench.roofline import memory_bandwidth_bytes_per_s
from june.bench.talk import Talk
from june.bench.voice import PACED_PROSE, PacedModel, VoiceBench, compare_windows
from june.errors import JuneError
from june.messages import ChatMessage, ChatRequest, Sampling
from june.sections import PROJECT_ROOT, AudioSettings
from june.settings import Settings
from june.stt.faster_whisper import FasterWhisper
from june.tts.piper import Piper
from tests.conftest import CATALOGUE, LLM, STT, TTS

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
        (["--answer-tokens", "20", "--concurrency", "2", "--telemetry"], "smollm2-135m-instruct"),
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
    assert ("telemetry_ratio" in report) is ("--telemetry" in options)
    for name in ("overhead_ratio", "serial_ratio", "stt_window_ratio", "ready_s"):
        assert 0.1 < report[name] < 100
    assert 300 < report["peak_rss_mb"] < 2_000
    if "--concurrency" in options:
        (at_once,) = report["concurrency"]
        assert at_once["people"] == 2
        assert 0 < at_once["first_s"] <= at_once["p50_s"] <= at_once["p95_s"] <= at_once["last_s"]
        assert at_once["turns_per_minute"] == pytest.approx(2 * 60 / at_once["last_s"], rel=0.01)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("llm", ["--conversations", "0"]),
        ("llm", ["--conversations", "1,two"]),
        ("llm", ["--conversations", ""]),
        ("llm", ["--conversations", "1,65"]),
        ("voice", ["--concurrency", "1,-2"]),
        ("voice", ["--concurrency", "four"]),
    ],
)
def test_a_wrong_number_of_conversations_is_one_sentence(command: str, options: list[str]) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "june", "bench", command, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT_ROOT,
    )
    assert child.returncode == 2
    assert child.stdout == ""
    assert child.stderr == f"june: {options[0]}: expected numbers from 1 to 64, such as 1,2,4,8.\n"


def test_bench_llm_compares_the_engines_and_ends_with_its_report(settings_file: Path, tmp_path: Path) -> None:
    report_file, plot_file = tmp_path / "report.json", tmp_path / "plot.png"
    sizes = ["--conversations", "2,1", "--tokens", "4", "--long-tokens", "16", "--prompt-tokens", "400"]
    command: list[str | Path] = [sys.executable, "-m", "june", "bench", "llm", "--rounds", "1", *sizes]
    child = subprocess.run(
        [*command, "--plot", plot_file, "--json", report_file, "--settings", settings_file],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT_ROOT,
    )
    *shown, line = child.stdout.splitlines()
    assert f"The plot is in {plot_file}." in shown
    assert report_file.read_text() == line + "\n"
    report = json.loads(line)
    assert list(report) == [
        *("suite", "machine", "model", "same_weights", "runs", "prefix", "interleave"),
        *("step_overhead_share", "roofline", "long_answer"),
    ]
    assert (report["suite"], report["model"]) == ("llm", LLM)
    runs = {(run["engine"], run["conversations"]): run for run in report["runs"]}
    assert set(runs) == {(engine, n) for engine in ("june", "llama", "xllamacpp") for n in (1, 2)}
    for run in runs.values():
        assert run.keys() == {
            *("engine", "conversations", "tokens_per_second", "ttft_p50_s", "ttft_max_s"),
        }
        assert run["tokens_per_second"] > 0
        assert 0 < run["ttft_p50_s"] <= run["ttft_max_s"]
    assert runs["llama", 2]["ttft_max_s"] > runs["llama", 2]["ttft_p50_s"]  # the second waits for the first
    assert report["prefix"].keys() == {"cold_ttft_s", "warm_ttft_s", "alternating_ttft_s"}
    assert report["prefix"]["warm_ttft_s"] < report["prefix"]["cold_ttft_s"]
    assert report["interleave"].keys() == {"longest_pause_s", "chunk_s"}
    assert report["roofline"].keys() == {"bandwidth_gb_s", "share"}
    assert 0 < report["step_overhead_share"] < 1
    assert 0 < report["roofline"]["share"] < 1
    assert report["long_answer"].keys() == {"june_s", "llama_s"}
    assert plot_file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


PLAN = Plan((1,), tokens=4, long_tokens=16, prompt_tokens=400, rounds=1)


@pytest.mark.parametrize("engine", ["llama", "xllamacpp"])
async def test_a_peer_reads_what_june_reads_and_writes_what_june_writes(
    engine: Name, settings: Settings, model_paths: dict[str, Path]
) -> None:
    fixed, own = contest_settings(settings.llm, PLAN)
    chat = Talk(settings.llm.system_prompt).ask("Repeat: one, two, three.", tokens=4)
    answers = []
    path = model_paths[LLM]
    for name in ("june", engine):
        async with open_peer(Contest(name, CATALOGUE[LLM], str(path), fixed, own)) as peer:
            answers += (await peer.run(chat)).answers
        path = weights_file(CATALOGUE[LLM], path, own)
    ours, theirs = answers
    assert theirs.prompt_tokens == ours.prompt_tokens > 30
    assert theirs.text == ours.text
    assert 1 <= len(ours.pieces_s) <= len(theirs.pieces_s) == 4  # june tells several at a time


@pytest.mark.parametrize("engine", ["june", "llama", "xllamacpp"])
async def test_an_engine_that_cannot_load_says_so(engine: Name, settings: Settings, tmp_path: Path) -> None:
    contest = Contest(
        engine, CATALOGUE[LLM], str(tmp_path / "missing.gguf"), *contest_settings(settings.llm, PLAN)
    )
    with pytest.raises(JuneError, match=f"{engine} cannot be measured: .+"):
        async with open_peer(contest):
            pass


def test_nothing_is_said_twice_in_a_bench() -> None:
    talk = Talk("")
    said = [talk.question() for _ in range(5_000)] + [talk.prose(100) for _ in range(1_000)]
    assert len(set(said)) == len(said)
    assert talk.question() not in said
    assert Talk("").question() == said[0]


def test_without_matplotlib_there_is_a_sentence_and_no_plot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw({}, tmp_path / "plot.png").startswith("There is no plot")
    assert not list(tmp_path.iterdir())


async def test_memory_is_faster_than_a_disk_and_slower_than_a_cache() -> None:
    assert 5e8 < await memory_bandwidth_bytes_per_s(threads=2) < 2e12


async def test_bench_queue_measures_a_queue_over_http_and_its_last_line_is_json(settings_file: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "june", "bench", "queue", "--messages", "1000", "--requests", "10"),
        *("--settings", str(settings_file)),
        stdout=asyncio.subprocess.PIPE,
        cwd=PROJECT_ROOT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    figures = json.loads(output.splitlines()[-1])
    assert figures["claimed_by_two_clients"] == [10, 10]
    assert all(row["p50_s"] <= row["p95_s"] for row in figures["stages"].values())
