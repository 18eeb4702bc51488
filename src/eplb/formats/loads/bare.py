"""Plain arrays of loads, which do not tell their axes.

What a name or the values make certain is read so, with a warning where that is a guess; where they
only look wrong, a warning names the option that settles it.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import counted
from eplb.errors import FormatError, LoadsError, OptionError
from eplb.formats.loads.lists import MOST_EXPERTS, Listed, list_in_array, listed
from eplb.formats.safe import floats, warn
from eplb.formats.windows import Steps
from eplb.loads import LoadTrace, check_values

_WORDS = ("windows", "layers", "ranks", "experts", "local", "tokens", "choices")
_ORDER = ("windows", "layers", "ranks", "experts")
_MOE_LOAD = re.compile(r"moe_load(?:_\d+)?", re.ASCII)
_BY_RANK = re.compile(r"(?<![a-z])(?:(?:by|per)[_-]?ranks?|ranks?[_-]layers?[_-]experts?)(?![a-z])")
_ROUTED = "routed_experts"

_AT_ONCE = 1 << 20
"""Choices that are counted at a time."""

_ONE_RANK = re.compile(r"(?:decode|prefill)_[0-9]+", re.ASCII)
"""How MindIE names files that have the experts of a rank, numbered within it, as columns."""

_EXAMPLES = "layers,ranks,local or ranks,layers,experts or tokens,layers,choices"

_UNLIKE = 0.2
"""Correlation of windows that follow each other, below which they are hardly of one model."""
_CLEARLY = 2.5
"""Standard deviations above none from which a correlation is no accident."""
_LOOKED_AT = 64
"""Windows that are looked at."""
_TINY = 1e-300

_ALIKE = 0.5
"""Correlation of rows so many apart, from which they are likely of one layer; those of different
layers have none."""

_MOST_LAYERS = 128
"""More layers than any model has, about: a table of more has a row for each expert."""


@dataclass(frozen=True, eq=False)
class Bare:
    """An array of numbers, of any number of axes, and the name that it has in its file."""

    array: NDArray[Any]
    name: str = ""


def check_axes(text: str) -> tuple[str, ...]:
    """Axes as a user writes them, such as "layers,ranks,local"."""
    axes = tuple(word.strip() for word in text.split(","))
    known = set(axes) <= set(_WORDS) and len(set(axes)) == len(axes) and "layers" in axes
    last = {"experts", "local", "choices"} & set(axes)
    fits = len(last) == 1 and ("tokens" in axes) == ("choices" in axes)
    if not known or not fits or ("local" in axes and "ranks" not in axes):
        raise OptionError(
            f"axes are {text!r}: name each axis, layers and experts among them, as in {_EXAMPLES}. "
            "Local experts are those of a rank, side by side; windows follow in time"
        )
    return axes


def understood(path: Path, bare: Bare, axes: tuple[str, ...] | None) -> LoadTrace | Steps | Listed:
    """The loads of an array whose axes are named, or known by the file's name or its values."""
    array = bare.array
    if axes is None and array.ndim == 2 and is_of_one_rank(path):
        return LoadTrace(floats(array))
    if axes is None:
        axes = _axes_of_name(path, bare)
    if axes is not None:
        if array.ndim != len(axes):
            raise FormatError(f"has shape {array.shape}, and axes are {', '.join(axes)}")
        return _routed(path, array, axes) if "choices" in axes else _arranged(array, axes)
    if array.ndim > 3:
        raise FormatError(
            f"has shape {array.shape}: say what the axes are, as in "
            "--axes windows,layers,ranks,local (axes)"
        )
    if array.ndim == 3:
        check_values(array)
        _warn_of_axes(path, array)
        return Steps([array], list(map(str, range(len(array)))))
    loads = floats(array)
    if loads.ndim == 2 and loads.size:
        found = list_in_array(path, loads)
        if found is not None:
            return found
        first = int(loads[0, 0]) if 0 <= loads[0, 0] < 1e6 else -1
        last = first + len(loads) - 1
        counts_up = first >= 0 and np.array_equal(loads[:, 0], np.arange(first, last + 1))
        if len(loads) > 2 and loads.shape[1] > 2 and counts_up:
            warn(
                path,
                f"its first column counts {first} to {last}, and is taken for the layers' "
                "numbers. If it is an expert's load, give the table a heading",
            )
            return LoadTrace(floats(loads[:, 1:]), layers=tuple(range(first, last + 1)))
    trace = LoadTrace(loads)
    _warn_of_axes(path, trace.loads)
    return trace


def is_of_one_rank(path: Path) -> bool:
    """Whether a file is named as those that have one rank's experts only."""
    return _ONE_RANK.fullmatch(path.stem) is not None


