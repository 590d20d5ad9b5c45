"""`python -m june …`: picks a command, and says in one sentence what went wrong."""

import sys

import typer

from june import __version__
from june.commands import ask, bench, check, data, messages, models, run
from june.commands.terminal import SettingsFile
from june.errors import JuneError

app = typer.Typer(
    name="june",
    help="A voice assistant that runs on its owner's own machine.",
    pretty_exceptions_enable=False,
)
app.command()(run.run)
app.command()(ask.ask)
app.command()(check.check)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(messages.app, name="messages")
app.add_typer(models.app, name="models")


@app.callback(invoke_without_command=True)
def without_command(
    context: typer.Context,
    *,
    settings_file: SettingsFile = None,
    version: bool = typer.Option(False, "--version", help="Print the version."),
) -> None:
    """Without a command june serves the chat apps, as with run."""
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        run.run(settings_file)
    elif settings_file is not None:
        raise JuneError(f"--settings: write it after {context.invoked_subcommand}.")


def main() -> None:
    """Run a command; a failure is one sentence on standard error and exit status 2."""
    try:
        app()
    except JuneError as error:
        print(f"june: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
