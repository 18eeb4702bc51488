"""What tables in CSV and Parquet files share: the long table of a trace, and columns of an index.

The long table has a row for each window and layer.

Columns: window (its name), time (in seconds, where known), layer, and one for each expert, named by
its number. The layers of a window stand together and in order, from 0 on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError

__all__ = ["index_columns", "index_error", "num_headings", "windows_of"]

_INDEX = {"index", "layer", "layer_id", "__index_level_0__"}
"""Names of columns that number the rows of a plain table, as data frames are written."""


def index_columns(path: Path, columns: Sequence[str]) -> list[int]:
    """Columns of a plain table that number its layers, by their names, the last of them first.

    In CSV the index of a data frame stands first and may have no name; in Parquet it stands last.

    Raises:
        FormatError: no other column.
    """
    found = [
        number
        for number, name in enumerate(columns)
        if name.strip().lower() in _INDEX or (number == 0 and not name.strip())
    ]
    if found and len(found) == len(columns):
        raise FormatError(f"{path}: has no column of an expert")
    return found[::-1]


def index_error(path: Path, name: str, row: int, value: object) -> FormatError:
    """The error of a row, counted from 0, that an index gives another number."""
    return FormatError(
        f"{path}: column {name[:40]!r} has {str(value)[:40]} in row {row + 1} of the table, "
        f"expected {row}: layers stand in order, from 0 on, without gaps"
    )


def num_headings(path: Path, columns: Sequence[str]) -> int:
    """Columns before those of experts: 2, or 3 with times; 0 for what is no long table."""
    if list(columns[:1]) != ["window"] or "layer" not in columns[1:3]:
        return 0
    before = list(columns).index("layer") + 1
    experts = columns[before:]
    if (before == 3 and columns[1] != "time") or list(experts) != [*map(str, range(len(experts)))]:
        raise FormatError(
            f"{path}: has columns {', '.join(columns[:6])[:60]}, expected window, time where "
            "known, layer, and one for each expert: 0, 1, ..."
        )
    if not experts:
        raise FormatError(f"{path}: has no column of an expert")
    return before


def windows_of(
    path: Path, names: Sequence[str], times: Sequence[float] | None, layers: Sequence[int]
) -> tuple[list[str], NDArray[np.float64] | None, int]:
    """Names and times of the windows, and L, from those of all rows.

    Raises:
        FormatError: rows that are not whole windows in order; the message names the first.
    """
    if not len(layers):
        raise FormatError(f"{path}: has no line of numbers")
    found = np.array(layers)
    starts = np.flatnonzero(found == 0)
    num_layers = int(starts[1]) if len(starts) > 1 else len(found)
    expected = np.arange(len(found)) % num_layers
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        row = int(wrong[0])
        raise FormatError(
            f"{path}: row {row + 1} of the table is of layer {found[row]}, expected "
            f"{expected[row]}: the layers of a window stand together and in order"
        )
    if len(found) % num_layers:
        raise FormatError(
            f"{path}: is cut short, its last window has {len(found) % num_layers} of "
            f"{num_layers} layers"
        )
    for row, name in enumerate(names):
        start = row - row % num_layers
        if name != names[start] or (times is not None and times[row] != times[start]):
            raise FormatError(
                f"{path}: row {row + 1} of the table is of another window or time than row "
                f"{start + 1}, expected layer {row - start} of {names[start][:40]!r}"
            )
    return (
        list(names[::num_layers]),
        None if times is None else np.array(times)[::num_layers],
        num_layers,
    )
