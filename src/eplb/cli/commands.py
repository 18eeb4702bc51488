"""The commands by name."""

from typing import Annotated

import typer

from eplb import __version__
from eplb.cli import (
    compare,
    convert,
    decide,
    demo,
    evaluate,
    frontier,
    inspect,
    migrate,
    plan,
    report,
    sweep,
    synthesize,
)

__all__ = ["app"]

app = typer.Typer(
    name="eplb",
    help="Expert Parallelism Load Balancer for mixture-of-experts inference.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _module in (
    ("plan", plan),
    ("evaluate", evaluate),
    ("frontier", frontier),
    ("decide", decide),
    ("migrate", migrate),
    ("report", report),
    ("compare", compare),
    ("sweep", sweep),
    ("inspect", inspect),
    ("convert", convert),
    ("synthesize", synthesize),
    ("demo", demo),
):
    app.command(_name)(_module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eplb {__version__}")
        raise typer.Exit


@app.callback()
def _eplb(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass
