"""`eplb synthesize`: loads that behave like those recorded from a model, as a file."""

from typing import Annotated

import typer

from eplb import synthetic
from eplb.cli.options import AsJson, TraceTarget
from eplb.cli.terminal import say_written
from eplb.files import check_writable
from eplb.formats import save_trace
from eplb.synthetic import PRESETS


def command(
    preset: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"Model to imitate: {', '.join(PRESETS)}.")
    ],
    target: TraceTarget,
    windows: int = 100,
    tokens: int = 100_000,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Generate loads that behave like those recorded from a model, and write them to a file.

    Options:
        windows: Number of windows.
        tokens: Tokens that the model processes in a window.
        seed: Random seed of the loads.
    """
    check_writable(target)
    loads = synthetic.trace(preset, num_windows=windows, tokens_per_window=tokens, seed=seed)
    save_trace(loads, target)
    say_written(loads, target, as_json=as_json)
