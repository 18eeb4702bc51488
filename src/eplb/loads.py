"""Loads at the border: what a user gives, checked and made into one kind of array, and LoadTrace,
the loads of one model over time.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import Immutable, counted, printable, rising_layers, whole_number
from eplb.errors import LoadsError
from eplb.merging import Merge, Merging, Recording

_LARGEST = 1e100
"""Far above any count of tokens, far below where squares of loads overflow."""


def is_tensor(value: object) -> bool:
    """Whether a value is a torch tensor, without importing torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(values: Any, name: str = "loads") -> NDArray[np.float64]:
    """Numbers of any kind (a tensor on any device, an array, lists) as a float64 array.

    Messages call them by `name`.

    Raises:
        LoadsError: what is not an array of real numbers.
    """
    if is_tensor(values):
        torch = sys.modules["torch"]
        if values.dtype == torch.bool or values.is_complex():
            raise LoadsError(f"{name} have type {values.dtype}: give real numbers")
        try:
            values = values.detach().to("cpu", torch.float64).resolve_neg().numpy()
        except (NotImplementedError, RuntimeError, TypeError):
            raise LoadsError(
                f"{name} are a tensor of layout {values.layout} on {values.device}: give a dense "
                "one with values, as of to_dense()"
            ) from None
    if np.ma.is_masked(values):
        raise LoadsError(f"{name} are masked in places: give a full array, as of filled(0)")
    try:
        array = np.asarray(values)
    except TypeError:
        raise LoadsError(f"{name} are a list that numpy cannot read: give one array") from None
    except ValueError:
        raise LoadsError(f"{name} have rows of different lengths: give a full array") from None
    if array.dtype.kind not in "uif":
        raise LoadsError(f"{name} have type {array.dtype}: give real numbers")
    # Kernels would be compiled once more for an array that is read-only or not aligned.
    return np.require(array, np.float64, ["C_CONTIGUOUS", "ALIGNED", "WRITEABLE"])


def check_values(array: NDArray[Any]) -> None:
    """Raise a LoadsError that names the first value which is no number of tokens, if any is."""
    if array.size == 0:
        raise LoadsError(f"loads are empty, shape {array.shape}: give at least 1 layer and expert")
    # A comparison with NaN is false, so this catches it too.
    with np.errstate(invalid="ignore"):
        least, most = float(array.min()), float(array.max())
    if not (least >= 0.0 and most <= _LARGEST):
        with np.errstate(invalid="ignore"):
            wide = array.astype(np.float64)
        at = tuple(np.argwhere(~((wide >= 0.0) & (wide <= _LARGEST)))[0])
        raise LoadsError(
            f"loads[{', '.join(map(str, at))}] is {array[at]}: "
            f"loads are numbers of tokens, from 0 to {_LARGEST:g}"
        )


def check_loads(loads: Any) -> NDArray[np.float64]:
    """Loads of one window, [L, E], as a float64 array.

    Args:
        loads: [L, E] tokens routed to each logical expert: a torch tensor of any type and device,
            a numpy array or nested lists.

    Raises:
        LoadsError: an array of another rank, an empty one, or one with a value that is not finite
            or below 0; the message names the first.
    """
    array = as_array(loads)
    if array.ndim != 2:
        raise LoadsError(
            f"loads have shape {array.shape}: give two axes, layers and experts [L, E]"
        )
    check_values(array)
    return array


def check_windows(loads: Any) -> NDArray[np.float64]:
    """Loads of one window [L, E] or of several [T, L, E], as a float64 array [T, L, E].

    Raises:
        LoadsError: as for `check_loads`.
    """
    array = as_array(loads)
    if array.ndim not in {2, 3}:
        raise LoadsError(
            f"loads have shape {array.shape}: give layers and experts [L, E], "
            "or windows of them [T, L, E]"
        )
    check_values(array)
    return array if array.ndim == 3 else array[None]


