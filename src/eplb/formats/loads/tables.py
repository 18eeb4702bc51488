"""Tables of loads in CSV and Parquet: a plain one of one window, or the long one of a whole trace.

A plain table has a row a layer and a column an expert, in CSV with or without a heading, and may
have a column that numbers the layers. The long table is the project's own: a row for each window
and layer, in order from layer 0 on, with the columns window (its name), time (in seconds, where
known), layer, and one for each expert, named by its number. A note of JSON with top_k and model
stands in CSV's first line, `# {...}`, and in the metadata of Parquet's schema.
"""

import csv
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.checks import LAYERS
from eplb.errors import FormatError, MissingExtraError
from eplb.files import replacing
from eplb.formats.loads.bare import Bare
from eplb.formats.loads.lists import Listed, list_columns, listed
from eplb.formats.loads.note import about_text, plain_names, trace_about
from eplb.formats.safe import LARGEST, check_size, frozen, reading, reason
from eplb.loads import LoadTrace

_LONGEST_LINE = 4 << 20
"""Characters of one line of CSV: several hundred thousand columns."""

_NOTE = b"eplb"

_GROUP = 32 << 20
"""Least bytes of loads that are written to Parquet at once, as one group of rows."""

_NUMBER_LIKE = re.compile(r"[+-]?\.?[0-9]")
_SEPARATED = re.compile(r"[0-9]{1,3}([ ,.'_\u00a0\u2009\u202f])[0-9]{3}(\1[0-9]{3})*")
"""A number with marks between its thousands. One that is a plain number too is taken for that."""

_INDEX = {"index", "layer", "layer_id", "__index_level_0__"}
"""Names of columns that number the rows of a plain table, as data frames are written."""


