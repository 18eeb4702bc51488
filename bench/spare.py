"""Spare slots by layer: does it pay to give more of them to the layers that gain most by them?

    python bench/spare.py --traces ../shared/traces

Each layer is planned with so many spare slots, from what was seen, and scored on loads that were
not. The slots of all layers are spread evenly, or given to the layers where a measure falls most,
as an exact programme chooses: the peaks of the plans on the windows that they were made from
("seen"), or on those of them that are left out of the plan in turn ("left out"). What the loads not
seen would have chosen themselves is what hindsight gains.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from options import OneLineParser, positive
from rich.table import Table
from tables import console_for_tables
from unseen_cells import RULES, Case, Cell, make_cells

import eplb
from eplb import Cluster

F64 = NDArray[np.float64]

_SPARE = (4, 8, 16, 32)
"""Spare slots of a layer on average."""
_MOST_TIMES = 4
"""A layer gets up to so many times the average."""
_STEPS = (0, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of spare slots that a layer may get."""
_PARTS = ("held-out", "from-one", "in-order")
_CHOSEN = ("seen", "left out", "hindsight")
_MOST_LEFT_OUT = 6
"""Plans from all windows but some, so that each is left out of one."""


@dataclass(frozen=True)
class Row:
    """What so many spare slots a layer reach on loads not seen.

    Attributes:
        part: the loads, as of `unseen.py`.
        dispatch: the rule that was planned for and scored.
        spare: slots of a layer on average, beyond one for each expert.
        even: balancedness with as many in each layer: mean over peak, of all layers together.
        chosen: the same where layers have theirs by a measure.
        worst: over the cases, the least of that over the former, less 1.
    """

    part: str
    dispatch: str
    spare: int
    even: float
    chosen: dict[str, float]
    worst: dict[str, float]


