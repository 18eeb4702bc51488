"""The planner against its peers: time, balance, duplicates and proven gap, in one run.

    python bench/planner.py --peer path/to/eplb.py --peer path/to/another.py

README.md tells what is printed; `--help` tells the options.
"""

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from bars import judge
from cells import FEW_SLOTS, GRID, SPREADS, Cell, choose, custom, recorded
from contest import compare, grow
from options import OneLineParser, load_peers, positive
from report import Machine, Report
from small import solve
from startup import measure
from tables import show_bars, show_report

import eplb
from eplb.checks import number_of_threads
from eplb.replaying.policies import Peer

_LARGE = "58x1024:4096/1024"
_USUAL = (*GRID, *(f"{cell}@{spread}" for cell in FEW_SLOTS for spread in SPREADS))


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="bench/planner.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add(
        "--peer",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file with rebalance_experts(weight, num_replicas, num_groups, num_nodes, "
        "num_gpus); again for more; the first is the one that --check compares with",
    )
    add("--cells", metavar="NAMES", help="comma-separated names or globs of cells (default: all)")
    add(
        "--cell",
        type=_cell,
        action="append",
        default=[],
        metavar="SPEC",
        help="a cell of your own, LxE:P/G[:groups/nodes][@spread], such as 58x256:288/32:8/4, "
        "with log-normal loads, or counts of that spread; again for more; the usual cells then run "
        "only if --cells names them",
    )
    add(
        "--traces",
        type=Path,
        metavar="DIR",
        help="add cells from recorded loads: DIR/deepseek_v3/*.json and DIR/*.npz",
    )
    add(
        "--threads",
        type=positive,
        action="append",
        metavar="N",
        help="threads of eplb.plan; again for more (default: 1 and 2)",
    )
    add("--repeats", type=positive, default=9, help="turns that everybody has in a cell (9)")
    add("--growth", action="store_true", help=f"time per slot in {_LARGE} against {GRID[0]}")
    add("--small", type=positive, metavar="N", help="N small layers against their true optimum")
    add("--startup", action="store_true", help="import, first plan and compiling, in new processes")
    add("--check", action="store_true", help="judge the bars; exit with 1 if any is missed")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def _cell(spec: str) -> Cell:
    try:
        return custom(spec)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = _parser()
    options = parser.parse_args()
    if options.check and not options.peer:
        parser.error("--check compares with a peer: give --peer")
    try:
        peers = load_peers(options.peer)
        cells = _cells(options)
    except ValueError as error:
        parser.error(str(error))
    report = _run(peers, cells, options)
    bars = judge(report) if options.check else []
    if options.json:
        found = report.as_dict()
        if options.check:
            found["bars"] = [vars(bar) for bar in bars]
        print(json.dumps(found))
    else:
        show_report(report)
        if options.check:
            show_bars(bars)
    return 1 if any(bar.missed for bar in bars) else 0


def _cells(options: argparse.Namespace) -> list[Cell]:
    """The cells to run; those given with --cell are run whatever --cells says."""
    traces = recorded(options.traces) if options.traces else []
    if options.cells is None:
        return [*options.cell, *([] if options.cell else map(custom, _USUAL)), *traces]
    return [*options.cell, *choose([*map(custom, _USUAL), *traces], options.cells)]


def _run(peers: list[Peer], cells: list[Cell], options: argparse.Namespace) -> Report:
    import torch

    threads = list(dict.fromkeys(options.threads or (1, 2)))
    eplb.warmup()
    reports = []
    for number, cell in enumerate(cells):
        if sys.stderr.isatty():
            print(f"{number + 1} of {len(cells)}: {cell.name}", file=sys.stderr)
        reports.append(compare(cell, peers, threads, options.repeats))
    growth = grow(GRID[0], _LARGE, threads, options.repeats) if options.growth else []
    machine = Machine(
        processors=number_of_threads(None),
        versions={
            "Python": platform.python_version(),
            **{name: version(name) for name in ("numba", "numpy", "torch")},
        },
        torch_threads=torch.get_num_threads(),
    )
    return Report(
        machine=machine,
        peers=[peer.name for peer in peers],
        cells=reports,
        growth=growth,
        small=solve(options.small) if options.small else None,
        startup=measure() if options.startup else None,
    )


if __name__ == "__main__":
    sys.exit(main())
