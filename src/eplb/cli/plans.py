"""`eplb plan` and `eplb demo`: a placement for loads, and what it gains."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from eplb import synthetic
from eplb.checks import printable
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import (
    AsJson,
    FirstLayer,
    Gpus,
    Groups,
    Nodes,
    Output,
    Slots,
    Threads,
    TraceFile,
    cluster_of,
)
from eplb.cli.running import (
    CurrentGpus,
    MaxMoves,
    Moves,
    budget_of,
    check_moves_options,
    load_current,
    moe_slots,
)
from eplb.cli.terminal import print_summary
from eplb.cluster import Cluster
from eplb.comparison_text import print_comparison
from eplb.errors import OptionError
from eplb.formats import load_trace
from eplb.formats.placements import (
    ENGINES,
    LAYERS,
    MOE_ONLY,
    Engine,
    check_placement_path,
    save_placement,
)
from eplb.loads import LoadTrace
from eplb.planning.forecast import FORECASTS, Scenarios, named_forecast
from eplb.planning.plan import Effort, Plan, plan
from eplb.planning.summary import Summary, summarize
from eplb.records import check_writable
from eplb.replaying.backtest import Backtest, backtest
from eplb.replaying.compare import compare

__all__ = ["demo", "plan_file"]

_DEMO_WINDOWS, _DEMO_TOKENS = 16, 100_000

_BEST = "best"
_TRIALS = 16
"""Plans that each forecast may make while it is tried, about."""


def plan_file(
    trace: TraceFile,
    gpus: Gpus,
    nodes: Nodes = 1,
    slots: Slots = None,
    groups: Groups = 1,
    forecast: Annotated[
        str,
        typer.Option(
            help=f"What to plan for, of several windows: {_BEST} of those that are tried, "
            f"or {', '.join(FORECASTS)}."
        ),
    ] = _BEST,
    effort: Annotated[
        Effort, typer.Option(help="How much work a plan may be, in fixed amounts.")
    ] = "default",
    current: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACEMENT",
            help="The placement that runs, in a file as `eplb evaluate` reads: move from there, "
            "and only what gains; --slots are as many on each GPU as now. [default: plan afresh]",
            show_default=False,
        ),
    ] = None,
    max_moves: MaxMoves = None,
    move_cost: Annotated[
        float | None,
        typer.Option(
            help="What the busiest GPU of a layer is to lose at least for each move, in the unit "
            "of the loads. [default: 0.05 % of a GPU's load, or 0 with --max-moves]",
            show_default=False,
        ),
    ] = None,
    current_gpus: CurrentGpus = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the placement here, in the form of --to."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help=f"Whose form to write it in: {', '.join(ENGINES)}. [default: {ENGINES[0]}]",
            show_default=False,
        ),
    ] = None,
    first_layer: FirstLayer = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Plan a placement for the loads in a file or folder, and write it for an engine.

    Of several windows, the forecasts of `eplb.forecast` are tried on them first, each scored by
    what came next, and the best one says what to plan for.
    """
    target = _target(output, to, first_layer)
    if output is not None:
        check_writable(output, trace)
    check_moves_options(current, max_moves, move_cost, current_gpus)
    if forecast != _BEST:
        named_forecast(forecast)
    loads = load_trace(trace)
    moves: Moves | None = None
    if current is None:
        cluster = cluster_of(loads.num_experts, gpus, nodes, slots)
    else:
        running, cluster = load_current(
            current, loads, gpus, nodes, slots, current_gpus, first_layer
        )
        num_slots = moe_slots(loads, cluster)
        moves = Moves(current, running, num_slots, budget_of(max_moves, num_slots), move_cost)
    expected, said, tried = _expected(loads, cluster, groups, forecast, effort, threads)
    made, summary = _timed_plan(expected, cluster, groups, effort, threads, said, moves)
    if target is not None:
        target.write(made, loads)
    if as_json:
        _print_json(
            summary,
            output,
            **({} if moves is None else moves.to_json(made, expected)),
            to=None if target is None else target.engine,
            backtest=None if tried is None else tried.to_json(),
        )
        return
    _print(printable(trace), summary)
    if moves is not None:
        Console().print(moves.said(made, expected), highlight=False, markup=False)
    if target is not None:
        target.say(loads)


