"""What is logged, and the timing of stages."""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog

from june.errors import TranscriptionError
from june.settings import TelemetrySettings
from june.telemetry import configure_logging, log, stage
from june.workers import ModelThread

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The events on standard error, each a line of JSON."""
    written = capsys.readouterr()
    assert written.out == ""
    return [json.loads(line) for line in written.err.splitlines()]


def test_json_logs_are_one_object_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(TelemetrySettings(log_format="json"))
    log.info("turn.finished", outcome="answered", total_s=1.5)
    log.warning("speech.failed", detail="two\nlines, “quoted”")
    first, second = logged(capsys)
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "turn.finished", "level": "info", "outcome": "answered", "total_s": 1.5}
    assert (second["level"], second["detail"]) == ("warning", "two\nlines, “quoted”")


@pytest.mark.parametrize("least", LEVELS)
def test_only_events_from_the_level_that_is_set_are_logged(
    least: Level, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(TelemetrySettings(log_format="json", log_level=least))
    for level in LEVELS:
        getattr(log, level)("something.happened")
    assert tuple(event["level"] for event in logged(capsys)) == LEVELS[LEVELS.index(least) :]


def test_console_logs_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(TelemetrySettings(log_format="console"))
    log.info("models.ready", ready_s=2.5)
    line = capsys.readouterr().err
    assert "models.ready" in line
    assert "2.5" in line
    assert "{" not in line


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_logs_are_for_people_on_a_terminal_and_json_elsewhere(
    *, on_a_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.openpty() if on_a_terminal else os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as screen, os.fdopen(writer, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        configure_logging(TelemetrySettings())
        log.info("models.ready")
        line = screen.read(1000)
    assert b"models.ready" in line
    assert line.startswith(b"{") is not on_a_terminal


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_logged_exception_shows_no_local_variables(
    log_format: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    def transcribe() -> None:
        words = "my-secret-diary"
        raise TranscriptionError("stt_failed", f"Whisper failed on {len(words)} characters.")

    configure_logging(TelemetrySettings(log_format=log_format))
    try:
        transcribe()
    except TranscriptionError:
        log.exception("turn.failed")
    written = capsys.readouterr().err
    assert "TranscriptionError" in written
    assert "Whisper failed on 15 characters." in written
    assert "my-secret-diary" not in written


async def test_what_is_bound_to_a_turn_is_logged_on_a_models_thread_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(TelemetrySettings(log_format="json"))
    thread = ModelThread("stt")
    with structlog.contextvars.bound_contextvars(turn="7f"):
        await thread.run(lambda _: log.info("model.moved"))
    await thread.close()
    assert [event["turn"] for event in logged(capsys)] == ["7f"]


def test_a_stage_is_timed_in_seconds() -> None:
    timings_s: dict[str, float] = {}
    begin = time.perf_counter()
    with stage("stt", timings_s):
        begin_inside = time.perf_counter()
        sum(range(100_000))
        inside_s = time.perf_counter() - begin_inside
    assert inside_s <= timings_s["stt"] <= time.perf_counter() - begin


def test_a_stage_entered_again_adds_up() -> None:
    timings_s = {"tts": 100.0, "stt": 1.0}
    with stage("tts", timings_s):
        pass
    first = timings_s["tts"]
    with stage("tts", timings_s):
        pass
    assert 100 < first < timings_s["tts"] < 101
    assert timings_s["stt"] == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (TranscriptionError("stt_failed", "Whisper failed."), "stt_failed"),
        (ValueError("wrong"), "ValueError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_a_stage_counts_and_logs_its_outcome_whatever_it_is(
    error: BaseException | None, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(timings_s: dict[str, float]) -> None:
        with stage("stt", timings_s):
            if error is not None:
                raise error

    configure_logging(TelemetrySettings(log_format="json", log_level="debug"))
    timings_s: dict[str, float] = {}
    if error is None:
        run(timings_s)
    else:
        with pytest.raises(type(error)) as raised:
            run(timings_s)
        assert raised.value is error
    (event,) = logged(capsys)
    assert (event["event"], event["stage"], event["outcome"]) == ("stage.finished", "stt", outcome)
    assert event["seconds"] == round(timings_s["stt"], 4)
    assert timings_s["stt"] > 0
