"""LoadTrace: the loads of one model over time, window by window."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import LoadsError
from eplb.loads import as_array, check_values
from eplb.text import printable

__all__ = ["LoadTrace"]


@dataclass(frozen=True, eq=False, repr=False)
class LoadTrace:
    """Loads of T windows in order, checked and immutable.

    Attributes:
        loads: [T, L, E] tokens routed to each logical expert; one window may be given as [L, E].
        names: T names of the windows, by default "0", "1", ...
        times: [T] seconds at which the windows were recorded, where the source tells; otherwise
            None.
        top_k: experts that a token is routed to in a layer, where the source tells.
        model: name of the model, where the source tells.

    Raises:
        LoadsError: loads of another rank, empty, or with a value that is no number of tokens; names
            or times of another number than there are windows, or of another type; a top_k that no
            token could have.
    """

    loads: NDArray[np.float64]
    names: Sequence[str] = ()
    times: NDArray[np.float64] | None = None
    top_k: int | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        loads = _frozen(self.loads)
        if loads.ndim == 2:
            loads = loads[None]
        if loads.ndim != 3:
            raise LoadsError(
                f"loads have shape {loads.shape}: give windows, layers and experts [T, L, E]"
            )
        check_values(loads)
        num_windows = loads.shape[0]
        if not np.iterable(self.names):
            raise LoadsError(f"names are {self.names!r}: give one for each window")
        names = tuple(map(str, self.names)) or tuple(map(str, range(num_windows)))
        if len(names) != num_windows:
            raise LoadsError(f"{len(names)} names for {num_windows} windows: give one for each")
        object.__setattr__(self, "loads", loads)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "times", _times(self.times, num_windows))
        if self.top_k is not None:
            top_k = _whole(self.top_k, "top_k")
            if not 1 <= top_k <= loads.shape[2]:
                raise LoadsError(f"top_k is {top_k}: a token goes to 1 to {loads.shape[2]} experts")
            object.__setattr__(self, "top_k", top_k)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrays come writable out of a pickle."""
        self.__dict__.update(state)
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def __len__(self) -> int:
        return self.num_windows

    def __repr__(self) -> str:
        model = "" if self.model is None else f" of {printable(self.model)}"
        return (
            f"LoadTrace({self.num_windows} windows{model}, {self.num_layers} layers, "
            f"{self.num_experts} experts)"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LoadTrace):
            return NotImplemented
        return (
            (self.names, self.top_k, self.model) == (other.names, other.top_k, other.model)
            and _same(self.times, other.times)
            and np.array_equal(self.loads, other.loads)
        )

    def __hash__(self) -> int:
        return hash((self.loads.shape, self.names, self.top_k, self.model))

    @property
    def num_windows(self) -> int:
        """T."""
        return int(self.loads.shape[0])

    @property
    def num_layers(self) -> int:
        """L, dense layers among them where the source counts them."""
        return int(self.loads.shape[1])

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.loads.shape[2])

    @cached_property
    def dense(self) -> NDArray[np.bool_]:
        """[L] which layers have no load in any window: dense ones, that stay in place."""
        dense = np.logical_not(self.loads.any(axis=(0, 2)))
        dense.flags.writeable = False
        return dense

    def total(self) -> NDArray[np.float64]:
        """[L, E] all windows added up."""
        total: NDArray[np.float64] = self.loads.sum(axis=0)
        return total

    def pick(self, windows: slice | Iterable[int]) -> "LoadTrace":
        """The trace of some windows, by a slice or by their numbers, in the order given.

        Raises:
            LoadsError: no window, one that is not there, or what is no number of one.
        """
        numbers = range(self.num_windows)
        if isinstance(windows, slice):
            chosen = list(numbers[windows])
        elif np.iterable(windows):
            chosen = [_whole(number, "a window's number") for number in windows]
        else:
            raise LoadsError(f"windows are {windows!r}: give a slice or their numbers")
        wrong = [number for number in chosen if number not in numbers]
        if wrong or not chosen:
            what = f"window {wrong[0]}" if wrong else "no window"
            raise LoadsError(f"{what} was asked for: there are 0 to {self.num_windows - 1}")
        # Windows that follow each other are shared, not copied.
        steps = np.diff(chosen)
        rising = slice(chosen[0], chosen[-1] + 1) if (steps == 1).all() else chosen
        return LoadTrace(
            self.loads[rising],
            [self.names[number] for number in chosen],
            None if self.times is None else self.times[chosen],
            self.top_k,
            self.model,
        )

    def merged(self, size: int) -> "LoadTrace":
        """The trace with every `size` windows in a row added up to one; a rest is left out.

        Raises:
            LoadsError: a size below 1, or more than there are windows.
        """
        size = _whole(size, "the number of windows to add up")
        if not 1 <= size <= self.num_windows:
            raise LoadsError(
                f"{size} windows cannot be added up to one: there are {self.num_windows}"
            )
        if size == 1:
            return self
        loads = np.empty((self.num_windows // size, *self.loads.shape[1:]))
        for number, window in enumerate(loads):
            self.loads[number * size : (number + 1) * size].sum(axis=0, out=window)
        loads.flags.writeable = False
        return LoadTrace(
            loads,
            self.names[: loads.shape[0] * size : size],
            None if self.times is None else self.times[: loads.shape[0] * size : size],
            self.top_k,
            self.model,
        )


def _frozen(values: Any) -> NDArray[np.float64]:
    """Loads that nobody can change: a copy, but of what is read-only already."""
    if (
        isinstance(values, np.ndarray)
        and values.dtype == np.float64
        and values.flags.c_contiguous
        and _read_only(values)
    ):
        return values
    array = as_array(values)
    if array is values or array.base is not None:
        array = array.copy()
    array.flags.writeable = False
    return array


def _read_only(array: NDArray[Any]) -> bool:
    """Whether an array is read-only, and so is all that it is a view of."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        owner = owner.base
    if owner is None:
        return True
    try:
        return memoryview(owner).readonly
    except TypeError:
        return False


def _whole(value: object, name: str) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise LoadsError(f"{name} is {value!r}: give a whole number") from None


def _times(values: Any, num_windows: int) -> NDArray[np.float64] | None:
    if values is None:
        return None
    try:
        times = np.array(values, np.float64)
    except (TypeError, ValueError):
        raise LoadsError(f"times are no numbers: give seconds for {num_windows} windows") from None
    if times.shape != (num_windows,) or not np.isfinite(times).all():
        raise LoadsError(
            f"times have shape {times.shape}: give seconds, one for each of {num_windows} windows"
        )
    times.flags.writeable = False
    return times


def _same(one: NDArray[np.float64] | None, other: NDArray[np.float64] | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
