"""Whether june answers: one turn, over a recorded question that ships with it."""

import asyncio
from collections.abc import Callable
from importlib.resources import files

from june import lineup
from june.chat.apps import token_shapes
from june.checks import Finding
from june.conversation.turn import TurnRequest
from june.errors import JuneError, StageError, TranscriptionError
from june.settings import Settings
from june.telemetry import configure_logging

RECORDING = files("june.bench") / "questions" / "sleep.ogg"
REMEDY = "Run make install and python -m june models pull; python -m june models list names other models."


def answered(settings: Settings) -> list[Finding]:
    """Decode, hear, write, speak and encode once; return a finding for each, up to the first that fails."""
    quiet = settings.telemetry.model_copy(update={"log_level": "error"})
    configure_logging(quiet, settings.secret_values(), token_shapes())
    findings: list[Finding] = []
    try:
        asyncio.run(_answer(settings, lambda name, found: findings.append(Finding(name, "ok", found))))
    except StageError as error:
        findings.append(Finding(f"turn, {error.stage}", "failed", str(error), REMEDY))
    except JuneError as error:
        findings.append(Finding("turn", "failed", str(error), REMEDY))
    return findings


def not_made(fault: str) -> Finding:
    """Return that no turn can be made, since the models cannot be chosen or are not here."""
    remedy = "Pull the models first: python -m june models pull NAME; or correct what the settings name."
    return Finding("turn", "failed", f"no turn was made: {fault}", remedy)


async def _answer(settings: Settings, report: Callable[[str, str], None]) -> None:
    """Answer the question, and report what each stage came to.

    Raises:
        ModelFileError: a model's file is missing or wrong.
        StageError: a model cannot be loaded, or a stage failed.
    """
    async with lineup.open_models(settings) as models, lineup.open_pipeline(settings, models) as pipeline:
        heard = await pipeline.listener.hear(RECORDING.read_bytes())
        report("turn, decode", f"a recording in {heard.timings_s['decode']:.2f} s")
        if not heard.transcript.text:
            raise TranscriptionError("nothing_heard", "Nothing was heard in a recording of speech.")
        report("turn, stt", f"heard in {heard.timings_s['stt']:.2f} s: {heard.transcript.text}")
        result = await pipeline.answer(TurnRequest(heard))
        spent_s = result.timings_s
        report("turn, llm", f"{len(result.text)} characters in {spent_s['llm']:.2f} s")
        if result.speech_error is not None:
            raise result.speech_error
        spoken_s = sum(voice.duration_s for voice in result.voices)
        report("turn, tts", f"{spoken_s:.1f} s of speech in {spent_s['tts']:.2f} s")
        spoken_bytes = sum(len(voice.ogg_opus) for voice in result.voices)
        report("turn, encode", f"{spoken_bytes} bytes of Opus in {spent_s['encode']:.2f} s")
