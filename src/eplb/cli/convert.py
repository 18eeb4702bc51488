"""`eplb convert`: a trace in another form."""

from eplb.cli.options import TraceFile, TraceTarget
from eplb.cli.reading import (
    Axes,
    Counters,
    Merge,
    read_loads,
)
from eplb.cli.terminal import say
from eplb.files import check_writable
from eplb.formats import save_trace

__all__ = ["command"]


def command(
    trace: TraceFile,
    target: TraceTarget,
    axes: Axes = None,
    counters: Counters = False,
    merge: Merge = "none",
) -> None:
    """Write loads in another format. The ending of OUT chooses the format."""
    check_writable(target, trace)
    loads = read_loads(trace, axes, counters, merge)
    save_trace(loads, target)
    say(f"{loads!r} written to {target}.")
