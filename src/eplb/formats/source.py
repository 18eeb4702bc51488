"""What every reader shares: errors that name the file, and bounds on what a file may claim."""

import io
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import EplbError, FormatError, LoadsError

__all__ = [
    "LARGEST",
    "check_packing",
    "check_regular",
    "check_size",
    "frozen",
    "naming",
    "open_zip",
    "reason",
]

LARGEST = 4 << 30
"""Bytes of the largest array of loads that is read."""

_LOOSE = 64 << 20
"""Bytes that a packed file may unpack to, however tightly it is packed."""

_TIGHTEST = 250
"""Times that a larger one may unpack to: loads pack to a third, a bomb to a thousandth."""

_LARGEST_DIRECTORY = 8 << 20
"""Bytes of the directory of a zip archive: some 80,000 members."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever a file does to its reader into one FormatError that begins with its path."""
    try:
        yield
    except FormatError as error:
        text = str(error)
        if text.isprintable():
            raise
        # What a file says must not break lines, or speak to the user's terminal.
        plain = (each if each.isprintable() else ascii(each)[1:-1] for each in text)
        raise FormatError("".join(plain)) from None
    except LoadsError as error:
        raise FormatError(f"{path}: {error}") from None
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or reason(error)}") from None
    except MemoryError:
        raise FormatError(f"{path}: claims more values than memory holds") from None


def check_regular(path: Path) -> None:
    """Raise a FormatError for a pipe or a device, where reading could last for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise FormatError(f"{path}: is no regular file and no folder")


def check_size(path: Path, what: str, num_values: int) -> None:
    """Raise a FormatError where a file claims more values than any trace has."""
    if num_values * 8 > LARGEST:
        raise FormatError(
            f"{path}: {what} claims {num_values} values, at most {LARGEST // 8} are read"
        )


def check_packing(path: Path, what: str, size: int, packed: int) -> None:
    """Raise a FormatError where so few bytes unpack to so many that it can be no loads."""
    if size > max(_LOOSE, _TIGHTEST * packed):
        raise FormatError(
            f"{path}: {what} unpacks from {packed} to {size} bytes, "
            f"more than {_TIGHTEST} times as many"
        )


def frozen(values: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A buffer of float64 as a read-only array, which a LoadTrace takes without a copy."""
    view = memoryview(values).toreadonly()
    array: NDArray[np.float64] = np.frombuffer(view, np.float64).reshape(shape)
    return array


def reason(error: BaseException) -> str:
    """The first line of what a library says, cut to a length for people."""
    lines = str(error).splitlines() or [type(error).__name__]
    return " ".join(lines[0].split())[:120]


class _Bounded(io.BufferedReader):
    """A file that gives no more at once than the directory of a decent archive takes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"claims a directory of {size} bytes")
        return super().read(size)


@contextmanager
def open_zip(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    """A zip archive of stored or deflated members, each there once; `kind` is its ending."""
    try:
        with _Bounded(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            names = set()
            for info in archive.infolist():
                if info.filename in names:
                    raise FormatError(f"{path}: has the member {info.filename[:80]!r} twice")
                if info.flag_bits & 1:
                    raise FormatError(f"{path}: is encrypted")
                if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                    raise FormatError(
                        f"{path}: member {info.filename[:80]!r} is packed in way "
                        f"{info.compress_type}, known are stored and deflated"
                    )
                names.add(info.filename)
            yield archive
    except EplbError:
        raise
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        NotImplementedError,
        OverflowError,
        ValueError,
    ) as error:
        raise FormatError(f"{path}: not a whole {kind} file ({reason(error)})") from None
    except Exception as error:
        # zlib's errors have no common base with zipfile's, and struct's are of neither.
        if type(error).__module__ in {"zlib", "struct"}:
            raise FormatError(f"{path}: not a whole {kind} file ({reason(error)})") from None
        raise
