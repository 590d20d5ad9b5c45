"""`python -m june check`: tells whether june can start here, and what to do if it cannot."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from june.checks import Finding, machine, models, network, turn
from june.errors import JuneError
from june.settings import load_settings

MARKS = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "failed": "[red]failed[/] "}


def check(
    *,
    online: Annotated[bool, typer.Option("--online", help="Also ask the chat apps and endpoints.")] = False,
    with_turn: Annotated[bool, typer.Option("--turn", help="Also answer a recorded question.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file.")] = None,
) -> None:
    """Check everything that june needs; exit status 1 if it cannot start or cannot answer."""
    findings = list(_findings(settings_file, online=online, with_turn=with_turn))
    can_start = all(finding.status != "failed" for finding in findings)
    if as_json:
        print(json.dumps({"can_start": can_start, "findings": [asdict(each) for each in findings]}))
    else:
        _print(findings)
    if not can_start:
        raise typer.Exit(1)


def _findings(settings_file: Path | None, *, online: bool, with_turn: bool) -> Iterator[Finding]:
    in_container, container = machine.container()
    yield machine.python()
    yield machine.libraries()
    yield machine.compiler(in_container=in_container)
    yield machine.own_kernels()
    yield container
    yield machine.user()
    yield machine.capabilities()
    yield machine.clock()
    try:
        settings = load_settings(settings_file)
    except JuneError as error:
        yield Finding(
            "settings", "failed", str(error), "Correct the settings; settings.example.toml shows every key."
        )
        return
    yield Finding("settings", "ok", "every key and value is valid")
    gpus, fault = models.gpus()
    if fault is not None:
        yield fault
        return
    yield from models.gpu_libraries(settings, gpus)
    chosen, choice = models.chosen(settings)
    yield choice
    if chosen is not None:
        yield from models.files(settings, chosen)
    yield models.model_disk(settings, chosen)
    yield models.store_folder(settings.store.path)
    yield from models.memory(settings, chosen, gpus)
    yield from network.tokens(settings)
    yield from network.ports(settings)
    if online:
        yield from network.online(settings)
    if with_turn:
        yield from turn.answered(settings) if chosen is not None else [turn.not_made(choice.found)]


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        console.print(f"{MARKS[finding.status]} {finding.name:<12} {escape(finding.found + remedy)}")
