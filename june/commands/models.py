"""`python -m june models`: lists, downloads and verifies models, and exchanges a running june's."""

import asyncio
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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
from june.models import LocalModel, find_faults, is_present, load_catalogue
from june.models.catalogue import ModelFiles
from june.models.present import present_own
from june.models.references import SCHEME, catalogue_entry, find, is_path, own_path, role_of
from june.settings import Settings, load_settings

if TYPE_CHECKING:
    from june.models import pull as downloads

app = typer.Typer(help="List, pull, verify and exchange models.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name or path of a language model that is present.")]

LOOK_EVERY_S = 0.5
OWN_FILES = "your own files: readable; there is no sha256 to compare them with"


@app.command("list")
def list_models(settings_file: SettingsFile = None) -> None:
    """Show the catalogue, which models are present, and which these settings choose."""
    settings, catalogue, console = load_settings(settings_file), load_catalogue(), _console()
    directory = settings.models.directory
    models = [LocalModel(model, model.path(directory)) for model in catalogue.values()]
    models += present_own(catalogue, directory)
    try:
        choice = choose_models(settings)
        models += choice.local
        chosen, reason = {_place(model) for model in choice.local}, f"* {choice.reason}"
    except JuneError as error:  # the list helps to correct the settings
        chosen, reason = set(), str(error)
    table = Table(box=None, pad_edge=False)
    for heading in ("", "name", "role", "size", "params", "lang", "licence", "here"):
        table.add_column(heading, no_wrap=heading == "name", overflow="fold")
    for source in _each_once(models):
        model = source.entry
        table.add_row(
            "*" if _place(source) in chosen else "",
            model.name,
            model.role,
            f"{model.size_bytes / 1e6:,.0f} MB",
            f"{model.parameters_b:.3g} B",
            " ".join(model.languages),
            model.licence,
            "yes" if is_present(model, source.folder) else "",
        )
    console.print(table)
    console.print(reason)


@app.command()
def pull(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME…", help='Names, hf:OWNER/REPO/FILE, "starter" or "gpu".')
    ],
    settings_file: SettingsFile = None,
) -> None:
    """Download models; resume where an earlier pull stopped."""
    from june.models import pull as downloads  # noqa: PLC0415 - its HTTP client would add 0.1 s to every command

    settings, console = load_settings(settings_file), _console()
    wanted = _find_pullable(names, settings, console)
    plan = downloads.plan_pull(wanted, settings.models.directory)
    if not plan.models:
        console.print("All of these models are present and verified.")
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
        list[str] | None,
        typer.Argument(metavar="[NAME…]", help="Names; default: all models that are present."),
    ] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Read every file and compare its sha256; exit status 1 if one is wrong or missing."""
    settings, console = load_settings(settings_file), _console()
    models = _named(names, settings, console) if names else _present(settings)
    all_right = True
    for model in models:
        faults = find_faults(model.entry, model.folder, trust_stamps=False)
        for file, fault in faults.items():
            console.print(f"{model.name}: {file} {fault}")
        if not faults:
            is_known = any(file.sha256 for file in model.entry.files)
            console.print(f"{model.name}: {'verified' if is_known else OWN_FILES}")
        all_right = all_right and not faults
    if not models:
        directory = settings.models.directory
        console.print(f"There is no model in {directory}; run: python -m june models pull starter")
    if not (models and all_right):
        raise typer.Exit(1)


@app.command()
def status(*, as_json: Json = False, settings_file: SettingsFile = None) -> None:
    """Show the running june's models, and the language models that it could load."""
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
    console.print(f"language models present: {', '.join(found['present']) or 'none'}")


@app.command()
def load(name: Name, *, settings_file: SettingsFile = None) -> None:
    """Load a language model into the running june when none is loaded."""
    _change(settings_file, "load", {"name": _from_here(name)})


@app.command()
def unload(*, settings_file: SettingsFile = None) -> None:
    """Unload the running june's language model once its answers are written."""
    _change(settings_file, "unload", {})


@app.command()
def switch(name: Name, *, settings_file: SettingsFile = None) -> None:
    """Replace the running june's language model once its answers are written."""
    _change(settings_file, "switch", {"name": _from_here(name)})


