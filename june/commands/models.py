"""`python -m june models`: what can be had, what is here and right, and what a running june has loaded."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from june.api.client import open_client
from june.commands.terminal import Json, SettingsFile
from june.errors import JuneError, ModelFileError
from june.lineup import choose_models, choose_set
from june.models import Catalogue, Model, find_faults, is_present, load_catalogue
from june.settings import Settings, load_settings

if TYPE_CHECKING:
    from june.models import pull as downloads

app = typer.Typer(help="List, pull, verify and exchange models.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Of a language model that is here.")]

LOOK_EVERY_S = 0.5


@app.command("list")
def list_models(settings_file: SettingsFile = None) -> None:
    """Show the catalogue, what of it is here, and what these settings choose."""
    settings, catalogue, console = load_settings(settings_file), load_catalogue(), _console()
    try:
        choice = choose_models(settings)
        chosen, reason = {choice.stt.name, choice.llm.name, choice.tts.name}, f"* {choice.reason}"
    except JuneError as error:  # the list is the way out of it
        chosen, reason = set(), str(error)
    table = Table(box=None, pad_edge=False)
    for heading in ("", "name", "role", "size", "params", "lang", "licence", "here"):
        table.add_column(heading, no_wrap=heading == "name", overflow="fold")
    for model in catalogue.values():
        table.add_row(
            "*" if model.name in chosen else "",
            model.name,
            model.role,
            f"{model.size_bytes / 1e6:,.0f} MB",
            f"{model.parameters_b:g} B",
            " ".join(model.languages),
            model.licence,
            "yes" if is_present(model, model.folder(settings.models.directory)) else "",
        )
    console.print(table)
    console.print(reason)


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help='Names, or "starter", or "gpu".')],
    settings_file: SettingsFile = None,
) -> None:
    """Download models, going on where an earlier pull stopped."""
    from june.models import pull as downloads  # noqa: PLC0415 - its HTTP client costs every start 0.1 s

    settings, console = load_settings(settings_file), _console()
    plan = downloads.plan_pull(_find(names, load_catalogue(), settings, console), settings.models.directory)
    if not plan.models:
        console.print("All of it is here and verified.")
        return
    console.print(
        f"{', '.join(model.name for model in plan.models)}: {plan.download_bytes / 1e6:,.0f} MB to download, "
        f"up to {plan.disk_bytes / 1e6:,.0f} MB of disk, {plan.free_bytes / 1e6:,.0f} MB free "
        f"in {plan.directory}"
    )
    with _bars(console) if console.is_terminal else _lines(console) as progress:
        downloads.pull(plan, progress, token=settings.models.hugging_face_token.get_secret_value())
    console.print("Done.")


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME…]", help="Default: all present.")
    ] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Read every file and compare its sha256; exit status 1 if one is wrong or missing."""
    settings, catalogue, console = load_settings(settings_file), load_catalogue(), _console()
    directory = settings.models.directory
    if names:
        models = _find(names, catalogue, settings, console)
    else:
        models = [model for model in catalogue.values() if _any_file(model, directory)]
    all_right = True
    for model in models:
        faults = find_faults(model, model.folder(directory), trust_stamps=False)
        for file, fault in faults.items():
            console.print(f"{model.name}: {file} {fault}")
        if not faults:
            console.print(f"{model.name}: verified")
        all_right = all_right and not faults
    if not models:
        console.print(f"There is no model in {directory}; run: python -m june models pull starter")
    if not (models and all_right):
        raise typer.Exit(1)


@app.command()
def status(*, as_json: Json = False, settings_file: SettingsFile = None) -> None:
    """Show the models of the june that runs, and the language models that it could have."""
    found = asyncio.run(_ask(settings_file))
    if as_json:
        print(json.dumps(found))
        return
    console = _console()
    for model in found["loaded"]:
        console.print(f"{model['name']}: {model['backend']}, {model['device']}")
    llm = found["llm"] or {"name": "models", "state": "not loaded yet", "answers": 0, "error": ""}
    console.print(f"{llm['name']}: {llm['state']}, {llm['answers']} answers being written")
    if llm["error"]:
        console.print(f"the last change failed: {llm['error']}")
    console.print(f"language models here: {', '.join(found['present']) or 'none'}")


@app.command()
def load(name: Name, *, settings_file: SettingsFile = None) -> None:
    """Load a language model into the june that runs, where none is loaded."""
    _change(settings_file, "load", {"name": name})


@app.command()
def unload(*, settings_file: SettingsFile = None) -> None:
    """Free the language model of the june that runs, once its answers are written."""
    _change(settings_file, "unload", {})


@app.command()
def switch(name: Name, *, settings_file: SettingsFile = None) -> None:
    """Replace the language model of the june that runs, once its answers are written."""
    _change(settings_file, "switch", {"name": name})


def _change(
    settings_file: Path | None, change: Literal["load", "unload", "switch"], body: dict[str, str]
) -> None:
    """Have a change made, and wait until it is; exit status 1 if it failed."""
    llm = asyncio.run(_ask(settings_file, change, body))["llm"]
    print(f"{llm['name']}: {llm['state']}")
    if llm["error"]:
        raise JuneError(f"The language model was not changed: {llm['error']}")


async def _ask(
    settings_file: Path | None,
    change: Literal["load", "unload", "switch"] | None = None,
    body: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What june says of its models, after a change if there is one to make."""
    async with open_client(load_settings(settings_file).api) as june:
        if change is None:
            return await june.models()
        found = await june.change_model(change, body or {})
        while found["llm"]["changing"]:
            await asyncio.sleep(LOOK_EVERY_S)
            found = await june.models()
        return found


def _any_file(model: Model, directory: Path) -> bool:
    return any((model.folder(directory) / file.name).exists() for file in model.files)


def _find(names: list[str], catalogue: Catalogue, settings: Settings, console: Console) -> list[Model]:
    models: dict[str, Model] = {}
    presets: dict[str, Literal["starter", "gpu"]] = {"starter": "starter", "gpu": "gpu"}
    for name in names:
        if name in presets:
            choice = choose_set(settings, catalogue, presets[name])
            console.print(choice.reason)
            models |= {part: catalogue[part] for part in (choice.stt, choice.llm, choice.tts)}
        elif name in catalogue:
            models[name] = catalogue[name]
        else:
            raise ModelFileError(f"{name!r} is not in the catalogue; see python -m june models list.")
    return list(models.values())


def _console() -> Console:
    return Console(highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _bars(console: Console) -> Iterator["downloads.Progress"]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def show(name: str, doing: str, done_bytes: int, total_bytes: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], description=f"{name}: {doing}", completed=done_bytes, total=total_bytes)

        yield show


@contextmanager
def _lines(console: Console) -> Iterator["downloads.Progress"]:
    """For a log: a line for each tenth."""
    last = ""

    def show(name: str, doing: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal last
        percent = 10 * (10 * done_bytes // total_bytes)
        line = f"{name}: {doing}, {percent} % of {total_bytes / 1e6:,.0f} MB"
        if line != last:
            console.print(line)
        last = line

    yield show
