"""`eplb watch`: how GPUs are loaded now, again and again."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from eplb.checks import real_number, whole_number
from eplb.cli.options import AsJson, Nodes, Slots, cluster_of
from eplb.cli.terminal import print_json, print_watched_loads, print_watched_metrics
from eplb.engines.watching import last_windows, scrape
from eplb.errors import OptionError
from eplb.formats import load_placement
from eplb.placement import Placement

_PLANNED_AT = "eplb_last_plan_timestamp_seconds"


def command(
    source: Annotated[str, typer.Argument(metavar="FOLDER|URL")],
    gpus: int | None = None,
    nodes: Nodes = 1,
    slots: Slots = None,
    placement: Path | None = None,
    windows: int = 1,
    every: float = 5.0,
    once: Annotated[bool, typer.Option("--once")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how GPUs are loaded, from the loads that vLLM's plug-in records, or what the metrics of
    a plug-in say. Ctrl-C ends it.

    Options:
        source: The folder that EPLB_RECORD names, or the address of an engine's metrics.
        gpus: Number of GPUs (EP ranks) that the loads of a folder are shown on. [default: what the
            placement's file says]
        placement: The placement that runs. [default: the layout that engines start with]
        windows: Number of the last windows to add up.
        every: Seconds from one look to the next.
        once: Look once, and end.
    """
    every = real_number(every, "--every", above=True)
    windows = whole_number(windows, "--windows")

    def show(console: Console) -> None:
        if source.startswith(("http://", "https://")):
            by_role = scrape(source)
            planned = [series.get(_PLANNED_AT, 0.0) for series in by_role.values()]
            age = max(0.0, time.time() - max(planned)) if max(planned) > 0.0 else None
            if as_json:
                print_json({"age": age, "metrics": by_role})
            else:
                print_watched_metrics(console, source, by_role, age)
            return
        trace = last_windows(Path(source), windows)
        if placement is not None:
            running = load_placement(
                placement, gpus, nodes, num_experts=trace.num_experts, dense=trace.dense
            )
        elif gpus is None:
            raise OptionError(
                "give --gpus, or --placement with a file that says how many there are"
            )
        else:
            cluster = cluster_of(trace.num_experts, gpus, nodes, slots)
            running = Placement.contiguous(trace.num_layers, trace.num_experts, cluster)
        recorded = math.nan if trace.times is None else float(trace.times[-1])
        age = max(0.0, time.time() - recorded) if recorded > 0.0 else None
        gpu_load = running.gpu_load(trace.loads)
        if as_json:
            print_json({"age": age, "gpu_load": gpu_load.sum(axis=0).tolist()})
        else:
            print_watched_loads(console, source, gpu_load, trace.num_experts, age)

    console = Console()
    with _without_notes():
        if once or as_json or not console.is_terminal:
            show(console)
            while not once:
                time.sleep(every)
                show(console)
            return
        with Live(console=console, auto_refresh=False) as live:
            while True:
                with console.capture() as captured:
                    show(console)
                live.update(Text.from_ansi(captured.get()), refresh=True)
                time.sleep(every)


@contextmanager
def _without_notes() -> Iterator[None]:
    """Notes on files would be told again at each look."""
    logger = logging.getLogger("eplb.formats")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