def _from_here(name: str) -> str:
    """Return the name that june gets: the absolute path of a file that exists, or the name itself."""
    path = own_path(name, Path.cwd())
    with suppress(OSError):  # it is too long for a path, or in a folder that is closed
        return path if Path(path).exists() else name
    return name


def _change(
    settings_file: Path | None, change: Literal["load", "unload", "switch"], body: dict[str, str]
) -> None:
    """Request a change and wait until it is made; exit status 1 if it failed."""
    llm = asyncio.run(_ask(settings_file, change, body))["llm"]
    print(f"{llm['name']}: {llm['state']}")
    if llm["error"]:
        raise JuneError(f"The language model was not changed: {llm['error']}")


async def _ask(
    settings_file: Path | None,
    change: Literal["load", "unload", "switch"] | None = None,
    body: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return what june says about its models, after a change if one is given."""
    async with open_client(load_settings(settings_file).api) as june:
        if change is None:
            return await june.models()
        found = await june.change_model(change, body or {})
        while found["llm"]["changing"]:
            await asyncio.sleep(LOOK_EVERY_S)
            found = await june.models()
        return found


def _find_pullable(names: list[str], settings: Settings, console: Console) -> list[ModelFiles]:
    """Return the files of models to pull; asks Hugging Face about models that the catalogue does not have.

    Raises:
        ModelFileError: june does not know a model, or Hugging Face does not answer.
    """
    from june.models.hub import pin  # noqa: PLC0415 - its HTTP client would add 0.1 s to every command

    token = settings.models.hugging_face_token.get_secret_value()
    models: dict[str, ModelFiles] = {}
    for name in _spelled_out(names, settings, console):
        if is_path(name):
            raise ModelFileError(f"{name} is your own file: there is nothing to pull.")
        if name.startswith(SCHEME):
            models[name] = pin(name, None, settings.models.directory, token=token)
        else:
            models[name] = catalogue_entry(name, load_catalogue())
    return list(models.values())


def _named(names: list[str], settings: Settings, console: Console) -> list[LocalModel]:
    """Return the models with these names, paths or places on Hugging Face.

    Raises:
        ModelFileError: there is no such model, or its files cannot be read.
    """
    catalogue, directory = load_catalogue(), settings.models.directory
    return [
        find(name, role_of(name, catalogue), catalogue, directory)
        for name in _spelled_out(names, settings, console)
    ]


def _present(settings: Settings) -> list[LocalModel]:
    """Return each model that has at least one file present, and the owner's own models in use."""
    catalogue, directory = load_catalogue(), settings.models.directory
    models = [
        LocalModel(model, model.path(directory))
        for model in catalogue.values()
        if any((model.folder(directory) / file.name).exists() for file in model.files)
    ]
    models += present_own(catalogue, directory)
    with suppress(JuneError):  # `check` explains what is wrong with the settings
        models += [model for model in choose_models(settings).local if model.entry not in catalogue.values()]
    return _each_once(models)


def _each_once(models: Iterable[LocalModel]) -> list[LocalModel]:
    """Return each model once, by its path: the owner may call another one by the same name."""
    by_place: dict[str, LocalModel] = {}
    for model in models:
        by_place.setdefault(_place(model), model)
    return list(by_place.values())


def _place(model: LocalModel) -> str:
    return os.path.realpath(model.path)  # does not fail on links that lead to one another


def _spelled_out(names: list[str], settings: Settings, console: Console) -> Iterator[str]:
    """Yield the names; a preset's name is replaced by those of its models."""
    presets: dict[str, Literal["starter", "gpu"]] = {"starter": "starter", "gpu": "gpu"}
    for name in names:
        if name in presets:
            choice = choose_set(settings, load_catalogue(), presets[name])
            console.print(choice.reason)
            yield from filter(None, (choice.stt, choice.llm, choice.tts))
        else:
            yield name


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
    """Print progress for a log: one line per 10 %."""
    last = ""

    def show(name: str, doing: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal last
        percent = 10 * (10 * done_bytes // total_bytes)
        line = f"{name}: {doing}, {percent} % of {total_bytes / 1e6:,.0f} MB"
        if line != last:
            console.print(line)
        last = line

    yield show