def cluster_of(num_experts: int, num_gpus: int, spare: int) -> Cluster:
    """GPUs of so many spare slots in all, none with more than one more than another."""
    slots = num_experts + spare
    return Cluster(num_gpus, slots_per_gpu=[(slots + gpu) // num_gpus for gpu in range(num_gpus)])


def over_mean(seen: F64, scored: F64, cluster: Cluster, dispatch: str) -> F64:
    """[L] peak over mean, the average over windows, on `scored` of a plan from `seen`."""
    made = eplb.plan(seen, cluster, dispatch=dispatch, threads=1)
    peaks: F64 = np.nan_to_num(1.0 / made.placement.ratios(scored, dispatch), nan=1.0)
    mean: F64 = peaks.mean(axis=0)
    return mean


def measured(case: Case, num_gpus: int, steps: list[int], dispatch: str) -> dict[str, F64]:
    """[K, L] peak over mean of layers with so many spare slots, by each measure."""
    num_experts = case.seen.shape[2]
    found: dict[str, list[F64]] = {name: [] for name in _CHOSEN}
    for spare in steps:
        cluster = cluster_of(num_experts, num_gpus, spare)
        found["seen"].append(over_mean(case.seen, case.seen, cluster, dispatch))
        found["hindsight"].append(over_mean(case.seen, case.scored, cluster, dispatch))
        if len(case.seen) > 1:
            found["left out"].append(_left_out(case.seen, cluster, dispatch))
    return {name: np.array(values) for name, values in found.items() if values}


def _left_out(seen: F64, cluster: Cluster, dispatch: str) -> F64:
    """[L] peak over mean on the windows that are left out of plans in turn."""
    parts = np.array_split(np.arange(len(seen)), min(len(seen), _MOST_LEFT_OUT))
    scores = [
        over_mean(np.delete(seen, part, axis=0), seen[part], cluster, dispatch) for part in parts
    ]
    mean: F64 = np.mean(scores, axis=0)
    return mean


def spend(falls: F64, steps: list[int], total: int) -> NDArray[np.int64]:
    """[L] which of the `steps` [K] each layer takes so that its measures [K, L] add up to least,
    with `total` slots in all.
    """
    num_layers = falls.shape[1]
    best = np.zeros(total + 1)
    taken = np.zeros((num_layers, total + 1), np.int64)
    for layer in range(num_layers):
        lowest = np.full(total + 1, np.inf)
        for number, spare in enumerate(steps):
            if spare <= total:
                with_it = np.full(total + 1, np.inf)
                with_it[spare:] = best[: total + 1 - spare] + falls[number, layer]
                taken[layer, with_it < lowest] = number
                lowest = np.minimum(lowest, with_it)
        best = lowest
    chosen, left = np.zeros(num_layers, np.int64), total
    for layer in reversed(range(num_layers)):
        chosen[layer] = taken[layer, left]
        left -= steps[chosen[layer]]
    return chosen


def rows_of(part: str, cases: list[Case], num_gpus: int, dispatch: str) -> Iterator[Row]:
    """A row for each number of spare slots."""
    num_layers, num_experts = cases[0].seen.shape[1:]
    steps = [each for each in _STEPS if each <= (num_gpus - 1) * num_experts]
    every = [measured(case, num_gpus, steps, dispatch) for case in cases]
    for spare in _SPARE:
        some = [each for each in steps if each <= _MOST_TIMES * spare]
        even: list[float] = []
        chosen: dict[str, list[float]] = {name: [] for name in every[0]}
        for found in every:
            scored = found["hindsight"][: len(some)]
            even.append(1.0 / scored[some.index(spare)].mean())
            for name, falls in found.items():
                numbers = spend(falls[: len(some)], some, spare * num_layers)
                chosen[name].append(1.0 / scored[numbers, np.arange(num_layers)].mean())
        worst = {name: float(min(np.array(each) / even - 1.0)) for name, each in chosen.items()}
        means = {name: float(np.mean(each)) for name, each in chosen.items()}
        yield Row(part, dispatch, spare, float(np.mean(even)), means, worst)


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = OneLineParser(prog="bench/spare.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--traces", type=Path, metavar="DIR", help="recorded loads; made ones without")
    add("--dispatch", choices=list(RULES), help="one rule (both)")
    add("--only", choices=_PARTS, help="one part")
    add("--cases", type=positive, default=6, help="plans of each part and number of slots (6)")
    add("--every", type=positive, default=1, help="only each so many-th layer (1)")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    try:
        rows = list(_rows(options))
    except eplb.EplbError as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
    else:
        _show(rows)
    return 0


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    parts = [options.only] if options.only else list(_PARTS)
    # The first cell of each part.
    cells: dict[str, Cell] = {}
    for cell in make_cells(options.traces, parts, "best"):
        cells.setdefault(cell.part, cell)
    for dispatch in [options.dispatch] if options.dispatch else RULES:
        for cell in cells.values():
            count = min(options.cases, len(cell.cases))
            some = np.linspace(0, len(cell.cases) - 1, count).astype(np.int64)
            cases = [
                Case(case.seen[:, :: options.every], case.scored[:, :: options.every])
                for case in (cell.cases[number] for number in some)
            ]
            yield from rows_of(cell.part, cases, cell.cluster.num_gpus, dispatch)


def _show(rows: list[Row]) -> None:
    table = Table(title="balancedness on loads not seen", title_justify="left")
    for heading in ("part", "dispatch", "spare a layer", "evenly"):
        table.add_column(heading)
    for heading in _CHOSEN:
        table.add_column(heading, justify="right")
    for row in rows:
        found = [
            f"{row.chosen[name]:.4f} ({row.chosen[name] / row.even - 1.0:+.2%}, "
            f"worst {row.worst[name]:+.2%})"
            if name in row.chosen
            else ""
            for name in _CHOSEN
        ]
        table.add_row(row.part, row.dispatch, f"{row.spare}", f"{row.even:.4f}", *found)
    console_for_tables().print(table)


if __name__ == "__main__":
    sys.exit(main())