def _expected(
    trace: LoadTrace,
    cluster: Cluster,
    groups: int,
    forecast: str,
    effort: Effort,
    threads: int | None,
) -> tuple[Scenarios, str | None, Backtest | None]:
    """What to plan for, in windows and in words, and how that was found."""
    if trace.num_windows == 1:
        return Scenarios(trace.loads, np.ones(1)), None, None
    if forecast != _BEST:
        expected = named_forecast(forecast)(trace.loads)
        return (
            expected,
            f"Planned for: {forecast}, {_count(expected)} of {len(trace)} windows",
            None,
        )
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        console.status("trying forecasts; kernels are compiled once on a machine"),
    ):
        tried = backtest(
            trace,
            cluster,
            num_groups=groups,
            every=max(1, trace.num_windows // _TRIALS),
            effort=effort,
            threads=threads,
        )
    expected = named_forecast(tried.best)(trace.loads)
    scores = {score.policy: score.balancedness for score in tried.comparison.scores}
    said = (
        f"Planned for: {tried.best}, {_count(expected)} of {len(trace)} windows. On windows not "
        f"seen before it gave {scores[tried.best]:.4f} ({tried.comparison.windows} served, "
        f"{len(scores)} forecasts tried; the mean of windows gave {scores['mean']:.4f})"
    )
    return expected, said, tried


def _count(expected: Scenarios) -> str:
    number = len(expected.loads)
    return "1 scenario" if number == 1 else f"{number} scenarios"


def demo(
    gpus: Gpus = 32,
    nodes: Nodes = 4,
    slots: Slots = None,
    groups: Groups = 1,
    seed: Annotated[int, typer.Option(help="Of the random loads.")] = 0,
    output: Output = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Plan and replay loads made to behave like DeepSeek-V3's: no file is needed."""
    target = _target(output, None)
    if output is not None:
        check_writable(output)
    trace = synthetic.trace(
        "deepseek-v3", num_windows=_DEMO_WINDOWS, tokens_per_window=_DEMO_TOKENS, seed=seed
    )
    cluster = cluster_of(trace.num_experts, gpus, nodes, slots)
    whole = Scenarios(trace.total()[None], np.ones(1))
    made, summary = _timed_plan(whole, cluster, groups, "default", threads)
    with quitting_on_interrupt(console := Console(stderr=True)), console.status("replaying"):
        comparison = compare(trace, cluster, ("contiguous", "seed", "eplb"), num_groups=groups)
    if target is not None:
        target.write(made, trace)
    if as_json:
        _print_json(summary, output, comparison=comparison.to_json())
        return
    title = (
        f"Synthetic loads that behave like DeepSeek-V3's: {trace.num_windows} windows of "
        f"{_DEMO_TOKENS:,} tokens, seed {seed}"
    )
    _print(title, summary)
    if target is not None:
        target.say(trace)
    print()  # noqa: T201
    print_comparison(
        Console(), "The same, window by window, each scored before any plan has seen it", comparison
    )


@dataclass(frozen=True)
class _Target:
    """Where a placement goes, in whose form."""

    path: Path
    engine: Engine
    first_layer: int

    def write(self, made: Plan, trace: LoadTrace) -> None:
        """Write the placement that was planned for a trace."""
        save_placement(
            made.placement,
            self.path,
            to=self.engine,
            dense=trace.dense,
            first_layer=self.first_layer,
        )

    def say(self, trace: LoadTrace) -> None:
        """Tell what was written."""
        left_out = np.flatnonzero(trace.dense) + self.first_layer
        without = ""
        if self.engine in MOE_ONLY and left_out.size:
            without = f", without the layers that have no load ({_ranges(left_out.tolist())})"
        line = f"Placement written to {printable(self.path)} for {self.engine}{without}."
        Console().print(line, highlight=False, markup=False)


def _target(output: Path | None, to: str | None, first_layer: int = 0) -> _Target | None:
    """What was asked for, found out before any work is done."""
    if output is None:
        if to is not None:
            raise OptionError("--to says how a placement is written: give --output too")
        return None
    if not 0 <= first_layer < LAYERS:
        raise OptionError(f"--first-layer is {first_layer}: give 0 to {LAYERS - 1}")
    return _Target(output, check_placement_path(output, to or ENGINES[0]), first_layer)


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in short: "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)


def _print_json(summary: Summary, output: Path | None, **more: object) -> None:
    written = None if output is None else str(output)
    print(json.dumps({**summary.to_json(), "output": written, **more}))  # noqa: T201


def _print(title: str, summary: Summary) -> None:
    print_summary(Console(), title, summary)


def _timed_plan(
    expected: Scenarios,
    cluster: Cluster,
    groups: int,
    effort: Effort,
    threads: int | None,
    said: str | None = None,
    moves: Moves | None = None,
) -> tuple[Plan, Summary]:
    """Plan twice: the first time tells what a new process waits, the second what planning takes."""
    console = Console(stderr=True)
    seconds = []
    with (
        quitting_on_interrupt(console),
        console.status("planning; kernels are compiled once on a machine"),
    ):
        for _ in range(2):
            begin = time.perf_counter()
            made = plan(
                expected.loads,
                cluster,
                num_groups=groups,
                weights=expected.weights,
                current=None if moves is None else moves.placement,
                max_moves=None if moves is None else moves.most,
                move_cost=None if moves is None else moves.cost,
                effort=effort,
                threads=threads,
            )
            seconds.append(time.perf_counter() - begin)
    return made, summarize(expected.loads, made, groups, seconds[1], seconds[0], said)