def split_rows(path: Path, loads: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T, L, E] windows of rows [T * L, E] to which the layers of each window were appended.

    Rows that follow each other are of different layers, and so many rows on the same layers come
    again: that number is known by what rows have in common. Where nothing comes again, all rows are
    layers of one window.
    """
    num_rows = len(loads)
    apart = loads - loads.mean(axis=1, keepdims=True)
    norm = np.sqrt((apart**2).sum(axis=1))
    apart /= np.where(norm > 0.0, norm, 1.0)[:, None]
    highest = 0.0
    for lag in range(1, min(num_rows // 2, _MOST_LAYERS) + 1):
        alike = float((apart[:-lag] * apart[lag:]).sum(axis=1).mean())
        if alike > max(_ALIKE, 2.0 * highest) and num_rows % lag == 0:
            warn(
                path,
                f"every {lag} rows are alike, so its {num_rows} rows are taken for "
                f"{num_rows // lag} windows of {counted(lag, 'layer')}",
            )
            return loads.reshape(-1, lag, loads.shape[1])
        highest = max(highest, alike)
    return loads[None]


def _arranged(array: NDArray[Any], axes: tuple[str, ...]) -> LoadTrace:
    """Loads with ranks added up, or their experts side by side."""
    named = ["experts" if axis == "local" else axis for axis in axes]
    missing = [axis for axis in _ORDER if axis not in named]
    whole = array.reshape(*array.shape, *[1] * len(missing))
    order = [[*named, *missing].index(axis) for axis in _ORDER]
    whole = np.transpose(whole, order)
    if "local" in axes:
        return LoadTrace(floats(whole.reshape(*whole.shape[:2], -1)))
    counted = None
    if "ranks" in axes:
        counted = np.moveaxis(whole.sum(axis=0, dtype=np.float64), 1, 0)
    return LoadTrace(floats(whole.sum(axis=2, dtype=np.float64)), sources=counted)


def _axes_of_name(path: Path, bare: Bare) -> tuple[str, ...] | None:
    """The axes that the name of a file, or of an array in it, tells; None where it does not."""
    shape = bare.array.shape
    if _ROUTED in f"{path.stem} {bare.name}":
        if len(shape) == 3:
            return "tokens", "layers", "choices"
        raise FormatError(
            f"has {_ROUTED} of shape {shape}: give them as [tokens, layers, k], with the "
            "requests of a batch one after the other"
        )
    if len(shape) == 3 and _MOE_LOAD.fullmatch(path.stem):
        return "layers", "ranks", "local"
    if len(shape) == 3 and _BY_RANK.search(f"{path.stem} {bare.name}".lower()):
        warn(
            path,
            f"is called by ranks, so its {shape[0]} arrays are taken for those of ranks and added "
            "up. If they follow in time, give --axes windows,layers,experts (axes)",
        )
        return "ranks", "layers", "experts"
    return None


def chosen_counts(ids: NDArray[Any]) -> NDArray[np.int64]:
    """[L, E] how often tokens chose each expert, of `ids` [tokens, L, k]; -1 is padding."""
    most = int(ids.max(initial=-1))
    if not (ids.min(initial=0) >= -1 and most < MOST_EXPERTS):
        raise LoadsError(f"has experts outside -1 to {MOST_EXPERTS - 1} under {_ROUTED}")
    _, num_layers, top_k = ids.shape
    counts = np.zeros(num_layers * (most + 1), np.int64)
    first = np.arange(num_layers)[:, None] * (most + 1)
    at_once = max(1, _AT_ONCE // (num_layers * top_k))
    for begin in range(0, len(ids), at_once):
        some = ids[begin : begin + at_once]
        experts = some.astype(np.int64)
        if not np.array_equal(some, experts):
            raise LoadsError(f"has no whole numbers under {_ROUTED}")
        real = experts != -1
        counts += np.bincount((first + experts)[real], minlength=len(counts))
    return counts.reshape(num_layers, most + 1)


def _routed(path: Path, array: NDArray[Any], axes: tuple[str, ...]) -> Listed:
    """A list of the experts that tokens chose, of layers in order."""
    if "ranks" in axes or "windows" in axes:
        raise OptionError("axes tokens and choices go with layers alone")
    counts = chosen_counts(
        np.transpose(array, [axes.index(axis) for axis in ("tokens", "layers", "choices")])
    )
    layers, experts = (each.ravel() for each in np.indices(counts.shape))
    tokens = counts.ravel().astype(np.float64)
    return listed(path, None, layers, experts, tokens, numbered=False)


def _warn_of_axes(path: Path, loads: NDArray[Any]) -> None:
    """Warn of an array whose axes are likely others than windows, layers and experts."""
    num_windows, num_layers, num_experts = loads.shape
    if num_layers > max(_MOST_LAYERS, num_experts):
        warn(
            path,
            f"has {counted(num_layers, 'layer')} of {num_experts} experts. If its axes are "
            "others, name them, as in --axes experts,layers (axes)",
        )
    if num_windows > 1 and loads.any() and not _seem_windows(loads[:_LOOKED_AT].astype(np.float64)):
        warn(
            path,
            f"is read as {num_windows} windows of {counted(num_layers, 'layer')} and "
            f"{num_experts} experts, but its windows have nothing in common that shows it. If its "
            f"axes are others, name them, as in --axes {_EXAMPLES}; if they are these, "
            "--axes windows,layers,experts (axes) says so",
        )


def _seem_windows(loads: NDArray[np.float64]) -> bool:
    """Whether the windows [T, L, E] show that they are of one model: each is clearly like the next.

    What differs between experts is to be found again in the next window, except for the noise of
    counting, whose variance is the mean. If the first axis has ranks or layers, nothing is.
    """
    apart = loads - loads.mean(axis=2, keepdims=True)
    signal = max(0.0, 1.0 - float(loads.mean()) / max(float((apart**2).mean()), _TINY))
    before, after = (each.reshape(len(loads) - 1, -1) for each in (apart[:-1], apart[1:]))
    norms = np.sqrt((before**2).sum(axis=1) * (after**2).sum(axis=1))
    if not (norms > 0.0).any():
        return False
    alike = ((before * after).sum(axis=1)[norms > 0.0] / norms[norms > 0.0]).mean()
    by_chance = 1.0 / math.sqrt((norms > 0.0).sum() * loads[0].size)
    return bool(alike > max(_UNLIKE * signal, _CLEARLY * by_chance))
