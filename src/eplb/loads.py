"""Loads at the border: what a user gives, checked and made into one kind of array."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import LoadsError

__all__ = ["as_array", "check_loads", "check_values", "check_weights", "check_windows", "is_tensor"]

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
        values = values.detach().to("cpu", torch.float64).numpy()
    try:
        array = np.asarray(values)
    except ValueError:
        raise LoadsError(f"{name} have rows of different lengths: give a full array") from None
    if array.dtype.kind not in "uif":
        raise LoadsError(f"{name} have type {array.dtype}: give real numbers")
    # Kernels would be compiled once more for an array that is read-only or not aligned.
    return np.require(array, np.float64, ["C_CONTIGUOUS", "ALIGNED", "WRITEABLE"])


def check_values(array: NDArray[np.float64]) -> None:
    """Raise a LoadsError that names the first value which is no number of tokens, if any is."""
    if array.size == 0:
        raise LoadsError(f"loads are empty, shape {array.shape}: give at least 1 layer and expert")
    # A comparison with NaN is false, so this catches it too.
    if not (array.min() >= 0.0 and array.max() <= _LARGEST):
        at = tuple(np.argwhere(~((array >= 0.0) & (array <= _LARGEST)))[0])
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
        raise LoadsError("weights are to be 0 or more, finite, and one of them above 0")
    normal: NDArray[np.float64] = array / array.sum()
    return normal
