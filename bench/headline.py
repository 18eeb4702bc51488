"""The first tables of docs/compare.md, measured and written in place.

    python bench/headline.py --peer path/to/eplb.py
    python bench/headline.py --peer path/to/eplb.py --traces path/to/traces

With recorded loads it also writes the table of plans on loads that they have not seen.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from cells import GRID, custom
from contest import compare
from options import OneLineParser, load_peers
from report import CellReport, Row
from unseen_cells import RULES, Cell, make_cells
from unseen_contest import DEFAULT, THOROUGH, Contender, measure, of_ours, of_peer
from unseen_contest import Row as UnseenRow

import eplb
from eplb.files import write_text
from eplb.replaying.policies import Peer

__all__ = ["unseen_table"]

_PLANNER = "headline"
_UNSEEN = "unseen"
_TURNS, _UNSEEN_TURNS = 15, 3
_THREADS = 2


def main() -> int:
    """Measure the usual cells beside one peer and put the tables into the page."""
    parser = OneLineParser(prog="bench/headline.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--peer", type=Path, required=True, metavar="FILE.py", help="a file to stand beside ours")
    add("--traces", type=Path, metavar="DIR", help="recorded loads: the second table too")
    page = Path(__file__).parents[1] / "docs" / "compare.md"
    add("--page", type=Path, default=page, help="the page")
    options = parser.parse_args()
    names = [_PLANNER, *([_UNSEEN] if options.traces else [])]
    try:
        peers = load_peers([options.peer])
        cells = make_cells(options.traces, RULES["even"][:-1]) if options.traces else []
        for name in names:
            _parted(options.page, name)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    eplb.warmup()
    tables = {_PLANNER: _planner_table(peers)}
    if options.traces:
        tables[_UNSEEN] = unseen_table(cells, of_peer(peers[0]))
    for name, lines in tables.items():
        before, after = _parted(options.page, name)
        write_text(options.page, "\n".join([before, *lines, after]))
        print("\n".join(lines))
    return 0


def _parted(page: Path, name: str) -> tuple[str, str]:
    """What is before a table's lines, and after them, markers among it.

    Raises:
        OSError: a page that cannot be read.
        ValueError: a page without the two markers, each once.
    """
    begin = f"<!-- {name}: begin, written by bench/headline.py -->"
    end = f"<!-- {name}: end -->"
    text = page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{page}: write {begin} and {end} once each, where the table is to be")
    return text[: text.index(begin)] + begin, text[text.index(end) :]


def _planner_table(peers: list[Peer]) -> list[str]:
    return [
        "| layers x experts → slots on GPUs | times the start's speed, 1 thread | 2 threads | time "
        "on 2 | balancedness | wasted slots | proven gap |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_line(compare(custom(spec), peers, [1, 2], _TURNS)) for spec in GRID),
    ]


def unseen_table(cells: Sequence[Cell], engine: Contender) -> list[str]:
    """Balancedness and time in each cell: an engine's planner, ours by default, ours thorough."""
    everybody = [
        engine,
        of_ours(DEFAULT, "default", _THREADS),
        of_ours(THOROUGH, "thorough", _THREADS),
    ]
    lines = [
        "| loads | sum of the windows (engines) | ours, default | ours, thorough |",
        "| --- | --- | --- | --- |",
    ]
    for cell in cells:
        fields = [cell.name, *map(_reached, measure(cell, everybody, _UNSEEN_TURNS))]
        lines.append(f"| {' | '.join(fields)} |")
    return lines


def _reached(row: UnseenRow) -> str:
    if row.balancedness is None or row.ms is None:
        return "failed"
    return f"{row.balancedness:.4f} in {row.ms:.{0 if row.ms >= 10.0 else 1}f} ms"


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
