"""Plain arrays of loads, which do not tell their axes, and windows that may be none.

What a name or the values make certain is read so, with a warning where that is a guess; where they
only look wrong, a warning names the option that settles it.
"""

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, LoadsError, OptionError
from eplb.formats.loads.lists import Listed, list_in_array, listed
from eplb.formats.safe import floats, warn
from eplb.loads import LoadTrace

__all__ = ["Bare", "check_axes", "check_windows_of", "differences", "understood"]

_WORDS = ("windows", "layers", "ranks", "experts", "local", "tokens", "choices")
_ORDER = ("windows", "layers", "ranks", "experts")
_MOE_LOAD = re.compile(r"moe_load_\d+", re.ASCII)
_ROUTED = "routed_experts"

_EXAMPLES = "layers,ranks,local or ranks,layers,experts or tokens,layers,choices"

_UNLIKE = 0.2
"""Correlation of windows that follow each other, below which they are hardly of one model."""

_FEWEST = 24
"""Values that must agree before it is no accident."""

_MOST_LAYERS = 128
"""More layers than any model has, about: a table of more has a row for each expert."""


@dataclass(frozen=True, eq=False)
class Bare:
    """An array of numbers, of any number of axes, and the name that it has in its file."""

    array: NDArray[Any]
    name: str = ""


def check_axes(text: str) -> tuple[str, ...]:
    """Axes as a user writes them, such as "layers,ranks,local".

    Raises:
        OptionError: words that do not say what each axis is.
    """
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


def understood(path: Path, bare: Bare, axes: tuple[str, ...] | None) -> LoadTrace | Listed:
    """The loads of an array whose axes are named, or known by the file's name or its values.

    Raises:
        FormatError: an array of other axes than were named, or of more than can be guessed.
    """
    array = bare.array
    if axes is None and array.ndim == 3:
        if _MOE_LOAD.fullmatch(path.stem):
            axes = ("layers", "ranks", "local")
        elif _ROUTED in f"{path.stem} {bare.name}":
            axes = ("tokens", "layers", "choices")
    if axes is not None:
        if array.ndim != len(axes):
            raise FormatError(f"{path}: has shape {array.shape}, and axes are {', '.join(axes)}")
        return _routed(path, array, axes) if "choices" in axes else _arranged(array, axes)
    if array.ndim > 3:
        raise FormatError(
            f"{path}: has shape {array.shape}: say what the axes are, as in "
            "--axes windows,layers,ranks,local (axes)"
        )
    if array.ndim == 2 and array.size:
        found = list_in_array(path, array)
        if found is not None:
            return found
        first = int(array[0, 0]) if 0 <= array[0, 0] < 1e6 else -1
        if len(array) > 2 and array.shape[1] > 2 and _counts_up(array[:, 0], first):
            last = first + len(array) - 1
            warn(
                path,
                f"its first column counts {first} to {last}, and is taken for the layers' "
                "numbers. If it is an expert's load, give the table a heading",
            )
            return LoadTrace(floats(array[:, 1:]), layers=tuple(range(first, last + 1)))
    # What a reader made float64 is not copied once more.
    trace = LoadTrace(array if array.dtype == np.float64 else floats(array))
    _warn_of_axes(path, trace)
    return trace


def check_windows_of(source: Path, trace: LoadTrace) -> None:
    """Warn of windows that may be ranks or counters, and of loads that may be one rank's."""
    loads = trace.loads
    if trace.num_windows > 2 and _never_falls(loads) and (loads[1:] > 0).sum() >= _FEWEST:
        warn(
            source,
            f"no count falls in any of {trace.num_windows} windows. If they are counters "
            "since the engine's start, give --counters (counters)",
        )
    if trace.num_windows > 1 and loads[0].size >= _FEWEST and _share_nothing(loads, trace.dense):
        warn(
            source,
            f"no expert has load in two of the {trace.num_windows} windows. If each is a "
            f"rank that counted its own experts, give --merge {trace.num_windows} (merged) to add "
            "them up",
        )
    elif loads[0].size >= _FEWEST:
        idle = np.ones(trace.num_experts, np.bool_)
        for window in loads:
            idle &= ~window.any(axis=0)
            if 2 * idle.sum() <= trace.num_experts:
                return
        if not idle.all():
            warn(
                source,
                f"{idle.sum()} of {trace.num_experts} experts have no load in any layer. "
                "If this is the file of one rank, give the folder of all ranks' files",
            )


