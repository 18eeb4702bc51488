"""`eplb frontier`: balancedness against the number of moves, from the placement that runs."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from eplb.checks import in_few_words
from eplb.cli import options
from eplb.cli.interrupts import PLANNING, working
from eplb.cli.nodes import RoutedBy, traffic_of
from eplb.cli.pins import PinOptions
from eplb.cli.plot import check_plot_path, plot_frontier
from eplb.cli.reading import LayerOptions
from eplb.cli.running import RunningOptions
from eplb.cli.terminal import print_frontier, print_json, say
from eplb.errors import LoadsError
from eplb.files import check_writable
from eplb.moving.frontier import Frontier, frontier
from eplb.planning.forecast import Recent, Scenarios, in_no_order
from eplb.planning.problem import Effort


def command(
    traces: options.TraceFiles,
    *,
    running: RunningOptions,
    groups: options.Groups = 1,
    points: int = 20,
    plot: Path | None = None,
    effort: Effort = "default",
    reading: LayerOptions,
    dispatch: options.DispatchRule = None,
    traffic: RoutedBy = None,
    pins: PinOptions,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Show balancedness against moves, from the placement that runs to a plan from scratch.

    If there are several windows, the plans are for the last 32, each as a scenario.

    Options:
        points: Maximum number of points. They are denser at few moves.
        plot: Draw the curve to this file, .svg or .png (needs matplotlib).
        effort: Work that the plan from scratch may take.
    """
    if plot is not None:
        check_plot_path(plot)
        check_writable(plot, *traces)
    rule, wished = options.rule_of(dispatch), pins.wished()
    loads = reading.loads(traces, to_stderr=as_json)
    placement, cluster = running.load(loads, reading)
    num_slots = options.moe_slots(loads, cluster)
    if not num_slots:
        raise LoadsError(
            f"{in_few_words(traces)}: no layer has any load: there is nothing to balance"
        )
    routed = traffic_of(traffic, None, loads, cluster)
    expected = (Recent() if loads.ordered else in_no_order(Recent()))(loads.loads)
    if loads.num_windows == 1:
        expected = Scenarios(loads.loads, np.ones(1))
    with working(PLANNING):
        found = frontier(
            expected.loads,
            cluster,
            placement,
            num_groups=groups,
            weights=expected.weights,
            points=points,
            effort=effort,
            dispatch=rule,
            traffic=routed,
            pins=None if wished is None else wished.at_layers(loads.layers),
            threads=threads,
        )
    # Printed before it is drawn, for a disk may be full.
    if as_json:
        print_json(_to_json(found, num_slots, plot))
    else:
        print_frontier(
            Console(), f"{in_few_words(traces)}, from {running.current}", loads, found, num_slots
        )
    if plot is not None:
        plot_frontier(plot, found, num_slots)
        if not as_json:
            say(f"The curve is drawn in {plot}.")


def _to_json(found: Frontier, num_slots: int, plot: Path | None) -> dict[str, Any]:
    columns = {
        "moves": found.moves,
        "moved": found.moves / num_slots,
        "balancedness": found.balancedness,
        "peak": found.peak,
    }
    if found.other_nodes is not None:
        columns["other_nodes"] = found.other_nodes
    return {
        "slots_of_layers_with_load": num_slots,
        "dispatch": found.dispatch,
        "points": [
            dict(zip(columns, row, strict=True))
            for row in zip(*(column.tolist() for column in columns.values()), strict=True)
        ],
        "plot": plot,
    }
