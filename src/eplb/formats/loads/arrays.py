"""Arrays of loads: `.npy`, `.npz`, and the project's own compact `.npz`, never unpickled.

The project's own form has the arrays `loads` [T, L, E] in the smallest type that holds them,
`times` [T] and `sources` [R, L, E] where they are known, and `about`: the bytes of a line of JSON
with names, top_k, model.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.files import replacing
from eplb.formats import safe
from eplb.formats.loads.bare import Bare
from eplb.formats.loads.note import about_text, trace_about
from eplb.loads import LoadTrace

_NAMES = ("logical_count", "loads", "counts", "load", "routed_experts")
"""Names of the array in an `.npz` that has several, the first found is taken."""

_OWN = ("about", "loads", "times", "sources")


def read_npy(path: Path) -> Bare:
    """The array in a `.npy` file."""
    return Bare(safe.read_npy(path))


def read_npz(path: Path) -> LoadTrace | Bare:
    """Loads in a `.npz` file: the project's own, its only array, or the one named as loads are."""

    def choose(names: list[str]) -> list[str]:
        if "about" in names and "loads" in names:
            return [name for name in _OWN if name in names]
        chosen = [name for name in _NAMES if name in names] or names
        if not chosen or (len(names) > 1 and chosen[0] not in _NAMES):
            raise FormatError(
                f"has arrays {', '.join(sorted(names)[:8])[:200] or 'none'}: "
                f"name that of the loads {_NAMES[0]}"
            )
        return chosen[:1]

    arrays = safe.read_npz(path, choose)
    if "about" not in arrays or "loads" not in arrays:
        name, array = next(iter(arrays.items()))
        return Bare(array, name)
    with np.errstate(invalid="ignore"):
        text = arrays["about"].astype(np.uint8).tobytes()
    trace = trace_about(text, arrays["loads"], [], arrays.get("times"))
    return replace(trace, sources=arrays.get("sources"))


def write_npz(trace: LoadTrace, path: Path) -> None:
    """Write the project's own compact form: whole numbers in the smallest type that holds them."""
    arrays: dict[str, Any] = {"loads": _smallest(trace.loads)}
    if trace.sources is not None:
        arrays["sources"] = _smallest(trace.sources)
    if trace.times is not None:
        arrays["times"] = trace.times
    arrays["about"] = np.frombuffer(about_text(trace, names=True).encode("ascii"), np.uint8)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def _smallest(loads: NDArray[np.float64]) -> NDArray[Any]:
    """The loads in the smallest unsigned type that holds all exactly, as they are where they are
    not whole.
    """
    whole = all(np.array_equal(window, np.floor(window)) for window in loads)
    largest = float(loads.max())
    if whole:
        for name in ("uint8", "uint16", "uint32", "uint64"):
            dtype = np.dtype(name)
            # 2**64 - 1 is no float64: below 2**64 is what is meant.
            if largest < float(2 ** (8 * dtype.itemsize)):
                return loads.astype(dtype)
    return loads
