"""CSV: a plain table of one window, or the project's long table of a trace.

A plain table has a line a layer and a column an expert, with or without a heading and a column
that numbers the layers. The long table has a first line `# {...}`
of JSON with top_k and model, then its heading.
"""

import csv
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from eplb.errors import FormatError
from eplb.files import replacing
from eplb.formats.about import about_text, plain_names, trace_about
from eplb.formats.long_table import index_columns, index_error, num_headings, windows_of
from eplb.formats.source import LARGEST, frozen, reason
from eplb.loads import LoadTrace

__all__ = ["read_csv", "write_csv"]

_LONGEST_LINE = 4 << 20
"""Characters of one line: several hundred thousand columns."""


def read_csv(path: Path) -> LoadTrace:
    """Loads in a CSV file: a plain table, whose heading is passed over, or a long one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _lines(path, file)
            first = next(lines, "")
            about = ""
            if first.startswith("#"):
                about = first[1:].strip()
                first = next(lines, "")
            heading = next(csv.reader([first]), [])
            before = num_headings(path, heading)
            if before:
                return _read_long(path, len(heading), before, lines, about)
            return _read_plain(path, first, lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: not a CSV file ({reason(error)})") from None


def write_csv(trace: LoadTrace, path: Path) -> None:
    """Write the long table."""
    names = plain_names(trace)
    start = ["window", "layer"] if trace.times is None else ["window", "time", "layer"]
    with replacing(path) as file:
        note = about_text(trace, names=names != list(trace.names))
        heading = ",".join([*start, *map(str, range(trace.num_experts))])
        file.write(f"# {note}\n{heading}\n".encode())
        for number, window in enumerate(trace.loads):
            quoted = '"' + names[number].replace('"', '""') + '"'
            time = "" if trace.times is None else f",{float(trace.times[number])!r}"
            # Below 2**53 whole numbers are shorter without their point, and read back the same.
            whole = bool(window.max() < 2**53 and (window == np.floor(window)).all())
            rows = (window.astype(np.int64) if whole else window).tolist()
            text = "".join(
                f"{quoted}{time},{layer},{','.join(map(repr, row))}\n"
                for layer, row in enumerate(rows)
            )
            file.write(text.encode())


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise FormatError(f"{path}: line {number} is longer than {_LONGEST_LINE} characters")
        yield line


def _read_plain(path: Path, first: str, lines: Iterator[str]) -> LoadTrace:
    values = array("d")
    heading: list[str] = []
    index: list[int] = []
    width = num_rows = 0
    for number, row in enumerate(_rows(first, lines), start=1):
        if not row:
            continue
        if not width:
            width = len(row)
            if _is_heading(row):
                heading, index = row, index_columns(path, row)
                continue
        if len(row) != width:
            raise FormatError(f"{path}: line {number} has {len(row)} columns, lines before {width}")
        try:
            numbers = list(map(float, row))
        except ValueError:
            raise _no_number(path, f"line {number}", row) from None
        for column in index:
            if numbers.pop(column) != num_rows:
                raise index_error(path, heading[column], num_rows, row[column])
        values.fromlist(numbers)
        _check_length(path, values)
        num_rows += 1
    if not num_rows:
        raise FormatError(f"{path}: has no line of numbers")
    return LoadTrace(frozen(values, (num_rows, width - len(index))))


def _read_long(path: Path, width: int, before: int, lines: Iterator[str], about: str) -> LoadTrace:
    """A long table of so many columns, `before` of them before those of experts."""
    names: list[str] = []
    times = array("d")
    layers = array("q")
    values = array("d")
    for number, row in enumerate(csv.reader(lines, strict=True), start=1):
        if not row:
            continue
        place = f"row {number} of the table"
        if len(row) != width:
            raise FormatError(f"{path}: {place} has {len(row)} columns, the heading {width}")
        try:
            times.append(float(row[1]))
            layers.append(int(row[before - 1]))
            values.fromlist(list(map(float, row[before:])))
        except (ValueError, OverflowError):
            raise _no_number(path, place, row[1:]) from None
        # One text for all layers of a window.
        names.append(names[-1] if names and names[-1] == row[0] else row[0])
        _check_length(path, values)
    known = times if before == 3 else None
    names, found, num_layers = windows_of(path, names, known, layers)
    loads = frozen(values, (len(names), num_layers, width - before))
    return trace_about(path, about, loads, names, found)


def _is_heading(row: list[str]) -> bool:
    """Whether the first line names columns: some by no number, or all by their own number."""
    return row == [*map(str, range(len(row)))] or not all(map(_is_number, row))


def _rows(first: str, lines: Iterator[str]) -> Iterator[list[str]]:
    yield from csv.reader([first], strict=True)
    yield from csv.reader(lines, strict=True)


def _check_length(path: Path, values: "array[float]") -> None:
    if len(values) * 8 > LARGEST:
        raise FormatError(f"{path}: has more than {LARGEST // 8} values")


def _no_number(path: Path, place: str, row: list[str]) -> FormatError:
    wrong = next((cell for cell in row if not _is_number(cell)), row[0])
    return FormatError(f"{path}: {place} has {wrong[:40]!r}, no number")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
