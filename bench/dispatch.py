"""What rules of dispatch make of a plan, and the best split beside a linear programme in HiGHS.

    python bench/dispatch.py --traces path/to/traces --check

For each cluster, a plan is made for one recorded workload of DeepSeek-V3. The first table has its
balancedness under each rule, on that workload and on the five others. The second has the times for
all layers of one workload on one thread, and how far the peak is from the linear programme's; and
one split for all six workloads. The third has tables of dispatch beside SGLang's own rule. The
fourth has plans for SGLang's rule beside those for an even split, both scored under the rule. Then
come batches that are dispatched one by one (batches.py); --only takes one of these parts.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bars import Bar
from batches import of_batches, placed_for_batches
from numpy.typing import NDArray
from options import OneLineParser
from rich.table import Table
from scipy.optimize import linprog
from scipy.sparse import coo_matrix
from tables import console_for_tables, show_bars

import eplb
from eplb.dispatching.dispatch import _level
from eplb.dispatching.rules import RULES, TABLES, near_share, split_of_table
from eplb.solver.engine_rules import SGLANG, expected_parts


@dataclass(frozen=True)
class Cell:
    """A cluster, and what is asked of it, where anything is: most milliseconds of the most even
    loads and of the peak alone; least balancedness of tables that are free and that stay near; and
    of plans for SGLang's rule, on the load planned for as expected and by the table, and on a
    workload held out as expected.
    """

    cluster: eplb.Cluster
    most: tuple[float, float] | None = None
    least: tuple[float, float] | None = None
    planned: tuple[float, float, float] | None = None


CELLS = {
    "288/32/4": Cell(eplb.Cluster(32, 4, 9), (5.0, 2.0), (0.992, 0.98), (0.994, 0.99, 0.925)),
    "320/64/8": Cell(eplb.Cluster(64, 8, 5), (10.0, 4.0), (0.992, 0.99), (0.988, 0.985, 0.88)),
    "288/144/18": Cell(eplb.Cluster(144, 18, 2)),
}
_REPEATS = 15


def least_peak(windows: NDArray[np.float64], row: NDArray[np.int64], num_gpus: int) -> float:
    """Mean peak over windows [T, E] of the best split for all of them, by HiGHS."""
    (num_windows, num_experts), per_gpu = windows.shape, len(row) // num_gpus
    edges = sorted({(int(expert), slot // per_gpu) for slot, expert in enumerate(row)})
    experts, gpus = map(np.array, zip(*edges, strict=True))
    number = len(edges)
    window = np.repeat(np.arange(num_windows), number)
    rows = np.r_[window * num_gpus + np.tile(gpus, num_windows), np.arange(num_windows * num_gpus)]
    columns = np.r_[
        np.tile(np.arange(number), num_windows),
        number + np.repeat(np.arange(num_windows), num_gpus),
    ]
    values = np.r_[windows[:, experts].ravel(), -np.ones(num_windows * num_gpus)]
    limits = coo_matrix((values, (rows, columns)))
    whole = coo_matrix(
        (np.ones(number), (experts, np.arange(number))), shape=(num_experts, number + num_windows)
    )
    cost = np.r_[np.zeros(number), np.full(num_windows, 1.0 / num_windows)]
    found = linprog(
        cost,
        limits,
        np.zeros(num_windows * num_gpus),
        whole,
        np.ones(num_experts),
        method="highs",
    )
    return float(found.fun)


def milliseconds(function: Callable[[], object]) -> float:
    """The least of several runs."""
    function()
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times) * 1e3


def of_tables(
    loads: NDArray[np.float64], cell: Cell, name: str, bars: list[Bar]
) -> NDArray[np.float64]:
    """Mean over workloads, each planned for, of tables: balancedness and what stays near."""
    cluster = cell.cluster
    even = np.full(cluster.num_gpus, 1.0 / cluster.num_gpus)
    rows = []
    for workload in loads:
        placement = eplb.plan(workload, cluster).placement
        theirs = TABLES["sglang"](placement.log2phy, cluster)
        near = near_share(theirs, workload, cluster)
        made = eplb.dispatch(placement, workload)
        begin = time.perf_counter()
        free = made.table()
        seconds = time.perf_counter() - begin
        tables = (free, made.table(keep_local=True))
        row = [placement.balancedness(workload, dispatch="sglang")]
        for table in tables:
            split = split_of_table(table, cluster.num_slots, even)
            row.append(placement.balancedness(workload, dispatch=split))
            row.append(near_share(table, workload, cluster) / near)
        rows.append([*row, seconds])
    means: NDArray[np.float64] = np.array(rows).mean(axis=0)
    if cell.least is not None:
        for what, found, least in (
            ("our table", means[1], cell.least[0]),
            ("our table, near over SGLang's", means[2], 0.99),
            ("keep_local", means[3], cell.least[1]),
            ("keep_local, near over SGLang's", means[4], 1.0),
        ):
            needed = f"at least {least:g}"
            bars.append(Bar(f"{name}: {what}", needed, f"{found:.4f}", found >= least - 1e-9))
    return means


def of_plans(
    loads: NDArray[np.float64], cell: Cell, name: str, bars: list[Bar]
) -> NDArray[np.float64]:
    """Mean over workloads of plans for an even split and for SGLang's rule, under that rule: as
    expected and by its table, on the load planned for and on one that is held out; and the times of
    both plans in ms, from one window and from the others.
    """
    cluster, rows = cell.cluster, []
    for i, workload in enumerate(loads):
        row, times = [], []
        for seen in (workload, np.delete(loads, i, axis=0)):
            for rule in ("even", "sglang"):
                begin = time.perf_counter()
                placement = eplb.plan(seen, cluster, dispatch=rule).placement
                times.append((time.perf_counter() - begin) * 1e3)
                split = expected_parts(
                    placement.phy2log, placement.num_experts, cluster.num_gpus, cluster.num_nodes,
                    SGLANG,
                )  # fmt: skip
                row += [placement.balancedness(workload, by) for by in (split, "sglang")]
        rows.append(row + times)
    means: NDArray[np.float64] = np.array(rows).mean(axis=0)
    if cell.planned is not None:
        for what, found, least in zip(
            ("as expected", "by the table", "held out, as expected"),
            means[[2, 3, 6]],
            cell.planned,
            strict=True,
        ):
            needed = f"at least {least:g}"
            bars.append(
                Bar(f"{name}: planned for SGLang, {what}", needed, f"{found:.4f}", found >= least)
            )
    return means


def at_most(what: str, found: float, needed: float) -> Bar:
    """A bar that a figure must not be above."""
    return Bar(what, f"at most {needed:g}", f"{found:.3g}", found <= needed)


def main() -> int:
    """Print the tables, and with --check say which bars are missed."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True, help="the folder of recorded loads")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    parser.add_argument(
        "--only", choices=("windows", "rule", "batch", "placed"), help="one part of it"
    )
    arguments = parser.parse_args()
    files = sorted((arguments.traces / "deepseek_v3").glob("*.json"))
    loads = np.stack([eplb.load_trace(file).loads[0] for file in files])
    loads = loads[:, loads.sum(axis=(0, 2)) > 0.0]
    scored = Table("slots/GPUs/nodes", *(f"{rule}, planned for" for rule in RULES))
    for rule in RULES:
        scored.add_column(f"{rule}, others", justify="right")
    timed = Table(
        "slots/GPUs/nodes", "all GPUs, ms", "peak alone, ms", "HiGHS, ms", "peak off by",
        "six windows, ms", "mean peak over HiGHS",
    )  # fmt: skip
    tabled = Table(
        "slots/GPUs/nodes", "SGLang's table", "ours", "near, over SGLang's", "keep_local",
        "its near, over SGLang's", "seconds",
    )  # fmt: skip
    planned = Table(
        "slots/GPUs/nodes", "seen: even", "by the table", "for the rule", "by the table",
        "held out: even", "by the table", "for the rule", "by the table",
        "ms, one window: even", "for the rule", "ms, the others: even", "for the rule",
    )  # fmt: skip
    bars: list[Bar] = []
    for name, cell in CELLS.items() if arguments.only in {None, "rule"} else ():
        if cell.planned is not None:
            of_them = of_plans(loads, cell, name, bars)
            planned.add_row(
                name, *(f"{each:.4f}" for each in of_them[:8]), *(f"{ms:.0f}" for ms in of_them[8:])
            )
    for name, cell in CELLS.items() if arguments.only in {None, "windows"} else ():
        cluster = cell.cluster
        placement = eplb.plan(loads[0], cluster).placement
        figures = [placement.balancedness(loads[0], rule) for rule in RULES]
        figures += [placement.balancedness(loads[1:], rule) for rule in RULES]
        scored.add_row(name, *(f"{figure:.4f}" for figure in figures))

        later = loads[3]
        whole = milliseconds(lambda: eplb.dispatch(placement, later, threads=1))  # noqa: B023
        alone = milliseconds(lambda: _level(placement, later[None], 1, only_peak=True))  # noqa: B023
        made = eplb.dispatch(placement, later)
        begin = time.perf_counter()
        best = [
            least_peak(later[None, layer], row, cluster.num_gpus)
            for layer, row in enumerate(placement.phy2log)
        ]
        peer = (time.perf_counter() - begin) * 1e3
        off = float(np.abs(made.peak / best - 1.0).max())
        windows = loads / loads.sum(axis=2, keepdims=True) * cluster.num_gpus
        begin = time.perf_counter()
        shared = eplb.dispatch(placement, windows)
        six = (time.perf_counter() - begin) * 1e3
        some = range(0, placement.num_layers, 6)
        optimum = np.mean(
            [least_peak(windows[:, i], placement.phy2log[i], cluster.num_gpus) for i in some]
        )
        over = float(shared.peak[::6].mean() / optimum - 1.0)
        timed.add_row(
            name, f"{whole:.2f}", f"{alone:.2f}", f"{peer:.0f}", f"{off:.0e}", f"{six:.0f}",
            f"{over:.2%}",
        )  # fmt: skip
        bars.append(at_most(f"{name}: peak off HiGHS's by at most", off, 1e-9))
        bars.append(at_most(f"{name}: one split, mean peak over HiGHS's", over, 0.002))
        if cell.most is not None:
            bars.append(at_most(f"{name}: ms, all GPUs", whole, cell.most[0]))
            bars.append(at_most(f"{name}: ms, the peak alone", alone, cell.most[1]))
        tabled.add_row(name, *(f"{figure:.4f}" for figure in of_tables(loads, cell, name, bars)))
    console = console_for_tables()
    for table in (scored, timed, tabled, planned):
        if table.row_count:
            console.print(table)
    if arguments.only in {None, "batch"}:
        for part in of_batches(arguments.traces, loads, bars):
            console.print(part)
    if arguments.only in {None, "placed"}:
        for part in placed_for_batches(arguments.traces, bars):
            console.print(part)
    show_bars(bars)
    return int(arguments.check and any(bar.missed for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
