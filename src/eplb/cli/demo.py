"""`eplb demo`: plans and replays synthetic loads like DeepSeek-V3's; no file is needed."""

from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from eplb import synthetic
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import (
    AsJson,
    Gpus,
    Groups,
    Nodes,
    Output,
    Slots,
    Threads,
    cluster_of,
    target_of,
)
from eplb.cli.plan import print_json, timed_plan
from eplb.cli.terminal import print_comparison, print_summary
from eplb.files import check_writable
from eplb.planning.forecast import Scenarios
from eplb.replaying.compare import compare

__all__ = ["command"]

_WINDOWS, _TOKENS = 16, 100_000


def command(
    gpus: Gpus = 32,
    nodes: Nodes = 4,
    slots: Slots = None,
    groups: Groups = 1,
    seed: Annotated[int, typer.Option(help="Random seed of the loads.")] = 0,
    output: Output = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Plan and replay synthetic loads that behave like DeepSeek-V3's. No file is needed."""
    target = target_of(output, None)
    if output is not None:
        check_writable(output)
    trace = synthetic.trace(
        "deepseek-v3", num_windows=_WINDOWS, tokens_per_window=_TOKENS, seed=seed
    )
    cluster = cluster_of(trace.num_experts, gpus, nodes, slots)
    whole = Scenarios(trace.total()[None], np.ones(1))
    made, summary = timed_plan(whole, cluster, groups, "default", threads)
    with quitting_on_interrupt(console := Console(stderr=True)), console.status("replaying"):
        comparison = compare(trace, cluster, ("contiguous", "seed", "eplb"), num_groups=groups)
    if target is not None:
        target.write(made, trace)
    if as_json:
        print_json(summary, output, comparison=comparison.to_json())
        return
    title = (
        f"Synthetic loads that behave like DeepSeek-V3's: {trace.num_windows} windows of "
        f"{_TOKENS:,} tokens, seed {seed}"
    )
    print_summary(Console(), title, summary)
    if target is not None:
        target.say(trace)
    print()  # noqa: T201
    print_comparison(
        Console(),
        "The same loads window by window, each scored before any plan has seen it",
        comparison,
    )
