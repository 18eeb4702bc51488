"""Plain arrays of loads: `.npy`, `.npz` and CSV, read with numpy and never unpickled."""

import csv
import io
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, LoadsError
from eplb.loads import as_array

__all__ = ["read_csv", "read_npy", "read_npz"]

_NAMES = ("logical_count", "loads", "counts", "load")
"""Names of the array in an `.npz` that has several, the first found is taken."""

_LARGEST = 4 << 30
"""Bytes of the largest array that is read, as its header tells."""


def read_npy(path: Path) -> NDArray[np.float64]:
    """Loads [L, E] or [T, L, E] in a `.npy` file."""
    with path.open("rb") as file:
        return _read_array(file, path.stat().st_size, str(path))


def read_npz(path: Path) -> NDArray[np.float64]:
    """Loads in a `.npz` file: its only array, or the one named as loads are."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            chosen = [name for name in _NAMES if name in members] or list(members)
            if not chosen or (len(members) > 1 and chosen[0] not in _NAMES):
                raise FormatError(
                    f"{path}: has arrays {', '.join(sorted(members)) or 'none'}: "
                    f"name that of the loads {_NAMES[0]}"
                )
            member = members[chosen[0]]
            size = archive.getinfo(member).file_size
            with archive.open(member) as file:
                return _read_array(file, size, f"{path}, array {chosen[0]}")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise FormatError(f"{path}: not a whole .npz file ({error})") from None
    except RuntimeError:
        raise FormatError(f"{path}: is encrypted") from None
    except Exception as error:
        # zlib's errors have no common base with zipfile's.
        if type(error).__module__ == "zlib":
            raise FormatError(f"{path}: not a whole .npz file ({error})") from None
        raise


def read_csv(path: Path) -> NDArray[np.float64]:
    """Loads in a CSV file: a line a layer, a column an expert; a heading line is passed over."""
    rows: list[list[float]] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
        for number, row in enumerate(csv.reader(io.StringIO(text), strict=True), start=1):
            if not row:
                continue
            try:
                values = [float(cell) for cell in row]
            except ValueError:
                if number == 1:
                    continue
                wrong = next(cell for cell in row if not _is_number(cell))
                raise FormatError(f"{path}: line {number} has {wrong[:40]!r}, no number") from None
            if rows and len(values) != len(rows[0]):
                raise FormatError(
                    f"{path}: line {number} has {len(values)} columns, lines before {len(rows[0])}"
                )
            rows.append(values)
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: not a CSV file ({error})") from None
    if not rows:
        raise FormatError(f"{path}: has no line of numbers")
    return np.array(rows)


def _read_array(file: IO[bytes], size: int, name: str) -> NDArray[np.float64]:
    """Read a `.npy` stream of `size` bytes after its header has been found to tell the truth."""
    formats = np.lib.format
    try:
        version = formats.read_magic(file)
        read_header = {
            (1, 0): formats.read_array_header_1_0,
            (2, 0): formats.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise FormatError(f"{name}: is of .npy version {version}, known are 1.0 and 2.0")
        shape, fortran, dtype = read_header(file)
    except ValueError as error:
        raise FormatError(f"{name}: not a .npy file ({str(error).splitlines()[0]})") from None
    if dtype.hasobject:
        raise FormatError(f"{name}: holds pickled objects, which are never loaded")
    if dtype.kind not in "uif":
        raise FormatError(f"{name}: holds {dtype}, no real numbers")
    num_bytes = dtype.itemsize
    for length in shape:
        num_bytes *= length
    if num_bytes > min(size, _LARGEST) or any(length < 0 for length in shape):
        raise FormatError(f"{name}: claims shape {shape} of {dtype}, and is only {size} bytes long")
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise FormatError(f"{name}: is cut short, {len(data)} of {num_bytes} bytes")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    try:
        return as_array(array)
    except LoadsError as error:
        raise FormatError(f"{name}: {error}") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