def read_csv(path: Path) -> LoadTrace | Bare | Listed:
    """Loads in a CSV file: a plain table, whose heading is passed over, a long one, or a list."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _lines(file)
            first = next(lines, "")
            about = ""
            if first.startswith("#"):
                about = first[1:].strip()
                first = next(lines, "")
            # Some spreadsheets separate columns by semicolons or tabs.
            mark = next((mark for mark in ";\t" if mark in first and "," not in first), ",")
            heading = next(csv.reader([first], delimiter=mark), [])
            before = _num_headings(heading)
            if before:
                return _read_long(len(heading), before, lines, about)
            rows = csv.reader(chain([first], lines), strict=True, delimiter=mark)
            columns = list_columns(heading) if _is_heading(heading) else None
            if columns is not None:
                return _read_list(path, rows, columns)
            return _read_plain(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"not a CSV file ({reason(error)})") from None


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


def _lines(file: IO[str]) -> Iterator[str]:
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise FormatError(f"line {number} is longer than {_LONGEST_LINE} characters")
        yield line


def _places(
    rows: Iterator[list[str]], place: str, first: int, width: int = 0
) -> Iterator[tuple[str, list[str]]]:
    """Rows that are not empty and their places, counted from `first`; all are to be as wide as the
    heading, or as the first one.
    """
    before = "the heading" if width else "lines before"
    for number, row in enumerate(rows, start=first):
        if not row:
            continue
        at, width = place.format(number), width or len(row)
        if len(row) != width:
            raise FormatError(f"{at} has {len(row)} columns, {before} {width}")
        yield at, row


def _read_list(path: Path, rows: Iterator[list[str]], columns: tuple[int | None, ...]) -> Listed:
    """A list of layers, experts and counts; other columns, as that of a rank, are passed over."""
    width = len(next(rows))
    windows: list[str] = []
    values = [array("d") for _ in columns[1:]]
    for place, row in _places(rows, "line {}", 2, width):
        cells = [row[column] if column is not None else "0" for column in columns]
        for found, value in zip(values, _numbers(cells[1:], place), strict=True):
            found.append(value)
        windows.append(windows[-1] if windows and windows[-1] == cells[0] else cells[0])
        _check_length(values[0])
    layers, experts, counts = map(np.array, values)
    told = None if columns[1] is None else layers
    return listed(path, None if columns[0] is None else windows, told, experts, counts)


def _read_plain(rows: Iterator[list[str]]) -> LoadTrace | Bare:
    values = array("d")
    heading: list[str] = []
    index: list[int] = []
    layers: dict[str, list[float]] = {}
    num_rows = 0
    for place, row in _places(rows, "line {}", 1):
        if not num_rows and not heading and _is_heading(row):
            heading, index = row, _index_columns(row)
            layers = {row[column]: [] for column in index}
            continue
        numbers = _numbers(row, place)
        for column in index:
            layers[heading[column]].append(numbers.pop(column))
        values.fromlist(numbers)
        _check_length(values)
        num_rows += 1
    if not num_rows:
        raise FormatError("has no line of numbers")
    loads = frozen(values, (num_rows, -1))
    return LoadTrace(loads, layers=_numbers_of(layers, num_rows)) if heading else Bare(loads)


def _numbers_of(numbers: Mapping[str, ArrayLike], num_rows: int) -> tuple[int, ...] | None:
    """Numbers of the layers from the columns that have them; None where they count rows only."""
    told = None
    for name, values in numbers.items():
        column = np.array(values, np.float64)
        before = np.concatenate([[-1.0], column[:-1]])
        wrong = np.flatnonzero(
            ~((column > before) & (column == np.floor(column)) & (column < LAYERS))
        )
        if wrong.size:
            row = int(wrong[0])
            raise FormatError(
                f"column {name[:40]!r} has {column[row]:g} in row {row + 1} of the table, "
                f"expected {max(before[row], -1) + 1:g} or more: layers stand in order, each once"
            )
        # A data frame's own index goes behind a column that is called after layers.
        if told is None or "layer" in name.lower():
            told = column
    if told is None or np.array_equal(told, np.arange(num_rows)):
        return None
    return tuple(map(int, told))


def _read_long(width: int, before: int, lines: Iterator[str], about: str) -> LoadTrace:
    """A long table of so many columns, `before` of them before those of experts."""
    names: list[str] = []
    times = array("d")
    layers = array("q")
    values = array("d")
    for place, row in _places(csv.reader(lines, strict=True), "row {} of the table", 1, width):
        numbers = _numbers(row[1:], place)
        times.append(numbers[0])
        try:
            layers.append(int(row[before - 1]))
        except (ValueError, OverflowError):
            raise _no_number(row[1:], place) from None
        values.fromlist(numbers[before - 1 :])
        # One text for all layers of a window.
        names.append(names[-1] if names and names[-1] == row[0] else row[0])
        _check_length(values)
    known = np.array(times) if before == 3 else None
    names, found, num_layers = _windows_of(names, known, layers)
    loads = frozen(values, (len(names), num_layers, width - before))
    return trace_about(about, loads, names, found)


def _is_heading(row: list[str]) -> bool:
    """Whether the first line names columns: some by no number, or all by their own number.

    Raises:
        FormatError: a cell that is a number as people write it, or begins as one; or no load where
            others are. Such a line names nothing, and to pass over it would lose a layer.
    """
    names = [cell.strip() for cell in row if not _is_number(cell)]
    for cell in names:
        if _SEPARATED.fullmatch(cell):
            raise FormatError(f"line 1 has {cell[:40]!r}: write numbers without separators")
        if _NUMBER_LIKE.match(cell):
            raise FormatError(f"line 1 has {cell[:40]!r}, which is no number and no name")
    numbers = [cell for cell in row if cell.strip() not in names]
    counts_up = numbers == [*map(str, range(len(numbers)))]
    if names and not any(names) and not counts_up:
        raise FormatError("line 1 has an empty cell: give each expert's load, or a name")
    return bool(names) or counts_up


def _check_length(values: "array[float]") -> None:
    if len(values) * 8 > LARGEST:
        raise FormatError(f"has more than {LARGEST // 8} values")


def _no_number(row: list[str], place: str) -> FormatError:
    wrong = next((cell for cell in row if not _is_number(cell)), row[0])
    return FormatError(f"{place} has {wrong[:40]!r}, no number")


def _numbers(row: list[str], place: str) -> list[float]:
    """Cells as numbers."""
    try:
        return _floats(row)
    except ValueError:
        raise _no_number(row, place) from None


def _floats(row: list[str]) -> list[float]:
    """Cells as numbers; `float` alone would take 1_000, and digits of any script."""
    text = "".join(row)
    if "_" in text or not text.isascii():
        raise ValueError
    return list(map(float, row))


def _is_number(cell: str) -> bool:
    with suppress(ValueError):
        return bool(_floats([cell]))
    return False


def read_parquet(path: Path) -> LoadTrace | Listed:
    """Loads in a Parquet file: numeric columns only, a row a layer, or a long table."""
    _import(path)
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        with reading("Parquet"):
            source = pq.ParquetFile(file, pre_buffer=False)
            schema, about = source.schema_arrow, source.metadata
        names = schema.names
        before = _num_headings(names)
        columns = None if before else list_columns(names)
        index = [] if before else _index_columns(names)
        _check_columns(schema, about.num_columns, before)
        if about.num_rows < 1:
            raise FormatError(f"has {about.num_rows} rows, expected one for each layer")
        check_size("the table", about.num_rows * len(names))
        groups = map(about.row_group, range(about.num_row_groups))
        check_size("the table", sum(group.total_byte_size for group in groups) // 8)
        with reading("Parquet"):
            if before:
                # A name that stands in many rows is kept once.
                source = pq.ParquetFile(file, read_dictionary=["window"], pre_buffer=False)
            table = source.read(use_threads=False)
            table.validate(full=True)
            texts = _texts(table) if before else []
    if table.num_rows != about.num_rows:
        raise FormatError(f"has {table.num_rows} rows, and claims {about.num_rows}")
    if columns is not None:
        found: list[Any] = [
            None if column is None else _values(table, column).astype(np.float64)
            for column in columns
        ]
        return listed(path, None if found[0] is None else found[0].tolist(), *found[1:])
    numbers = {names[column]: _values(table, column) for column in index}
    experts = [column for column in range(before, len(names)) if column not in index]
    loads = np.empty((table.num_rows, len(experts)))
    for number, column in enumerate(experts):
        loads[:, number] = _values(table, column)
    loads.flags.writeable = False
    if not before:
        return LoadTrace(loads, layers=_numbers_of(numbers, len(loads)))
    times = _values(table, 1).astype(np.float64) if before == 3 else None
    layers = _values(table, before - 1)
    windows, times, num_layers = _windows_of(texts, times, layers)
    loads = loads.reshape(len(windows), num_layers, len(experts))
    note = (schema.metadata or {}).get(_NOTE, b"")
    return trace_about(note, loads, windows, times)


def write_parquet(trace: LoadTrace, path: Path) -> None:
    """Write the long table, some windows at a time."""
    _import(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = plain_names(trace)
    columns = [("window", pa.string()), ("layer", pa.int32())]
    if trace.times is not None:
        columns.insert(1, ("time", pa.float64()))
    columns += [(str(expert), pa.float64()) for expert in range(trace.num_experts)]
    note = about_text(trace, names=names != list(trace.names))
    schema = pa.schema(columns, metadata={_NOTE: note.encode()})
    # Each group of rows is described in the footer, column by column: there are to be few.
    size = max(_GROUP, trace.loads.nbytes // 32) // trace.loads[0].nbytes or 1
    options = {"compression": "zstd", "use_dictionary": ["window"], "write_statistics": False}
    with replacing(path) as file, pq.ParquetWriter(file, schema, **options) as writer:
        for start in range(0, trace.num_windows, size):
            windows = trace.loads[start : start + size]
            rows = len(windows) * trace.num_layers
            arrays: list[Any] = [
                pa.array(np.repeat(np.array(names[start : start + size], object), trace.num_layers))
            ]
            if trace.times is not None:
                arrays.append(pa.array(trace.times[start : start + size].repeat(trace.num_layers)))
            layers = np.arange(trace.num_layers, dtype=np.int32)
            arrays.append(pa.array(np.tile(layers, len(windows))))
            by_expert = np.ascontiguousarray(windows.reshape(rows, trace.num_experts).T)
            arrays += map(pa.array, by_expert)
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=rows)


def _import(path: Path) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise MissingExtraError("pyarrow", "formats", f"{path}") from None


def _check_columns(schema: Any, num_columns: int, before: int) -> None:
    """Raise a FormatError for columns that hold no numbers, but for the names of windows."""
    import pyarrow as pa

    if not schema.names or num_columns != len(schema.names):
        raise FormatError("has no plain columns of numbers")
    for field in list(schema)[1 if before else 0 :]:
        if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            raise FormatError(
                f"column {field.name[:40]!r} is of {str(field.type)[:40]}, expected numbers"
            )


def _values(table: Any, column: int) -> NDArray[Any]:
    values = table.column(column)
    if values.null_count:
        name = table.column_names[column][:40]
        raise FormatError(f"column {name!r} has rows without a value")
    array: NDArray[Any] = values.to_numpy()
    return array


def _texts(table: Any) -> list[str]:
    """The name of each row's window, one text for all rows that share it."""
    column = table.column(0)
    if column.null_count:
        raise FormatError("column 'window' has rows without a value")
    names: list[str] = []
    for chunk in column.chunks:
        # Only texts are kept so: windows may be numbers.
        known = getattr(chunk, "dictionary", None)
        texts = list(map(str, (chunk if known is None else known).to_pylist()))
        names += texts if known is None else [texts[n] for n in chunk.indices.to_pylist()]
    return names