def differences(trace: LoadTrace) -> LoadTrace:
    """Windows from counters since the start: what each adds to the one before, the first as it is.

    Where all counts together fall, the engine was started again, and counts begin anew.

    Raises:
        LoadsError: counts of which some fall and others do not: no counters.
    """
    loads = trace.loads.copy()
    for number in range(len(loads) - 1, 0, -1):
        before = trace.loads[number - 1]
        fell = loads[number] < before
        if loads[number].sum() < before.sum():
            continue
        if fell.any():
            layer, expert = np.argwhere(fell)[0]
            raise LoadsError(
                f"counters fall from {before[layer, expert]:g} to "
                f"{loads[number, layer, expert]:g} (layer {layer}, expert {expert}, window "
                f"{trace.names[number]}): these are no counters since the start"
            )
        loads[number] -= before
    loads.flags.writeable = False
    return replace(trace, loads=loads)


def _arranged(array: NDArray[Any], axes: tuple[str, ...]) -> LoadTrace:
    """Loads with ranks added up, or their experts side by side."""
    named = ["experts" if axis == "local" else axis for axis in axes]
    missing = [axis for axis in _ORDER if axis not in named]
    whole = array.reshape(*array.shape, *[1] * len(missing))
    order = [[*named, *missing].index(axis) for axis in _ORDER]
    whole = np.transpose(whole, order)
    if "local" in axes:
        return LoadTrace(floats(whole.reshape(*whole.shape[:2], -1)))
    return LoadTrace(floats(whole.sum(axis=2, dtype=np.float64)))


def _routed(path: Path, array: NDArray[Any], axes: tuple[str, ...]) -> Listed:
    """A list of the experts that tokens chose; -1 is padding."""
    if "ranks" in axes or "windows" in axes:
        raise OptionError("axes tokens and choices go with layers alone")
    ids = np.transpose(array, [axes.index(axis) for axis in ("layers", "tokens", "choices")])
    layers = np.repeat(np.arange(len(ids)), ids[0].size)
    chosen = ids.reshape(-1) != -1
    pairs, counts = np.unique(
        np.stack([layers[chosen], ids.reshape(-1)[chosen]]), axis=1, return_counts=True
    )
    found = listed(path, None, pairs[0].astype(float), pairs[1].astype(float), counts.astype(float))
    return replace(found, numbered=False) if len(ids) == 1 else found


def _counts_up(column: NDArray[Any], first: int) -> bool:
    return first >= 0 and np.array_equal(column, np.arange(first, first + len(column)))


def _warn_of_axes(path: Path, trace: LoadTrace) -> None:
    """Warn of an array whose axes are likely others than windows, layers and experts."""
    loads = trace.loads
    if trace.num_layers > max(_MOST_LAYERS, trace.num_experts):
        warn(
            path,
            f"has {trace.num_layers} layers of {trace.num_experts} experts. If its axes are "
            "others, name them, as in --axes experts,layers (axes)",
        )
    few = loads[:64]
    if len(few) < 3 or few[0].size < 8:
        return
    apart = few - few.mean(axis=2, keepdims=True)
    # What differs between experts must be more than the noise of counting.
    if (apart**2).mean() < 3 * few.mean():
        return
    before, after = apart[:-1].reshape(len(few) - 1, -1), apart[1:].reshape(len(few) - 1, -1)
    norms = np.sqrt((before**2).sum(axis=1) * (after**2).sum(axis=1))
    both = norms > 0
    if both.any() and ((before * after).sum(axis=1)[both] / norms[both]).mean() < _UNLIKE:
        warn(
            path,
            f"is read as {trace.num_windows} windows of {trace.num_layers} layers and "
            f"{trace.num_experts} experts, and its windows have nothing in common. If its axes "
            f"are others, name them, as in --axes {_EXAMPLES} (axes)",
        )


def _never_falls(loads: NDArray[np.float64]) -> bool:
    """Whether each window has all that the one before has, and more."""
    for before, window in pairwise(loads):
        if (window < before).any() or not window.sum() > before.sum():
            return False
    return True


def _share_nothing(loads: NDArray[np.float64], dense: NDArray[np.bool_]) -> bool:
    """Whether windows have load on different experts, and together on most."""
    seen = np.zeros(loads.shape[1:], np.bool_)
    num_used = 0
    for window in loads:
        used = window > 0
        if (used & seen).any():
            return False
        seen |= used
        num_used += bool(used.any())
    return num_used > 1 and bool(2 * seen.sum() > (~dense).sum() * loads.shape[2])
