"""Plans on loads that they have not seen: ours, the sum of the windows and any peer, in one run.

    python bench/unseen.py --check --traces path/to/traces
    python bench/unseen.py --peer path/to/eplb.py --only held-out

README.md tells what is printed; `--help` tells the options.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bars import Bar
from options import OneLineParser, positive
from race import Load
from rich.table import Table
from tables import console_for_tables, show_bars
from unseen_cells import PARTS, RULES, Cell, make_cells
from unseen_contest import (
    DEFAULT,
    THOROUGH,
    Contender,
    Row,
    load_all,
    measure,
    of_ours,
    of_peer,
    references,
)

import eplb

__all__ = ["judge"]

_BARS = {
    "even": (
        ("held-out", 32, 288, DEFAULT, 0.929, 30.0),
        ("held-out", 32, 288, THOROUGH, 0.931, 300.0),
        ("held-out", 64, 320, DEFAULT, 0.888, 40.0),
        ("all-six", 32, 288, DEFAULT, 0.985, None),
        ("all-six", 32, 288, THOROUGH, 0.988, None),
        ("in-order", 8, 40, DEFAULT, 0.822, None),
        ("in-order", 16, 48, DEFAULT, 0.726, None),
    ),
    "best": (
        ("held-out", 32, 288, DEFAULT, 0.966, 250.0),
        ("held-out", 32, 288, THOROUGH, 0.971, 3000.0),
        ("held-out", 64, 320, DEFAULT, 0.932, 600.0),
        ("held-out", 64, 320, THOROUGH, 0.94, 6000.0),
        ("held-out", 32, 320, DEFAULT, 0.992, None),
        ("held-out", 32, 320, THOROUGH, 0.992, None),
        ("from-one", 32, 288, DEFAULT, 0.885, None),
        ("from-one", 32, 288, THOROUGH, 0.89, None),
        ("from-one", 32, 320, DEFAULT, 0.955, None),
        ("from-one", 32, 320, THOROUGH, 0.96, None),
        ("in-order", 8, 40, DEFAULT, 0.955, 100.0),
        ("in-order", 8, 40, THOROUGH, 0.96, 1000.0),
        ("in-order", 16, 48, DEFAULT, 0.89, None),
        ("in-order", 16, 48, THOROUGH, 0.9, None),
        ("in-order", 8, 48, DEFAULT, 0.997, None),
        ("in-order", 8, 48, THOROUGH, 0.999, None),
    ),
}
"""For each rule: part, GPUs, slots, who, least balancedness, most ms."""
_MOST_GROWTH_MS, _MOST_RISE = 1000.0, 1.1
_MOST_OTHERS = 0.2
"""Processors that other programs keep busy, from which on a missed time says so."""


def judge(rows: list[Row], others: float | None, dispatch: str = "even") -> list[Bar]:
    """Every bar that the rows can judge: those of balance and time of recorded loads, and growth.

    `others` says how many processors other programs kept busy meanwhile; None if unknown.
    """
    busy = others is not None and others > _MOST_OTHERS
    note = f", but other programs kept {others:.2f} processors busy" if busy else ""
    bars = []
    for *which, least, most in _BARS[dispatch]:
        for row in rows:
            if [row.part, row.gpus, row.slots, row.who] != which or not row.recorded:
                continue
            what = f"{row.cell}, {row.who}"
            bars.append(_least(f"balancedness: {what}", least, row))
            if most is not None:
                bars.append(_most(f"time: {what}", most, row, note))
    grown = [row for row in rows if row.part == "growth" and row.who == DEFAULT]
    if not grown:
        return bars
    bars.append(_most(f"time: {grown[-1].cell}, {DEFAULT}", _MOST_GROWTH_MS, grown[-1], note))
    # One window is planned by another algorithm, in less time.
    several = [row for row in grown if row.windows > 1]
    if not several:
        return bars
    each = [row.fastest_ms / row.windows for row in several if row.fastest_ms is not None]
    rise = max((b / min(each[: i + 1]) for i, b in enumerate(each)), default=np.inf)
    met = len(each) == len(several) and rise <= _MOST_RISE
    what = f"fastest time / T, T from {several[0].windows} on, over that of a smaller T"
    needed = f"at most {_MOST_RISE:g} (1, and noise)"
    listed = ", ".join(f"{time:.2f}" for time in each)
    found = f"{rise:.2f} ({listed} ms){'' if met else note}"
    return [*bars, Bar(what, needed, found, bool(met))]


def _least(what: str, least: float, row: Row) -> Bar:
    found = row.failed if row.balancedness is None else f"{row.balancedness:.4f}"
    met = row.balancedness is not None and row.balancedness >= least
    return Bar(what, f"at least {least:.3f}", found or "", met)


def _most(what: str, most: float, row: Row, note: str) -> Bar:
    met = row.ms is not None and row.ms <= most
    found = row.failed if row.ms is None else f"{row.ms:.1f} ms, fastest {row.fastest_ms:.1f}"
    return Bar(what, f"at most {most:g} ms", f"{found}{'' if met else note}", met)


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = OneLineParser(prog="bench/unseen.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add(
        "--peer",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file with rebalance_experts, or with rebalance_windows(windows, num_replicas, "
        "num_groups, num_nodes, num_gpus), which is preferred; again for more",
    )
    add(
        "--traces",
        type=Path,
        metavar="DIR",
        help="recorded loads: DIR/deepseek_v3/*.json and DIR/gptoss*.npz (made ones)",
    )
    add(
        "--dispatch",
        choices=RULES,
        default="even",
        help="the rule that our plans are made for and all are scored under (even)",
    )
    add("--only", choices=PARTS, help="one part")
    add("--threads", type=positive, default=2, metavar="N", help="threads of eplb.plan (2)")
    add("--repeats", type=positive, default=3, metavar="N", help="turns that everybody has (3)")
    add("--check", action="store_true", help="judge the bars; exit with 1 if any is missed")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    parts = [options.only] if options.only else list(RULES[options.dispatch])
    if not set(parts) <= set(RULES[options.dispatch]):
        parser.error(f"--dispatch {options.dispatch} has no part {options.only}")
    if options.check and options.traces is None and "growth" not in parts:
        parser.error(f"--check judges {options.only} on recorded loads: give --traces")
    try:
        contenders = [of_peer(peer) for peer in load_all(options.peer)]
        cells = make_cells(options.traces, parts, options.dispatch)
    except eplb.EplbError as error:
        parser.error(str(error))
    load = Load()
    rows = _run(cells, contenders, options)
    others = load.others()
    bars = judge(rows, others, options.dispatch) if options.check else []
    if options.json:
        told: dict[str, Any] = {"recorded": options.traces is not None, "others_busy": others}
        told["rows"] = [asdict(row) for row in rows]
        if options.check:
            told["bars"] = [asdict(bar) for bar in bars]
        print(json.dumps(told))
    else:
        _show(rows)
        if options.check:
            show_bars(bars)
        if options.traces is None and parts != ["growth"]:
            print("made loads: bars of balance are for recorded ones, and are not judged")
        if others is not None:
            print(f"processors that other programs kept busy meanwhile: {others:.2f}")
    return 1 if any(bar.missed for bar in bars) else 0


def _run(cells: list[Cell], peers: list[Contender], options: argparse.Namespace) -> list[Row]:
    default = of_ours(DEFAULT, "default", options.threads, options.dispatch)
    thorough = of_ours(THOROUGH, "thorough", options.threads, options.dispatch)
    everybody = [default, thorough, *references(options.threads, options.dispatch), *peers]
    rows = []
    for number, cell in enumerate(cells):
        if sys.stderr.isatty():
            print(f"{number + 1} of {len(cells)}: {cell.name}", file=sys.stderr)
        contenders = [default, *peers] if cell.part == "growth" else everybody
        rows += measure(cell, contenders, options.repeats)
    return rows


def _show(rows: list[Row]) -> None:
    table = Table(title="on loads not seen", title_justify="left")
    table.add_column("cell", no_wrap=True)
    table.add_column("who", no_wrap=True)
    for heading in ("balancedness", "ms", "fastest", "duplicates"):
        table.add_column(heading, justify="right")
    before = None
    for row in rows:
        if before is not None and row.cell != before:
            table.add_section()
        values = ["failed"] if row.failed is not None else _values(row)
        table.add_row("" if row.cell == before else row.cell, row.who, *values)
        before = row.cell
    console = console_for_tables()
    console.print(table)
    for row in rows:
        if row.failed is not None:
            console.print(f"failed: {row.cell}, {row.who}: {row.failed}", markup=False)


def _values(row: Row) -> list[str]:
    figures = (f"{row.balancedness:.4f}", f"{row.ms:.2f}", f"{row.fastest_ms:.2f}")
    return [*figures, f"{row.duplicates}"]


if __name__ == "__main__":
    sys.exit(main())
