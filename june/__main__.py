"""`python -m june …`: picks a command, and says in one sentence what went wrong."""

import sys

import typer

from june import __version__
from june.commands import ask, bench, check, models
from june.errors import JuneError

app = typer.Typer(
    name="june",
    help="A voice assistant that runs on its owner's own machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(ask.ask)
app.command()(check.check)
app.add_typer(bench.app, name="bench")
app.add_typer(models.app, name="models")


@app.callback(invoke_without_command=True)
def version(*, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Options before a command."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run a command; a failure is one sentence on standard error and exit status 2."""
    try:
        app()
    except JuneError as error:
        print(f"june: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
