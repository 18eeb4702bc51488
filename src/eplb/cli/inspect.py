"""`eplb inspect`: what a trace holds."""

from rich.console import Console

from eplb.checks import in_few_words
from eplb.cli.options import AsJson, TraceFiles
from eplb.cli.reading import (
    Axes,
    Counters,
    Merge,
    read_loads,
)
from eplb.cli.terminal import print_inspection, print_json
from eplb.describe import heat, inspect_trace

__all__ = ["command"]


def command(
    traces: TraceFiles,
    axes: Axes = None,
    counters: Counters = False,
    merge: Merge = "auto",
    as_json: AsJson = False,
) -> None:
    """Describe a file of loads: its shape, how uneven the loads are, and how they drift."""
    loads = read_loads(traces, axes, counters, merge, to_stderr=as_json)
    found = inspect_trace(loads)
    if as_json:
        print_json(found.to_json())
    else:
        print_inspection(Console(), in_few_words(traces), found, heat(loads))
