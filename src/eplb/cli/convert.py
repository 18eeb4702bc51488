"""`eplb convert`: a trace in another form."""

from eplb.cli.options import Merge, TraceFile, TraceTarget, read_loads
from eplb.cli.terminal import say
from eplb.files import check_writable
from eplb.formats import save_trace

__all__ = ["command"]


def command(trace: TraceFile, target: TraceTarget, merge: Merge = "none") -> None:
    """Write loads in another format. The ending of OUT chooses the format."""
    check_writable(target, trace)
    loads = read_loads(trace, merge)
    save_trace(loads, target)
    say(f"{loads!r} written to {target}.")
