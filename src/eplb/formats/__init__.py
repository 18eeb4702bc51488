"""Files that engines and users keep loads and placements in: one module a format."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, LoadsError
from eplb.formats.arrays import read_csv, read_npy, read_npz
from eplb.formats.sglang import read_json
from eplb.formats.torch_file import read_pt
from eplb.loads import check_loads

__all__ = ["read_loads"]

_READERS: dict[str, Callable[[Path], NDArray[np.float64]]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".npy": read_npy,
    ".npz": read_npz,
    ".pt": read_pt,
}


def read_loads(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Loads from a file: SGLang's `logical_count` JSON or `.pt`, `.npy`, `.npz` or CSV.

    Args:
        path: a file; its ending tells the format. Windows or steps [T, L, E] are added up.

    Returns:
        [L, E], with all layers that the file has; those of dense layers are all zero.

    Raises:
        FormatError: a file that cannot be read, or is not what its ending says; the message begins
            with the path.
        MissingExtraError: a `.pt` file without torch.
    """
    file = Path(path)
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(_READERS))
        raise FormatError(f"{file}: the ending tells the format, and it is none of {known}")
    try:
        if not file.is_file():
            reason = "is a folder, not a file" if file.is_dir() else "does not exist"
            raise FormatError(f"{file}: {reason}")
        array = reader(file)
    except OSError as error:
        raise FormatError(f"{file}: {error.strerror or error}") from None
    except MemoryError:
        raise FormatError(f"{file}: claims more values than memory holds") from None
    try:
        if array.ndim == 3 and array.size:
            # Each window is checked, so that what is wrong in one cannot hide in the sum.
            check_loads(array.reshape(-1, array.shape[-1]))
            array = array.sum(axis=0)
        return check_loads(array)
    except LoadsError as error:
        raise FormatError(f"{file}: {error}") from None
