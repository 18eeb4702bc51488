"""The data of the study as the tables of docs/study.md."""

from collections.abc import Iterable

from study_plots import Row

__all__ = ["tables"]

_LABELS = {
    "scenarios": "each a scenario",
    "mean": "their mean",
    "seen": "planned for",
    "unseen": "not seen",
}


def tables(figure: str, rows: list[Row]) -> str:
    """Markdown: a table, of history two."""
    if figure != "history":
        first = "windows planned for" if figure == "windows" else "spare slots on each GPU"
        labelled = [
            (f"{row.load}, {row.gpus} GPUs, {_LABELS[row.line]}", row.x, row.balancedness)
            for row in rows
        ]
        return _table(first, sorted(labelled, key=lambda cell: _first(cell[0], labelled)))
    cuts = [
        (f"{row.load}, history of {row.x}", int(row.line.split()[-1]), row.balancedness)
        for row in rows
        if row.line.startswith("cut") and row.x in _cut_lengths(row.load, rows)
    ]
    lengths = [
        (f"{row.load}, {label}", row.x, row.balancedness)
        for label in ("each window a scenario", "cut in 8", "8 clusters", "the mean")
        for row in rows
        if row.line == _line(label, row.x)
    ]
    lengths.sort(key=lambda cell: [row.load for row in rows].index(cell[0].rsplit(", ", 1)[0]))
    cut, long = _table("cut in so many windows", cuts), _table("history, windows", lengths)
    return f"{cut}\n\n{long}"


def _first(label: str, cells: list[tuple[str, int, float]]) -> int:
    return next(place for place, cell in enumerate(cells) if cell[0] == label)


def _cut_lengths(load: str, rows: list[Row]) -> list[int]:
    """Histories that were cut in half, and further."""
    return [row.x for row in rows if (row.load, row.line) == (load, "cut in 2")]


def _line(label: str, length: int) -> str:
    """What the data call a line of the figure, at a length of history."""
    number = {"each window a scenario": length, "cut in 8": min(8, length), "the mean": 1}
    return f"cut in {number[label]}" if label in number else "clusters"


def _table(first: str, cells: Iterable[tuple[str, int, float]]) -> str:
    by_label: dict[str, dict[int, float]] = {}
    for label, x, value in cells:
        by_label.setdefault(label, {})[x] = value
    columns = sorted({x for line in by_label.values() for x in line})
    lines = [f"| {first} | {' | '.join(map(str, columns))} |"]
    lines.append(f"| --- |{' ---: |' * len(columns)}")
    for label, line in by_label.items():
        values = [f"{line[x]:.3f}" if x in line else "" for x in columns]
        lines.append(f"| {label} | {' | '.join(values)} |")
    return "\n".join(lines)
