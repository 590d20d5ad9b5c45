"""`python -m june bench`: what june's figures are on this machine."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from june import app as composition
from june import hardware
from june.bench import report
from june.errors import JuneError
from june.settings import Settings, load_settings
from june.telemetry import configure_logging

ANSWER_TOKENS = 40
PACED_ANSWER_TOKENS = 160


class _VoiceByDefault(TyperGroup):
    """`bench` alone, or with options only, is `bench voice`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help" not in args and (not args or args[0] not in self.commands):
            args = ["voice", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_VoiceByDefault, help="Measure june on this machine; voice turns by default.")


@app.callback()
def _bench() -> None:
    pass


@app.command()
def voice(
    *,
    turns: Annotated[int, typer.Option(min=1, help="Turns to time.")] = 18,
    paced: Annotated[float, typer.Option(min=0, help="Stand-in model of so many tokens a second.")] = 0,
    answer_tokens: Annotated[int, typer.Option(min=0, help="Tokens an answer; 0: 40, paced 160.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the JSON line here too.")] = None,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file.")] = None,
) -> None:
    """Time whole turns, and the same work without june."""
    settings = load_settings(settings_file)
    telemetry = settings.telemetry.model_copy(update={"log_level": "warning"})
    configure_logging(telemetry)
    tokens = answer_tokens or (PACED_ANSWER_TOKENS if paced else ANSWER_TOKENS)
    figures = asyncio.run(_voice(settings, turns, paced, tokens))
    _print(figures)
    report.emit(figures, json_file)


async def _voice(settings: Settings, turns: int, paced: float, tokens: int) -> dict[str, Any]:
    # The engines' libraries are loaded for this command only.
    from june.bench.voice import (  # noqa: PLC0415
        FixedLength,
        PacedModel,
        VoiceBench,
        compare_windows,
        load_questions,
    )
    from june.llm.llama_cpp import LlamaCpp  # noqa: PLC0415
    from june.stt.faster_whisper import FasterWhisper  # noqa: PLC0415
    from june.tts.piper import Piper  # noqa: PLC0415

    questions = load_questions()
    async with composition.open_models(settings) as models:
        ready_s = report.process_age_s()
        stt, llm, tts = models.stt, models.llm, models.tts
        if not (isinstance(stt, FasterWhisper) and isinstance(llm, LlamaCpp) and isinstance(tts, Piper)):
            raise JuneError("bench voice knows the bare calls of faster_whisper, llama_cpp and piper only.")
        model = PacedModel(tokens, paced) if paced else FixedLength(llm, tokens)
        bench = VoiceBench(settings, stt, model, tts, cores=hardware.cpu_cores())
        try:
            figures = await bench.run(questions, turns)
        finally:
            await bench.close()
        windows = compare_windows(stt, settings, questions, rounds=min(turns, 3))
        return {
            "suite": "voice",
            "machine": report.machine(),
            "models": {
                "stt": stt.describe().name,
                "llm": model.describe().name,
                "tts": tts.describe().name,
            },
            "answer_tokens": tokens,
            **figures,
            **windows,
            "ready_s": round(ready_s, 2),
            "peak_rss_mb": round(hardware.peak_memory_bytes() / 1e6),
        }


def _print(figures: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table("stage", "p50 s", "p95 s", title=f"{figures['turns']} turns, {_names(figures)}")
    for name, row in {**figures["stages"], "voice to voice": figures["total"]}.items():
        table.add_row(name, f"{row['p50_s']:.3f}", f"{row['p95_s']:.3f}")
    console.print(table)
    factors, wrong = figures["real_time_factors"], figures["stt_wrong_words"]
    rows = {
        "overlap": "on" if figures["overlap"] else "off",
        "overhead ratio (june / bare engines)": f"{figures['overhead_ratio']:.3f}",
        "serial ratio (serial / june)": f"{figures['serial_ratio']:.3f}",
        "stt window ratio (30 s / auto)": f"{figures['stt_window_ratio']:.2f}",
        "wrong words (30 s, auto)": f"{wrong['full']}, {wrong['auto']} of {wrong['spoken']}",
        "real-time factor (stt, tts)": f"{factors['stt']:.3f}, {factors['tts']:.3f}",
        "tokens a second": f"{figures['tokens_per_second']:.1f}",
        "models ready after": f"{figures['ready_s']:.2f} s",
        "peak memory": f"{figures['peak_rss_mb']} MB",
    }
    summary = Table("figure", "value")
    for name, value in rows.items():
        summary.add_row(name, value)
    console.print(summary)


def _names(figures: dict[str, Any]) -> str:
    return f"{', '.join(figures['models'].values())}, {figures['answer_tokens']} tokens an answer"
