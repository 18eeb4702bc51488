"""The command line: parse, call, print. Errors are one line on stderr and exit code 2."""

import sys
from typing import Annotated

import typer

from eplb import __version__
from eplb.cli import plans, replays, traces
from eplb.errors import EplbError

__all__ = ["main"]

app = typer.Typer(
    name="eplb",
    help="Expert Parallelism Load Balancer for mixture-of-experts inference.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("plan")(plans.plan_file)
app.command("compare")(replays.compare_policies)
app.command("sweep")(replays.sweep_policies)
app.command("inspect")(traces.inspect)
app.command("convert")(traces.convert)
app.command("synthesize")(traces.synthesize)
app.command("demo")(plans.demo)


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


def main() -> None:
    """Entry point of the `eplb` command."""
    try:
        app()
    except EplbError as error:
        message = " ".join(str(error).split())
        sys.exit(_fail(f"eplb: {message}", 2))
    except BrokenPipeError:
        # Whoever read the output has gone; nothing more can be said to them.
        sys.stderr.close()
        sys.exit(141)


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)  # noqa: T201
    return code
