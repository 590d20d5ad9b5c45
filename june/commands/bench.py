"""`python -m june bench`: measures june on this machine."""

import asyncio
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from june import hardware, lineup
from june.bench import queue as owners_queue
from june.bench import report
from june.bench.llm import (
    Figures,
    LlmBench,
    PeerProcess,
    Plan,
    contest_settings,
    open_peer,
    weights_file,
)
from june.bench.peers import Contest, Name
from june.bench.plot import draw
from june.chat.apps import token_shapes
from june.errors import JuneError
from june.models import LocalModel, require
from june.settings import Settings, load_settings
from june.telemetry import configure_logging

MOST_AT_ONCE = 64
ROUNDS_AT_ONCE = 3
ANSWER_TOKENS = 40
PACED_ANSWER_TOKENS = 160


class _VoiceByDefault(TyperGroup):
    """Runs `bench voice` for `bench` without a subcommand."""

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
    paced: Annotated[
        float, typer.Option(min=0, help="Use a stand-in model with this many tokens a second.")
    ] = 0,
    answer_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens per answer; 0: 40, or 160 with --paced.")
    ] = 0,
    concurrency: Annotated[
        str, typer.Option(metavar="N,N", help="Also time this many people asking at once, such as 1,2,4,8.")
    ] = "",
    telemetry: Annotated[bool, typer.Option(help="Also time turns with and without traces.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the JSON line here too.")] = None,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file.")] = None,
) -> None:
    """Time voice turns, and the same work with the bare engines."""
    people = _counts("--concurrency", concurrency) if concurrency else ()
    settings = _quiet_settings(settings_file)
    tokens = answer_tokens or (PACED_ANSWER_TOKENS if paced else ANSWER_TOKENS)
    figures = {
        "suite": "voice",
        "machine": report.machine(),
        **asyncio.run(_voice(settings, turns, paced, tokens, people, telemetry=telemetry)),
    }
    _print(figures)
    report.emit(figures, json_file)


@app.command()
def llm(
    *,
    conversations: Annotated[
        str, typer.Option(metavar="N,N", help="Numbers of conversations at once, measured one after another.")
    ] = "1,2,4,8",
    tokens: Annotated[int, typer.Option(min=2, max=1024, help="Tokens per answer.")] = 96,
    long_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the long answer.")] = 2_000,
    prompt_tokens: Annotated[
        int, typer.Option(min=100, help="Tokens of the long prompt; the long history has half as many.")
    ] = 2_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each figure is the median of all rounds.")] = 3,
    same_weights: Annotated[
        bool, typer.Option("--same-weights", help="Let the other engines use june's copy of the weights too.")
    ] = False,
    plot_file: Annotated[Path, typer.Option("--plot", help="Write the plot here.")] = Path("bench-llm.png"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the JSON line here too.")] = None,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file.")] = None,
) -> None:
    """Time conversations in june's engine, a locked Llama and, if installed, xllamacpp."""
    counts = _counts("--conversations", conversations)
    settings = _quiet_settings(settings_file)
    model = lineup.choose_models(settings).llm
    if not isinstance(model, LocalModel):
        raise JuneError(
            "bench llm compares engines with the same weights: it needs a backend that opens files."
        )
    require(model.entry, model.folder)
    plan = Plan(counts, tokens, long_tokens, prompt_tokens, rounds, same_weights)
    figures = asyncio.run(_llm(settings, model, plan))
    _print_llm(figures)
    try:
        print(draw(figures.report, plot_file))
    finally:
        report.emit(figures.report, json_file)


@app.command()
def queue(
    *,
    messages: Annotated[int, typer.Option(min=1000, help="Messages in the queue.")] = 10_000,
    requests: Annotated[int, typer.Option(min=10, max=2000, help="Requests of each kind to time.")] = 200,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the JSON line here too.")] = None,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file.")] = None,
) -> None:
    """Time listing and claiming over HTTP, and check that two clients never claim the same message."""
    _quiet_settings(settings_file)
    if 3 * requests >= messages:
        raise JuneError(
            "--messages: expected at least three times --requests, since bench queue claims that many."
        )
    figures = {
        "suite": "queue",
        "machine": report.machine(),
        **asyncio.run(owners_queue.run(messages, requests)),
    }
    table = Table("request", "p50 ms", "p95 ms", title=f"{messages} messages in the queue")
    for name, row in figures["stages"].items():
        table.add_row(name, f"{1000 * row['p50_s']:.1f}", f"{1000 * row['p95_s']:.1f}")
    console = Console(highlight=False)
    console.print(table)
    first, second = figures["claimed_by_two_clients"]
    console.print(f"Two clients claimed {first} and {second} messages at once; no message was claimed twice.")
    report.emit(figures, json_file)


def _quiet_settings(file: Path | None) -> Settings:
    settings = load_settings(file)
    telemetry = settings.telemetry.model_copy(update={"log_level": "warning"})
    configure_logging(telemetry, settings.secret_values(), token_shapes())
    return settings


def _counts(option: str, text: str) -> tuple[int, ...]:
    """Return the whole numbers that an option lists, ascending."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(0 < number <= MOST_AT_ONCE for number in numbers):
        raise JuneError(f"{option}: expected numbers from 1 to {MOST_AT_ONCE}, such as 1,2,4,8.")
    return tuple(sorted(set(numbers)))


async def _llm(settings: Settings, chosen: LocalModel, plan: Plan) -> Figures:
    model, path = chosen.entry, chosen.path
    fixed, own = contest_settings(settings.llm, plan)
    names: list[Name] = ["june", "llama"]
    if find_spec("xllamacpp"):
        names.append("xllamacpp")
    console = Console(stderr=True)
    async with AsyncExitStack() as stack:
        with console.status("loading") as status:
            peers: dict[Name, PeerProcess] = {}
            for name in names:
                taken = weights_file(model, path, own) if plan.same_weights and name != "june" else path
                contest = Contest(name, model, str(taken), fixed, own)
                peers[name] = await stack.enter_async_context(open_peer(contest))
            weights = weights_file(model, path, own)
            return await LlmBench(peers, model, weights, (fixed, own), plan).run(status.update)


async def _voice(
    settings: Settings, turns: int, paced: float, tokens: int, people: tuple[int, ...], *, telemetry: bool
) -> dict[str, Any]:
    # Imported here, so that only this command loads the engines' libraries.
    from june.bench.recordings import load_questions  # noqa: PLC0415
    from june.bench.voice import (  # noqa: PLC0415
        FixedLength,
        PacedModel,
        VoiceBench,
        bare_engines,
        compare_windows,
    )

    questions = load_questions()
    async with lineup.open_models(settings) as models:
        ready_s = report.process_age_s()
        stt, llm, tts = bare_engines(models.stt, models.llm.backend, models.tts)
        model = PacedModel(tokens, paced) if paced else FixedLength(llm, tokens)
        windows = compare_windows(stt, settings, questions, rounds=min(turns, 3))
        hardware.return_freed_memory()  # the memory of the 30 s window is no longer needed
        bench = VoiceBench(settings, stt, model, tts, cores=hardware.cpu_cores())
        try:
            figures = await bench.run(questions, turns)
            if people:
                rounds = min(turns, ROUNDS_AT_ONCE)
                figures["concurrency"] = [await bench.run_at_once(questions, n, rounds) for n in people]
            if telemetry:
                figures["telemetry_ratio"] = await bench.compare_traced(questions, turns)
        finally:
            await bench.close()
        return {
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
    if "telemetry_ratio" in figures:
        rows["telemetry ratio (traces sent / not)"] = f"{figures['telemetry_ratio']:.3f}"
    summary = Table("figure", "value")
    for name, value in rows.items():
        summary.add_row(name, value)
    console.print(summary)
    if "concurrency" in figures:
        at_once = Table("people at once", "turns a minute", "p50 s", "p95 s", "first s", "last s")
        for row in figures["concurrency"]:
            seconds = (f"{row[name]:.2f}" for name in ("p50_s", "p95_s", "first_s", "last_s"))
            at_once.add_row(str(row["people"]), f"{row['turns_per_minute']:.1f}", *seconds)
        console.print(at_once)


def _print_llm(figures: Figures) -> None:
    console = Console(highlight=False)
    shown = figures.report
    table = Table(
        *("engine", "at once", "tokens/s", "each", "prompts", "CPU ms", "p50 s", "max s"),
        title=f"{shown['model']}: tokens a second in all, per conversation and for prompts; CPU time per "
        "token; time to the first token",
    )
    for run in shown["runs"]:
        rates = figures.rates[run["engine"], run["conversations"]]
        seconds = (f"{run[name]:.3f}" for name in ("ttft_p50_s", "ttft_max_s"))
        per_second = (run["tokens_per_second"], *map(median, (rates.one_per_second, rates.read_per_second)))
        cpu_ms = f"{median(rates.cpu_s_per_token) * 1e3:.2f}"
        written = (f"{rate:.1f}" for rate in per_second)
        table.add_row(run["engine"], str(run["conversations"]), *written, cpu_ms, *seconds)
    console.print(table)
    prefix, interleave, roofline = shown["prefix"], shown["interleave"], shown["roofline"]
    rows = {
        "first token after a long history, nothing cached": f"{prefix['cold_ttft_s']:.3f} s",
        "the next turn": f"{prefix['warm_ttft_s']:.3f} s",
        "the next turn, after three other chats": f"{prefix['alternating_ttft_s']:.3f} s",
        "longest pause while a long prompt is read": f"{interleave['longest_pause_s']:.3f} s",
        "one chunk of that prompt": f"{interleave['chunk_s']:.3f} s",
        "one step with all conversations": f"{median(figures.steps.step_s) * 1e3:.1f} ms",
        "share of a step outside llama.cpp": f"{shown['step_overhead_share']:.1%}, "
        f"greedy {median(figures.steps.greedy_overhead_shares):.1%}",
        "memory bandwidth": f"{roofline['bandwidth_gb_s']:.1f} GB/s",
        "share of the speed that the roofline allows": f"{roofline['share']:.1%}",
    }
    for name, seconds_s in shown["long_answer"].items():
        rows[f"one long answer, {name.removesuffix('_s')}"] = f"{seconds_s:.2f} s"
    summary = Table("figure", "value")
    for name, value in rows.items():
        summary.add_row(name, value)
    console.print(summary)


def _names(figures: dict[str, Any]) -> str:
    return f"{', '.join(figures['models'].values())}, {figures['answer_tokens']} tokens per answer"
