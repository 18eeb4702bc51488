"""The commands by name."""

from typing import Annotated

import typer

from eplb import __version__
from eplb.cli import decisions, evaluations, migrations, moves, plans, replays, reports, traces

__all__ = ["app"]

app = typer.Typer(
    name="eplb",
    help="Expert Parallelism Load Balancer for mixture-of-experts inference.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("plan")(plans.plan_file)
app.command("evaluate")(evaluations.evaluate)
app.command("frontier")(moves.draw_frontier)
app.command("decide")(decisions.decide_on)
app.command("migrate")(migrations.migrate_files)
app.command("report")(reports.report)
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
