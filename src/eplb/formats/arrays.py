"""Arrays of loads: `.npy`, `.npz`, and the project's own compact `.npz`, never unpickled.

The project's own form has the arrays `loads` [T, L, E] in the smallest type that holds them,
`times` [T] where they are known, and `about`: the bytes of a line of JSON with names, top_k, model.
"""

import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.files import replacing
from eplb.formats.about import about_text, trace_about
from eplb.formats.source import check_packing, check_size, open_zip, reason
from eplb.loads import LoadTrace

__all__ = ["read_npy", "read_npy_array", "read_npz", "read_npz_arrays", "write_npz"]

_NAMES = ("logical_count", "loads", "counts", "load")
"""Names of the array in an `.npz` that has several, the first found is taken."""

_CHUNK = 1 << 20
"""Values that are converted at once."""

_LARGEST_NOTE = 64 << 20


def read_npy(path: Path) -> LoadTrace:
    """Loads [L, E] or [T, L, E] in a `.npy` file."""
    return LoadTrace(read_npy_array(path))


def read_npy_array(path: Path) -> NDArray[np.float64]:
    """The array in a `.npy` file, of any shape."""
    with path.open("rb") as file:
        return _read_array(file, path.stat().st_size, path, "the array")


def read_npz_arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
    """Those arrays of an `.npz` file that have one of the names, of any shape."""
    with open_zip(path, ".npz") as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        return {
            name: _read_member(archive, members[name], path) for name in names if name in members
        }


def read_npz(path: Path) -> LoadTrace:
    """Loads in a `.npz` file: the project's own, its only array, or the one named as loads are."""
    with open_zip(path, ".npz") as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if "about" in members and "loads" in members:
            return _read_own(archive, members, path)
        chosen = [name for name in _NAMES if name in members] or list(members)
        if not chosen or (len(members) > 1 and chosen[0] not in _NAMES):
            raise FormatError(
                f"{path}: has arrays {', '.join(sorted(members)[:8])[:200] or 'none'}: "
                f"name that of the loads {_NAMES[0]}"
            )
        return LoadTrace(_read_member(archive, members[chosen[0]], path))


def write_npz(trace: LoadTrace, path: Path) -> None:
    """Write the project's own compact form: whole numbers in the smallest type that holds them."""
    arrays: dict[str, Any] = {"loads": trace.loads.astype(_smallest(trace), copy=False)}
    if trace.times is not None:
        arrays["times"] = trace.times
    arrays["about"] = np.frombuffer(about_text(trace, names=True).encode("ascii"), np.uint8)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def _read_own(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path
) -> LoadTrace:
    if members["about"].file_size > _LARGEST_NOTE:
        raise FormatError(f"{path}: its note about the loads is longer than {_LARGEST_NOTE} bytes")
    text = _read_member(archive, members["about"], path).astype(np.uint8).tobytes()
    loads = _read_member(archive, members["loads"], path)
    times = _read_member(archive, members["times"], path) if "times" in members else None
    return trace_about(path, text, loads, [], times)


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path
) -> NDArray[np.float64]:
    what = f"array {info.filename.removesuffix('.npy')[:80]!r}"
    check_packing(path, what, info.file_size, info.compress_size)
    with archive.open(info) as file:
        return _read_array(file, info.file_size, path, what)


def _read_array(file: IO[bytes], size: int, path: Path, what: str) -> NDArray[np.float64]:
    """Read a `.npy` stream of `size` bytes after its header has been found to tell the truth."""
    shape, fortran, dtype = _read_header(file, path, what)
    if dtype.hasobject:
        raise FormatError(f"{path}: {what} holds pickled objects, which are never loaded")
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise FormatError(f"{path}: {what} holds {str(dtype)[:40]}, expected real numbers")
    num_values = 1
    for length in shape:
        num_values *= length
    if num_values * dtype.itemsize > size or any(length < 0 for length in shape):
        raise FormatError(
            f"{path}: {what} claims shape {str(shape)[:80]} of {dtype}, and is only "
            f"{size} bytes long"
        )
    check_size(path, what, num_values)
    array = np.empty(num_values)
    for start in range(0, num_values, _CHUNK):
        wanted = min(_CHUNK, num_values - start) * dtype.itemsize
        data = file.read(wanted)
        if len(data) < wanted:
            raise FormatError(
                f"{path}: {what} is cut short, {start * dtype.itemsize + len(data)} of "
                f"{num_values * dtype.itemsize} bytes"
            )
        array[start : start + _CHUNK] = np.frombuffer(data, dtype)
    array = array.reshape(shape, order="F" if fortran else "C")
    array = np.ascontiguousarray(array) if array.ndim else array
    array.flags.writeable = False
    return array


def _read_header(file: IO[bytes], path: Path, what: str) -> tuple[Any, bool, np.dtype[Any]]:
    formats = np.lib.format
    try:
        version = formats.read_magic(file)
        read_header = {
            (1, 0): formats.read_array_header_1_0,
            (2, 0): formats.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise FormatError(
                f"{path}: {what} is of .npy version {version}, known are (1, 0) and (2, 0)"
            )
        with warnings.catch_warnings():
            # A header is Python text, and odd text in it would warn the user of his own code.
            warnings.simplefilter("error")
            return read_header(file)
    except FormatError:
        raise
    except (zipfile.BadZipFile, EOFError, OSError):
        raise
    except Exception as error:  # whatever Python's parser makes of a header
        if type(error).__module__ == "zlib":
            raise
        raise FormatError(f"{path}: {what} is not a .npy file ({reason(error)})") from None


def _smallest(trace: LoadTrace) -> np.dtype[Any]:
    """The smallest unsigned type that holds all loads exactly, float64 where they are not whole."""
    whole = all(np.array_equal(window, np.floor(window)) for window in trace.loads)
    largest = float(trace.loads.max())
    if whole:
        for name in ("uint8", "uint16", "uint32", "uint64"):
            dtype = np.dtype(name)
            # 2**64 - 1 is no float64: below 2**64 is what is meant.
            if largest < float(2 ** (8 * dtype.itemsize)):
                return dtype
    return np.dtype(np.float64)
