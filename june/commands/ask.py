"""`python -m june ask`: answers one question, to try june without a chat app."""

import asyncio
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from june import audio, lineup, llm
from june.chat.apps import token_shapes
from june.conversation.turn import Recording, ToWrite, TurnRequest, TurnResult, Written
from june.errors import AudioError, JuneError
from june.languages import language_code
from june.messages import JsonObject
from june.sections import AudioSettings, LlmSettings, Section
from june.settings import Settings, load_settings
from june.telemetry import configure_logging

TIMINGS = ("decode", "stt", "llm_first_token", "llm", "tts_first_audio", "tts", "encode", "total")


def ask(
    file: Annotated[
        Path | None, typer.Argument(help="A recording: OGG, MP3, M4A, WAV, FLAC or WebM.")
    ] = None,
    *,
    text: Annotated[str, typer.Option(help="Ask this text instead of a recording.")] = "",
    out: Annotated[Path, typer.Option(help="File for the spoken answer.")] = Path("reply.ogg"),
    language: Annotated[str, typer.Option(help="Language spoken, such as en; default: detected.")] = "",
    voice: Annotated[str, typer.Option(help="Voice of the answer; see models list.")] = "",
    schema: Annotated[
        Path | None, typer.Option(help="A JSON schema: print the answer as JSON that follows it; no speech.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file.")] = None,
) -> None:
    """Answer a recorded question with a recording."""
    if (file is None) == (not text):
        raise JuneError("Give either a recording or --text.")
    settings = load_settings(settings_file)
    in_one_file = settings.reply.model_copy(update={"max_voice_s": math.inf})
    changes: dict[str, Section] = {"reply": in_one_file}
    if voice:
        changes["tts"] = settings.tts.model_copy(update={"model": voice})
    settings = settings.model_copy(update=changes)
    configure_logging(settings.telemetry, settings.secret_values(), token_shapes())
    try:
        language = language_code(language) if language else ""
    except ValueError as error:
        raise JuneError(f"--language: {error}.") from error
    _refuse_unwritable(out)
    json_schema = _read_schema(schema, settings.llm) if schema else None
    recording = _read(file, settings.audio) if file else None
    request = TurnRequest(
        Recording(recording) if recording is not None else Written(text),
        ToWrite(json_schema=json_schema),
        language=language,
        speak=schema is None,
    )
    result, models = asyncio.run(_answer(settings, request))
    if json_schema is not None:
        _refuse_no_json(result.text, settings.llm.max_tokens)
    for spoken in result.voices:
        _write(out, spoken.ogg_opus)
    if schema and not as_json:
        print(result.text)
    elif as_json:
        print(json.dumps(_as_json(result, models, out)))
    else:
        _print(result, out)


async def _answer(settings: Settings, request: TurnRequest) -> tuple[TurnResult, dict[str, str]]:
    async with lineup.open_models(settings) as models, lineup.open_pipeline(settings, models) as pipeline:
        names = {
            "stt": models.stt.describe().name,
            "llm": models.llm.describe().name,
            "tts": models.tts.describe().name,
        }
        return await pipeline.answer(request), names


def _refuse_unwritable(out: Path) -> None:
    """Refuse a path that cannot be written before the models spend time on the answer."""
    if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise JuneError(f"The answer cannot be written to {out}.")


def _read(file: Path, settings: AudioSettings) -> bytes:
    """Return the recording; refuse a bad one before the models are loaded."""
    try:
        with file.open("rb") as stream:
            data = stream.read(settings.max_bytes + 1)
    except OSError as error:
        raise AudioError("decode", "audio_unreadable", f"{file} cannot be read: {error.strerror}.") from None
    audio.decode(data, settings)
    return data


def _read_schema(file: Path, settings: LlmSettings) -> JsonObject:
    """Return the JSON schema in a file; refuse one that the engine does not support before it is loaded."""
    try:
        schema = json.loads(file.read_bytes())
    except OSError as error:
        raise JuneError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise JuneError(f"{file} is not JSON.") from None
    if not isinstance(schema, dict):
        raise JuneError(f"{file} is not a JSON schema: expected an object.")
    llm.unloaded(settings).require_schema(schema)
    return schema


def _refuse_no_json(text: str, max_tokens: int) -> None:
    """Refuse an answer that is missing, because nothing was heard, or cut off."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        raise JuneError(
            f"The JSON did not end within {max_tokens} tokens: ask for less, or raise llm.max_tokens."
        ) from None


def _write(out: Path, data: bytes) -> None:
    try:
        out.write_bytes(data)
    except OSError as error:
        raise JuneError(f"The answer cannot be written to {out}: {error.strerror}.") from None


def _as_json(result: TurnResult, models: dict[str, str], out: Path) -> dict[str, Any]:
    heard, usage = result.transcript, result.usage
    voice = next(iter(result.voices), None)
    return {
        "transcript": heard
        and {"text": heard.text, "language": heard.language, "duration_s": round(heard.duration_s, 3)},
        "reply": {
            "text": result.text,
            "audio_duration_s": voice and round(voice.duration_s, 3),
            "path": str(out) if voice else None,
        },
        "timings_s": {name: round(result.timings_s.get(name, 0.0), 4) for name in TIMINGS},
        "usage": usage
        and {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
        "models": models,
    }


def _print(result: TurnResult, out: Path) -> None:
    console = Console(highlight=False, markup=False)
    if result.transcript is not None:
        console.print("heard     ", style="bold", end="")
        console.print(result.transcript.text or "(nothing)")
    console.print("answered  ", style="bold", end="")
    console.print(result.text)
    table = Table("stage", "seconds", title="One turn")
    for name in TIMINGS:
        if name in result.timings_s:
            table.add_row(name, f"{result.timings_s[name]:.3f}")
    console.print(table)
    for spoken in result.voices:
        console.print(f"{spoken.duration_s:.1f} s of speech in {out}")
    if result.speech_error is not None:
        console.print(f"No speech: {result.speech_error}")
