"""`eplb convert`: a trace in another form."""

from eplb.cli.options import AsJson, TraceFiles, TraceTarget
from eplb.cli.reading import (
    Axes,
    Counters,
    Merge,
    read_loads,
)
from eplb.cli.terminal import say_written
from eplb.files import check_writable
from eplb.formats import save_trace

__all__ = ["command"]


def command(
    traces: TraceFiles,
    target: TraceTarget,
    axes: Axes = None,
    counters: Counters = False,
    merge: Merge = "none",
    as_json: AsJson = False,
) -> None:
    """Write loads in another format. The ending of OUT chooses the format."""
    check_writable(target, *traces)
    loads = read_loads(traces, axes, counters, merge, to_stderr=as_json)
    save_trace(loads, target)
    say_written(loads, target, as_json=as_json)
