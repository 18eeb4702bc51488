"""Parquet, through pyarrow: a plain table of one window, or the project's long table of a trace.

The tables are those of CSV; the note with top_k and model stands in the schema's metadata.
"""

from array import array
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, MissingExtraError
from eplb.files import replacing
from eplb.formats.about import about_text, plain_names, trace_about
from eplb.formats.long_table import index_columns, index_error, num_headings, windows_of
from eplb.formats.parquet_pages import check_pages
from eplb.formats.source import check_packing, check_size, reason
from eplb.loads import LoadTrace

__all__ = ["read_parquet", "write_parquet"]

_NOTE = b"eplb"

_CHUNK = 8 << 20
"""Bytes of loads that are converted at once."""

_LARGEST_FOOTER = 4 << 20
"""Bytes of a file's own description."""


def read_parquet(path: Path) -> LoadTrace:
    """Loads in a Parquet file: numeric columns only, a row a layer, or a long table."""
    _import(path)
    import pyarrow as pa

    with path.open("rb") as file:
        _check_footer(path, file)
        try:
            return _read(path, file)
        except FormatError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise FormatError(f"{path}: not a whole Parquet file ({reason(error)})") from None


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
    size = max(4 * _CHUNK, trace.loads.nbytes // 32) // trace.loads[0].nbytes or 1
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


def _check_footer(path: Path, file: IO[bytes]) -> None:
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if len(end) < 8 or end[4:] != b"PAR1" or length > min(size, _LARGEST_FOOTER):
        raise FormatError(f"{path}: not a whole Parquet file (no footer of a decent length)")
    file.seek(max(0, size - 8 - length))
    check_pages(path, file, file.read(length))
    file.seek(0)


def _read(path: Path, file: IO[bytes]) -> LoadTrace:
    import pyarrow.parquet as pq

    options: dict[str, Any] = {
        "pre_buffer": False,
        "thrift_string_size_limit": _LARGEST_FOOTER,
        "thrift_container_size_limit": _LARGEST_FOOTER,
    }
    table = pq.ParquetFile(file, **options)
    names = table.schema_arrow.names
    before = num_headings(path, names)
    if before:
        # A name that stands in many rows is kept once.
        table = pq.ParquetFile(file, read_dictionary=["window"], **options)
    index = [] if before else index_columns(path, names)
    experts = [column for column in range(before, len(names)) if column not in index]
    _check_columns(path, table, before)
    num_rows = table.metadata.num_rows
    if num_rows < 1:
        raise FormatError(f"{path}: has {num_rows} rows, expected one for each layer")
    check_size(path, "the table", num_rows * len(names))
    check_packing(path, "the table", 8 * num_rows * len(names), path.stat().st_size)
    loads = np.empty((num_rows, len(experts)))
    windows: list[str] = []
    times = array("d")
    layers = array("q")
    done = 0
    batch_size = max(1, _CHUNK // (8 * len(names)))
    for batch in table.iter_batches(batch_size=batch_size, use_threads=False):
        if batch.num_rows > num_rows - done:
            raise FormatError(f"{path}: has more rows than the {num_rows} that it claims")
        for column in index:
            _check_index(path, names[column], _values(path, batch, column), done)
        for number, column in enumerate(experts):
            loads[done : done + batch.num_rows, number] = _values(path, batch, column)
        if before:
            windows += _texts(path, batch)
            layers.extend(_values(path, batch, before - 1).astype(np.int64))
        if before == 3:
            times.extend(_values(path, batch, 1).astype(np.float64))
        done += batch.num_rows
    if done < num_rows:
        raise FormatError(f"{path}: is cut short, it has {done} of {num_rows} rows")
    loads.flags.writeable = False
    if not before:
        return LoadTrace(loads)
    known = times if before == 3 else None
    windows, found, num_layers = windows_of(path, windows, known, layers)
    loads = loads.reshape(len(windows), num_layers, len(experts))
    note = (table.schema_arrow.metadata or {}).get(_NOTE, b"")
    return trace_about(path, note, loads, windows, found)


def _check_columns(path: Path, table: Any, before: int) -> None:
    """Raise a FormatError for columns that hold no numbers, but for the names of windows."""
    import pyarrow as pa

    schema = table.schema_arrow
    if not schema.names or table.metadata.num_columns != len(schema.names):
        raise FormatError(f"{path}: has no plain columns of numbers")
    for field in list(schema)[1 if before else 0 :]:
        if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            raise FormatError(
                f"{path}: column {field.name[:40]!r} is of {str(field.type)[:40]}, expected numbers"
            )


def _check_index(path: Path, name: str, values: NDArray[Any], start: int) -> None:
    wrong = np.flatnonzero(values != np.arange(start, start + len(values)))
    if len(wrong):
        raise index_error(path, name, start + int(wrong[0]), values[wrong[0]])


def _values(path: Path, batch: Any, column: int) -> NDArray[Any]:
    values = batch.column(column)
    if values.null_count:
        raise FormatError(
            f"{path}: column {batch.schema.names[column][:40]!r} has rows without a value"
        )
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array


def _texts(path: Path, batch: Any) -> list[str]:
    """The name of each row's window, one text for all rows that share it."""
    window = batch.column(0)
    window.validate(full=True)
    if window.null_count:
        raise FormatError(f"{path}: column 'window' has rows without a value")
    if not hasattr(window, "dictionary"):
        return list(map(str, window.to_pylist()))
    texts = list(map(str, window.dictionary.to_pylist()))
    return [texts[number] for number in window.indices.to_pylist()]
