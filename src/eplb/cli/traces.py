"""`eplb inspect`, `convert` and `synthesize`: what a trace holds, and traces as files."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eplb import synthetic
from eplb.checks import printable
from eplb.cli.options import AsJson, Merge, TraceFile
from eplb.cli.terminal import print_inspection
from eplb.describe import inspect_trace
from eplb.formats import load_trace, save_trace
from eplb.records import check_writable
from eplb.synthetic import PRESETS

__all__ = ["convert", "inspect", "synthesize"]

Target = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        help="What to write: .npz (this project's own form, small), .csv or .parquet.",
    ),
]


def inspect(trace: TraceFile, merge: Merge = 1, as_json: AsJson = False) -> None:
    """Say what a file of loads holds: its shape, how uneven the loads are, how they drift."""
    found = inspect_trace(load_trace(trace).merged(merge))
    if as_json:
        print(json.dumps(found.to_json()))  # noqa: T201
    else:
        print_inspection(Console(), str(trace), found)


def convert(trace: TraceFile, target: Target, merge: Merge = 1) -> None:
    """Write loads in another form, chosen by the ending."""
    check_writable(target, trace)
    loads = load_trace(trace).merged(merge)
    save_trace(loads, target)
    _say(f"{loads!r} written to {target}.")


def synthesize(
    preset: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"Which loads to make: {', '.join(PRESETS)}.")
    ],
    target: Target,
    windows: Annotated[int, typer.Option(help="Windows to make.")] = 100,
    tokens: Annotated[int, typer.Option(help="Tokens through the model in each.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the random loads.")] = 0,
) -> None:
    """Make loads that behave like those recorded from a model."""
    check_writable(target)
    loads = synthetic.trace(preset, num_windows=windows, tokens_per_window=tokens, seed=seed)
    save_trace(loads, target)
    _say(f"{loads!r} written to {target}.")


def _say(line: str) -> None:
    Console().print(printable(line), highlight=False, markup=False)