def _index_columns(columns: Sequence[str]) -> list[int]:
    """Columns of a plain table that number its layers, by their names, the last of them first.

    In CSV the index of a data frame stands first and may have no name; in Parquet it stands last.
    """
    found = [
        number
        for number, name in enumerate(columns)
        if name.strip().lower() in _INDEX or (number == 0 and not name.strip())
    ]
    if found and len(found) == len(columns):
        raise FormatError("has no column of an expert")
    return found[::-1]


def _num_headings(columns: Sequence[str]) -> int:
    """Columns before those of experts: 2, or 3 with times; 0 for what is no long table."""
    if list(columns[:1]) != ["window"] or "layer" not in columns[1:3]:
        return 0
    before = list(columns).index("layer") + 1
    experts = columns[before:]
    if (before == 3 and columns[1] != "time") or list(experts) != [*map(str, range(len(experts)))]:
        raise FormatError(
            f"has columns {', '.join(columns[:6])[:60]}, expected window, time where "
            "known, layer, and one for each expert: 0, 1, ..."
        )
    if not experts:
        raise FormatError("has no column of an expert")
    return before


def _windows_of(
    names: Sequence[str], times: NDArray[np.float64] | None, layers: ArrayLike
) -> tuple[list[str], NDArray[np.float64] | None, int]:
    """Names and times of the windows, and L, from those of all rows."""
    found = np.array(layers)
    if not len(found):
        raise FormatError("has no line of numbers")
    starts = np.flatnonzero(found == 0)
    num_layers = int(starts[1]) if len(starts) > 1 else len(found)
    expected = np.arange(len(found)) % num_layers
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        row = int(wrong[0])
        raise FormatError(
            f"row {row + 1} of the table is of layer {found[row]}, expected "
            f"{expected[row]}: the layers of a window stand together and in order"
        )
    if len(found) % num_layers:
        raise FormatError(
            f"is cut short, its last window has {len(found) % num_layers} of {num_layers} layers"
        )
    for row, name in enumerate(names):
        start = row - row % num_layers
        if name != names[start] or (times is not None and times[row] != times[start]):
            raise FormatError(
                f"row {row + 1} of the table is of another window or time than row "
                f"{start + 1}, expected layer {row - start} of {names[start][:40]!r}"
            )
    return (
        list(names[::num_layers]),
        None if times is None else times[::num_layers],
        num_layers,
    )
