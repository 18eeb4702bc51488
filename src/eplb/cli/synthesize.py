"""`eplb synthesize`: loads that behave like those recorded from a model, as a file."""

from typing import Annotated

import typer

from eplb import synthetic
from eplb.cli.options import TraceTarget
from eplb.cli.terminal import say
from eplb.files import check_writable
from eplb.formats import save_trace
from eplb.synthetic import PRESETS

__all__ = ["command"]


def command(
    preset: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"Which loads to make: {', '.join(PRESETS)}.")
    ],
    target: TraceTarget,
    windows: Annotated[int, typer.Option(help="Windows to make.")] = 100,
    tokens: Annotated[int, typer.Option(help="Tokens through the model in each.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the random loads.")] = 0,
) -> None:
    """Make loads that behave like those recorded from a model."""
    check_writable(target)
    loads = synthetic.trace(preset, num_windows=windows, tokens_per_window=tokens, seed=seed)
    save_trace(loads, target)
    say(f"{loads!r} written to {target}.")