def to_total(
    windows: NDArray[np.float64], total: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Windows [T, L, E] whose layers add up to `total` [T, L, 1], so that they add up to `wanted`
    [L, 1]; a layer without load keeps none.
    """
    scale = np.divide(wanted, total, out=np.zeros_like(total), where=total > 0.0)
    return windows * scale


def check_weights(weights: Any, num_windows: int) -> NDArray[np.float64]:
    """What windows count, [T], adding up to 1; all alike where `weights` is None.

    Raises:
        LoadsError: another number of weights than windows, or one that is not finite or below 0, or
            none above 0.
    """
    if weights is None:
        return np.full(num_windows, 1.0 / num_windows)
    array = as_array(weights, "weights")
    if array.shape != (num_windows,):
        raise LoadsError(
            f"weights have shape {array.shape}: give one for each of {num_windows} windows"
        )
    if not (array.min() >= 0.0 and 0.0 < array.max() <= _LARGEST):
        raise LoadsError("weights must be finite, 0 or more, and not all 0")
    normal: NDArray[np.float64] = array / array.sum()
    return normal


@dataclass(frozen=True, eq=False, repr=False)
class LoadTrace(Immutable):
    """Loads of T windows, checked and immutable.

    Attributes:
        loads: [T, L, E] tokens routed to each logical expert; one window may be given as [L, E].
        names: T names of the windows, by default "0", "1", ...
        times: [T] seconds at which the windows were recorded, where the source tells; otherwise
            None.
        top_k: experts that a token is routed to in a layer, where the source tells.
        model: name of the model, where the source tells.
        layers: L numbers that the layers have in the model, rising; None where the source does not
            tell whether it counts dense layers. Traces that differ in nothing else are equal.
        merging: what became of the windows that were recorded, None where they are as recorded.
        sources: [R, L, E] tokens routed to each expert from each of R source ranks, in order and
            all windows together, where the source counts by rank; otherwise None. They tell what
            part of an expert's tokens comes from where, and stay as they are in a trace of some of
            the windows; like `layers`, they are not compared.
        ordered: whether windows follow each other in time. Others are workloads, as in a folder of
            files whose names tell no order: none is later than another, so each is held out in turn
            where ordered ones are tried on what came next. One window is in order.

    Raises:
        LoadsError: loads of another rank, empty, or with a value that is no number of tokens; names
            or times of another number than there are windows, or of another type; a top_k that no
            token could have; layers that are not L rising numbers; sources of another model.
    """

    loads: NDArray[np.float64]
    names: Sequence[str] = ()
    times: NDArray[np.float64] | None = None
    top_k: int | None = None
    model: str | None = None
    layers: tuple[int, ...] | None = None
    merging: Merging | None = None
    sources: NDArray[np.float64] | None = None
    ordered: bool = True

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
            top_k = whole_number(self.top_k, "top_k", most=loads.shape[2], error=LoadsError)
            object.__setattr__(self, "top_k", top_k)
        if self.layers is not None:
            layers = rising_layers(self.layers, loads.shape[1], "layers", LoadsError)
            object.__setattr__(self, "layers", layers)
        if self.sources is not None:
            sources = _frozen(self.sources)
            if sources.ndim != 3 or sources.shape[1:] != loads.shape[1:]:
                raise LoadsError(
                    f"sources have shape {sources.shape}: give ranks, and the layers and experts "
                    f"of the loads, [R, {loads.shape[1]}, {loads.shape[2]}]"
                )
            check_values(sources)
            object.__setattr__(self, "sources", sources)
        object.__setattr__(self, "ordered", bool(self.ordered) or num_windows == 1)

    def __len__(self) -> int:
        return self.num_windows

    def __repr__(self) -> str:
        model = "" if self.model is None else f" of {printable(self.model)}"
        return (
            f"LoadTrace({self.in_words}{model}, "
            f"{counted(self.num_layers, 'layer')}, {counted(self.num_experts, 'expert')})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LoadTrace):
            return NotImplemented
        return (
            (self.names, self.top_k, self.model, self.ordered)
            == (other.names, other.top_k, other.model, other.ordered)
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
    def in_words(self) -> str:
        """How many windows there are, and whether they are in order: "6 workloads in no order"."""
        if self.ordered:
            return counted(self.num_windows, "window")
        return f"{counted(self.num_windows, 'workload')} in no order"

    @property
    def num_layers(self) -> int:
        """L, dense layers among them where the source counts them."""
        return int(self.loads.shape[1])

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """L numbers to call the layers by: those in the model, or where these are not known, those
        of their rows.
        """
        return self.layers or tuple(range(self.num_layers))

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

    def last(self, most: int) -> NDArray[np.float64]:
        """[S, L, E] the last windows, so many at most; all where they are in no order."""
        return self.loads[-most:] if self.ordered else self.loads

    def pick(self, windows: slice | Iterable[int]) -> "LoadTrace":
        """The trace of some windows, by a slice or by their numbers, in the order given.

        Raises:
            LoadsError: no window, one that is not there, or what is no number of one.
        """
        numbers = range(self.num_windows)
        if isinstance(windows, slice):
            chosen = list(numbers[windows])
        elif np.iterable(windows):
            what, most = "a window's number", self.num_windows - 1
            chosen = [
                whole_number(each, what, least=0, most=most, error=LoadsError) for each in windows
            ]
        else:
            raise LoadsError(f"windows are {windows!r}: give a slice or their numbers")
        if not chosen:
            raise LoadsError(f"no window is given: windows are numbered 0 to {numbers[-1]}")
        # Windows that follow each other are shared, not copied.
        steps = np.diff(chosen)
        rising = slice(chosen[0], chosen[-1] + 1) if (steps == 1).all() else chosen
        return replace(
            self,
            loads=self.loads[rising],
            names=[self.names[number] for number in chosen],
            times=None if self.times is None else self.times[chosen],
            merging=self.merging and replace(self.merging, changed=0),
        )

    def merged(self, merge: Merge = "auto") -> "LoadTrace":
        """The trace with neighbouring windows added up, as they are in order or named.

        Args:
            merge: "auto" adds neighbours up until they differ by more than chance, and leaves what
                was merged before as it is; "none"; "all"; or a number of windows in a row to add up
                to one, where a rest is left out.

        Raises:
            LoadsError: a number below 1, or more than there are windows.
            OptionError: another word.
        """
        if merge == "auto" and self.merging is not None:
            return self
        if merge not in ("auto", "none", "all"):
            what = "the number of windows to add up"
            merge = whole_number(merge, what, most=self.num_windows, error=LoadsError)
        if merge in {"none", 1}:
            return replace(self, merging=self.merging or Merging(self.num_windows))
        recording = Recording(merge)
        times = None if self.times is None else self.times.tolist()
        recording.add(self.loads, self.names, times)
        found = trace_of(recording, self.top_k, self.model, self.layers, self.sources)
        return found if self.ordered else replace(found, ordered=False)


def trace_of(
    recording: Recording,
    top_k: int | None = None,
    model: str | None = None,
    layers: tuple[int, ...] | None = None,
    sources: NDArray[np.float64] | None = None,
) -> LoadTrace:
    """The trace of a recording that has been read."""
    loads, names, times, merging = recording.finish(top_k)
    return LoadTrace(loads, names, times, top_k, model, layers, merging, sources)


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
