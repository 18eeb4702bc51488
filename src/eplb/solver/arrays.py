"""Arrays, and what kernels are told in them of what is planned for; numba is not needed for it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["F64", "I32", "I64", "B", "Gpus", "Task", "Wishes"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
B = NDArray[np.bool_]


class Gpus(NamedTuple):
    """G GPUs, where they may differ."""

    first: I64
    """[G + 1] first slot of a GPU, and the end."""
    pace: F64
    """[G] how fast a GPU is, 1 on average."""


class Wishes(NamedTuple):
    """What placements must keep to, of each of K layers, or of all alike where K is 1."""

    barred: B
    """[K, G, E] experts that a GPU may not hold; [K, 0, 0] where each may be anywhere."""
    least: I64
    """[K, E] fewest copies of an expert; all on GPUs of their own where that is above 1."""
    most: I64
    """[K, E] most copies."""
    apart: I64
    """[K, E, D] experts that no GPU may hold beside one, -1 behind the last of them."""


class Task(NamedTuple):
    """What L layers of E experts are planned for, and where."""

    windows: F64
    """[T, L, E] loads, of one total in a layer."""
    weights: F64
    """[T, L] what windows count; adds up to 1 in a layer."""
    num_nodes: int
    """Nodes, equally many GPUs on each; experts stay on the one where they are."""
    gpus: Gpus
    wishes: Wishes
