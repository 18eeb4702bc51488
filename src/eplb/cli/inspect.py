"""`eplb inspect`: what a trace holds."""

from rich.console import Console

from eplb.checks import in_few_words
from eplb.cli.options import AsJson, TraceFiles
from eplb.cli.reading import ReadingOptions
from eplb.cli.terminal import print_inspection, print_json
from eplb.describe import heat, inspect_trace


def command(traces: TraceFiles, *, reading: ReadingOptions, as_json: AsJson = False) -> None:
    """Describe a file of loads: its shape, how uneven the loads are, and how they drift."""
    loads = reading.loads(traces, to_stderr=as_json)
    found = inspect_trace(loads)
    if as_json:
        print_json(found.to_json())
    else:
        print_inspection(Console(), in_few_words(traces), found, heat(loads), loads.layer_numbers)
