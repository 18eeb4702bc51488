"""What a file may be: regular, whole, and of no more values than `LARGEST` allows.

Nothing in a file is ever run. Packages that read a format check what is theirs, and the readers
here check sizes before memory is taken. What goes wrong becomes one line that begins with the path:
readers raise what is wrong, and `naming`, around all that reads a file, says in which one.
"""

import gzip
import io
import json
import logging
import pickle
import re
import stat
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import printable
from eplb.errors import EplbError, FormatError, LoadsError, MissingExtraError

_logger = logging.getLogger("eplb.formats")

LARGEST = 4 << 30
"""Bytes of the largest array of loads that is read."""

_LARGEST_TEXT = 16 << 20
"""Bytes of the longest text of a placement or a note: 94 layers of 2,048 slots take 6 MB."""


def warn(path: Path, text: str) -> None:
    """Tell in the log what was left out of a file, or taken for what the file does not say."""
    _logger.warning("%s", printable(f"{path}: {text}"))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into one FormatError that begins with its path.

    Where such blocks stand in one another, the innermost says which file it is.
    """
    try:
        yield
    except FormatError as error:
        raise error if hasattr(error, "named") else error_in(path, error, type(error)) from None
    except LoadsError as error:
        raise error_in(path, error) from None
    except OSError as error:
        raise error_in(path, error.strerror or reason(error)) from None
    except MemoryError:
        raise error_in(path, "claims more values than memory holds") from None


def error_in(path: Path, what: object, kind: type[FormatError] = FormatError) -> FormatError:
    """The error of a file, which `naming` leaves as it is."""
    # What a file says must not break lines, or speak to the user's terminal.
    error = kind(printable(f"{path}: {what}"))
    error.named = True  # type: ignore[attr-defined]
    return error


@contextmanager
def reading(kind: str) -> Iterator[None]:
    """Turn whatever a package raises on a file of a kind into a FormatError.

    The errors of these packages have no base in common. Only their calls stand in such a block, so
    that no fault of the project's own is taken for one of the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (EplbError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FormatError(f"not a whole {kind} file ({reason(error)})") from None


def reason(error: BaseException) -> str:
    """The first line of what a package says, cut to a length for people."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    lines = str(error).splitlines() or [type(error).__name__]
    return " ".join(lines[0].split())[:120]


def check_regular(path: Path) -> None:
    """Raise a FormatError for a folder, and for a pipe or a device, which might never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise FormatError("is a folder, expected a file")
    if not stat.S_ISREG(mode):
        raise FormatError("is no regular file and no folder")


def check_size(what: str, num_values: int) -> None:
    """Raise a FormatError where a file claims more values than any trace has."""
    if num_values * 8 > LARGEST:
        raise FormatError(f"{what} claims {num_values} values, at most {LARGEST // 8} are read")


def frozen(values: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A buffer of float64 as a read-only array, which a LoadTrace takes without a copy."""
    view = memoryview(values).toreadonly()
    array: NDArray[np.float64] = np.frombuffer(view, np.float64).reshape(shape)
    return array


def floats(array: NDArray[Any]) -> NDArray[np.float64]:
    """Numbers as a read-only array of float64."""
    # Of odd bits of a NaN, numpy would warn; that it is none of a load, LoadTrace says.
    with np.errstate(invalid="ignore"):
        values = np.array(array, np.float64, order="C")
    values.flags.writeable = False
    return values


def read_text(path: Path) -> bytes:
    """The bytes of a text file."""
    size = path.stat().st_size
    if size > _LARGEST_TEXT:
        raise FormatError(f"has {size} bytes, at most {_LARGEST_TEXT} are read as text")
    return path.read_bytes()


@contextmanager
def text_of(path: Path) -> Iterator[IO[str]]:
    """A text of any length, compressed where the name says so."""
    packed = path.suffix.lower() == ".gz"
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            yield io.TextIOWrapper(file, encoding="utf-8-sig")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FormatError(f"not a whole gzip file ({reason(error)})") from None


def unique_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """An object of a file that has no key twice, where nobody could tell which is meant."""
    content: dict[Any, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {str(key)[:40]!r} stands there twice")
        content[key] = value
    return content


def read_json_text(text: bytes) -> Any:
    """What a short JSON text holds, whole numbers as int."""
    with reading("JSON"):
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=unique_keys)


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a `.npy` file, of any shape, mapped: what is not looked at stays on disk."""
    with reading(".npy"):
        # Mapped: numpy holds the shape that the header claims against the size of the file.
        mapped = np.lib.format.open_memmap(path, mode="r")
    _check_real_numbers(mapped, "the array")
    return mapped


def zip_names(path: Path, kind: str) -> list[str]:
    """Names of the members of a zip archive; `kind` is the ending that the file should have."""
    with reading(kind), zipfile.ZipFile(path) as archive:
        return archive.namelist()


def read_npz(
    path: Path, choose: Callable[[list[str]], Iterable[str]]
) -> dict[str, NDArray[np.float64]]:
    """Those arrays of an `.npz` file that are chosen from all names, of any shape."""
    arrays = {}
    with reading(".npz"), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        for name in choose(list(members)):
            what = f"array {name[:80]!r}"
            # The archive gives no more bytes than it claims here.
            check_size(what, members[name].file_size // 8)
            with archive.open(members[name]) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            _check_real_numbers(array, what)
            arrays[name] = floats(array)
    return arrays


def _check_real_numbers(array: NDArray[Any], what: str) -> None:
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise FormatError(f"{what} holds {str(array.dtype)[:40]}, expected real numbers")
    check_size(what, array.size)


def load_pt(path: Path) -> Any:
    """What a `.pt` file holds: dicts, lists, numbers, names and tensors that lie in the file."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "torch", f"reading {path}") from None
    with reading(".pt (torch 1.6 or later)"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type:
                # Mapped, its packed bytes would be taken for numbers.
                name = info.filename[:80]
                raise FormatError(f"member {name!r} is packed, torch saves none so")
            if info.filename.endswith(".pkl"):
                archive.read(info)  # torch does not hold it against its sum
    with reading(".pt"):
        try:
            # Mapped, steps and tokens that nobody looks at never come into memory.
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            # torch's first lines advise to load the file with all that it asks for.
            said = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
            raise FormatError(
                f"holds what is never loaded ({said[1][:80] if said else reason(error)}); "
                "save plain tensors"
            ) from None


def tensor_array(value: Any, place: str) -> NDArray[Any]:
    """A tensor of a file as an array, without a copy where numpy has its type."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise FormatError(f"{place} is {type(value).__name__}, expected a tensor")
    expected = f"{place} is of {value.dtype}, expected real numbers in a dense tensor"
    if value.layout != torch.strided:
        raise FormatError(expected)
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise FormatError(
            f"{place} has shape {tuple(value.shape)}, and only "
            f"{value.untyped_storage().nbytes()} bytes"
        )
    try:
        if value.dtype in {torch.float16, torch.bfloat16}:
            value = value.to(torch.float32)
        array: NDArray[Any] = value.detach().numpy()
    except (TypeError, RuntimeError):  # a type that numpy lacks, or a tensor without its values
        raise FormatError(expected) from None
    if array.dtype.kind not in "uif":
        raise FormatError(expected)
    return array
