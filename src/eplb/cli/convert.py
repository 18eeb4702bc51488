"""`eplb convert`: a trace in another form."""

from dataclasses import dataclass
from typing import Annotated

import typer

from eplb.cli.options import AsJson, TraceFiles, TraceTarget
from eplb.cli.reading import ReadingOptions
from eplb.cli.terminal import say_written
from eplb.files import check_writable
from eplb.formats import save_trace


@dataclass(frozen=True)
class _Unmerged(ReadingOptions):
    """The windows as they are, unless something else is asked for."""

    merge: Annotated[str, typer.Option(metavar="auto|none|all|N")] = "none"


def command(
    traces: TraceFiles, target: TraceTarget, *, reading: _Unmerged, as_json: AsJson = False
) -> None:
    """Write loads in another format. The ending of OUT chooses the format."""
    check_writable(target, *traces)
    loads = reading.loads(traces, to_stderr=as_json)
    save_trace(loads, target)
    say_written(loads, target, as_json=as_json)
