"""How many windows, how much history and how many spare slots to plan for: the data and figures.

    python bench/study.py --traces path/to/traces
    python bench/study.py --traces path/to/traces --figure spare --json

docs/study.md tells what is found; `--help` tells the options. On one thread.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from options import OneLineParser
from study_loads import FULL, MOST_PLANNED, QUICK, Loads, Six, Steps, read_loads
from study_plots import Row, draw, titled
from study_tables import tables

import eplb
from eplb import Cluster
from eplb.balance import difference_interval
from eplb.planning.forecast import Clusters, Forecast, Mean, Recent, Scenarios

__all__ = ["FIGURES", "main", "merged"]

_WINDOWS = (1, 2, 4, 8, 16, 32)
_SPARE = (0, 1, 2, 3, 4)
_CUT = (8, 32)
"""Windows of history that are also cut in all ways, as the longest is."""
_KINDS = 8
"""Clusters, and windows where a history is cut in a fixed number."""


def _windows(loads: Loads) -> list[Row]:
    """Balancedness of the next window by windows planned for, each a scenario or their mean."""
    rows = []
    for six in loads.sixes:
        others = range(len(six.loads) - 1)
        for number in sorted({min(each, len(others)) for each in _WINDOWS}):
            mean, each = (
                [
                    _tried(np.delete(six.loads, held, 0)[list(chosen)], rule, six.cluster)(
                        six.loads[held]
                    )
                    for held in range(len(six.loads))
                    for chosen in combinations(others, number)
                ]
                for rule in (Mean(number), Recent(number))
            )
            rows += _compared(six, number, mean, each, in_order=False)
    for steps in loads.steps:
        for number in _WINDOWS:
            mean, each = (
                _next_windows(steps, rule, number, steps.served)
                for rule in (Mean(number), Recent(number))
            )
            rows += _compared(steps, number, mean, each, in_order=True)
    return rows


def _compared(
    of: Six | Steps, number: int, mean: list[float], each: list[float], *, in_order: bool
) -> list[Row]:
    """The two lines at one number of windows; how far apart they are, where it can be said."""
    ones = np.ones(len(mean))
    interval = (
        difference_interval(np.array(each), ones, np.array(mean), ones, 1) if in_order else None
    )
    gain = None if interval is None else (interval.low, interval.high)
    gpus = of.cluster.num_gpus
    return [
        Row(of.name, gpus, "mean", number, float(np.mean(mean)), len(mean)),
        Row(of.name, gpus, "scenarios", number, float(np.mean(each)), len(each), gain),
    ]


def _history(loads: Loads) -> list[Row]:
    """Balancedness of the next window by how long the history is, and in how many it is cut."""
    rows = []
    for steps in loads.steps:
        longest = steps.history
        lengths = [1 << power for power in range(2, longest.bit_length())]
        for length in lengths:
            cuts = {1, min(_KINDS, length), length}
            if length in (*_CUT, longest):
                cuts |= {1 << power for power in range(length.bit_length())}
            for cut in sorted(cuts):
                found = _next_windows(steps, merged(cut), length, steps.served_late)
                line = f"cut in {cut}"
                rows.append(_history_row(steps, line, length, found))
            found = _next_windows(steps, Clusters(_KINDS, length), length, steps.served_late)
            rows.append(_history_row(steps, "clusters", length, found))
    return rows


def _history_row(steps: Steps, line: str, length: int, found: list[float]) -> Row:
    value = float(np.mean(found))
    return Row(steps.name, steps.cluster.num_gpus, line, length, value, len(found))


def merged(number: int) -> Forecast:
    """The rule by which a history is cut into so many windows, whose tokens are added up."""

    def rule(loads: np.ndarray[Any, np.dtype[np.float64]]) -> Scenarios:
        cut = loads.reshape(number, -1, *loads.shape[1:]).sum(axis=1)
        return Recent(number)(cut)

    return rule


def _spare(loads: Loads) -> list[Row]:
    """Balancedness on the windows planned for, and on others, by spare slots on each GPU."""
    rows = []
    for six in loads.sixes:
        for gpus in (six.cluster.num_gpus, 2 * six.cluster.num_gpus):
            for spare in _SPARE:
                cluster = spared(six.loads.shape[2], gpus, spare)
                served = [
                    _seen_and_not(np.delete(six.loads, held, 0), six.loads[held], cluster)
                    for held in range(len(six.loads))
                ]
                rows += _spare_rows(six.name, gpus, spare, served)
    for steps in loads.steps:
        for gpus in (steps.cluster.num_gpus, 2 * steps.cluster.num_gpus):
            for spare in _SPARE:
                cluster = spared(steps.loads.shape[2], gpus, spare)
                served = [
                    _seen_and_not(steps.loads[at - MOST_PLANNED : at], steps.loads[at], cluster)
                    for at in steps.served[:: steps.spare_stride]
                ]
                rows += _spare_rows(steps.name, gpus, spare, served)
    return rows


def spared(num_experts: int, num_gpus: int, spare: int) -> Cluster:
    """A cluster with so many slots on each GPU beyond those that the experts fill."""
    return Cluster(num_gpus=num_gpus, slots_per_gpu=-(-num_experts // num_gpus) + spare)


def _seen_and_not(seen: Any, unseen: Any, cluster: Cluster) -> tuple[float, float]:
    score = _tried(seen, Recent(len(seen)), cluster)
    return float(np.mean([score(window) for window in seen])), score(unseen)


def _spare_rows(name: str, gpus: int, spare: int, served: list[tuple[float, float]]) -> list[Row]:
    return [
        Row(name, gpus, line, spare, float(np.mean(values)), len(values))
        for line, values in zip(("seen", "unseen"), zip(*served, strict=True), strict=True)
    ]


def _next_windows(steps: Steps, rule: Forecast, length: int, served: Sequence[int]) -> list[float]:
    """Balancedness of each window served, by a plan from those just before it."""
    return [
        _tried(steps.loads[at - length : at], rule, steps.cluster)(steps.loads[at]) for at in served
    ]


def _tried(seen: Any, rule: Forecast, cluster: Cluster) -> Callable[[Any], float]:
    """What scores a window under the plan for some others."""
    expected = rule(seen)
    plan = eplb.plan(expected.loads, cluster, weights=expected.weights, threads=1)

    def score(window: Any) -> float:
        load = plan.placement.gpu_load(window)
        loaded = load.any(axis=-1)
        return float((load.mean(axis=-1)[loaded] / load.max(axis=-1)[loaded]).mean())

    return score


FIGURES: dict[str, Callable[[Loads], list[Row]]] = {
    "windows": _windows,
    "history": _history,
    "spare": _spare,
}


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = OneLineParser(prog="bench/study.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add(
        "--traces",
        type=Path,
        required=True,
        metavar="DIR",
        help="recorded loads: DIR/deepseek_v3/*.json and DIR/gptoss*.npz",
    )
    add("--figure", choices=tuple(FIGURES), help="one of the figures (all)")
    add("--out", type=Path, default=Path("docs/figures"), metavar="DIR", help="(docs/figures)")
    add("--quick", action="store_true", help="few windows and layers, to try whether it runs")
    add("--json", action="store_true", help="print the data as one JSON object")
    options = parser.parse_args()
    try:
        loads = read_loads(options.traces, QUICK if options.quick else FULL)
        options.out.mkdir(parents=True, exist_ok=True)
    except (eplb.EplbError, OSError) as error:
        parser.error(str(error))
    told = {}
    for name in [options.figure] if options.figure else FIGURES:
        rows = FIGURES[name](loads)
        path = options.out / f"{name}.svg"
        title = titled(name, rows)
        try:
            draw(name, rows, loads, path)
        except OSError as error:
            parser.error(str(error))
        told[name] = {"title": title, "rows": [asdict(row) for row in rows]}
        if not options.json:
            print(f"{path}: {title}\n\n{tables(name, rows)}\n")
    if options.json:
        print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
