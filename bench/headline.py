"""The README's headline table, measured and written in place.

python bench/headline.py --peer path/to/eplb.py
"""

import argparse
import sys
from pathlib import Path

from cells import GRID, custom
from contest import compare
from report import CellReport, Row

import eplb
from eplb.files import write_text
from eplb.peers import load_peers

_BEGIN = "<!-- headline: begin, written by bench/headline.py -->"
_END = "<!-- headline: end -->"
_TURNS = 15


def main() -> int:
    """Measure the usual cells beside one peer and put the table into the README."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer", type=Path, required=True, metavar="FILE.py")
    parser.add_argument("--readme", type=Path, default=Path(__file__).parents[1] / "README.md")
    options = parser.parse_args()
    eplb.warmup()
    peers = load_peers([options.peer])
    lines = [
        "| layers x experts → slots on GPUs | times the start's speed, 1 thread | 2 threads | time "
        "on 2 | balancedness | wasted slots | proven gap |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_line(compare(custom(spec), peers, [1, 2], _TURNS)) for spec in GRID),
    ]
    before, rest = options.readme.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    write_text(options.readme, "\n".join([before + _BEGIN, *lines, _END + after]))
    print("\n".join(lines))
    return 0


def _line(cell: CellReport) -> str:
    """One row of the table: ours on one and two threads, against the peer."""
    one, two, peer = cell.rows[0], cell.rows[1], cell.rows[-1]
    name = f"{cell.layers}x{cell.experts} → {cell.slots} on {cell.gpus}"
    if cell.nodes > 1:
        name += f", {cell.groups} groups on {cell.nodes} nodes"
    fields = [
        name,
        _times(one),
        _times(two),
        f"{two.ms:.2f} ms",
        f"{peer.balancedness:.4f} → {two.balancedness:.4f}",
        f"{peer.duplicates} → {two.duplicates}",
        f"{two.gap_mean:.3%}",
    ]
    return f"| {' | '.join(fields)} |"


def _times(row: Row) -> str:
    return f"{next(iter(row.ratio.values())):.0f} x"


if __name__ == "__main__":
    sys.exit(main())
