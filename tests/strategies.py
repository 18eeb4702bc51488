"""Loads and clusters for property tests: ties, zeros, experts without load, and wide skew."""

import math
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from numba import config
from numpy.typing import NDArray

from eplb import Cluster

__all__ = ["COMPILED", "Cell", "cells", "grouped_cells", "layer_loads", "loads"]

COMPILED = not config.DISABLE_JIT  # type: ignore[attr-defined]
"""Whether kernels are compiled: without, an example takes hundreds of times longer."""

_TIED = st.integers(0, 4).map(float)
_TOKENS = st.integers(0, 100_000).map(float)
_SKEWED = st.floats(-7.0, 7.0).map(math.exp)
_RARE = st.one_of(st.just(0.0), st.just(-0.0), _SKEWED)


class Cell(NamedTuple):
    """What a plan is made from."""

    loads: NDArray[np.float64]
    cluster: Cluster
    num_groups: int = 1


def layer_loads(num_experts: int) -> st.SearchStrategy[list[float]]:
    """Loads of the experts of one layer."""
    return st.one_of(
        *(
            st.lists(kind, min_size=num_experts, max_size=num_experts)
            for kind in (_TIED, _TOKENS, _SKEWED, _RARE)
        )
    )


@st.composite
def loads(draw: st.DrawFn, num_experts: int, max_layers: int = 3) -> NDArray[np.float64]:
    """[L, E] loads."""
    layers = draw(st.lists(layer_loads(num_experts), min_size=1, max_size=max_layers))
    return np.array(layers)


@st.composite
def cells(draw: st.DrawFn, max_gpus: int = 8, max_slots: int = 4, max_experts: int = 24) -> Cell:
    """A cluster and loads for it, no more slots on a GPU than there are experts."""
    num_gpus = draw(st.integers(1, max_gpus))
    slots_per_gpu = draw(st.integers(1, max_slots))
    most = min(max_experts, num_gpus * slots_per_gpu)
    num_experts = draw(st.integers(min(slots_per_gpu, most), most))
    return Cell(draw(loads(num_experts)), Cluster(num_gpus, 1, slots_per_gpu))


@st.composite
def grouped_cells(draw: st.DrawFn) -> Cell:
    """Groups that the nodes divide, and no more slots on a GPU than there are experts on a node."""
    num_nodes = draw(st.integers(2, 4))
    groups_per_node = draw(st.integers(1, 3))
    group_size = draw(st.integers(1, 4))
    experts_per_node = groups_per_node * group_size
    slots_per_gpu = draw(st.integers(1, experts_per_node))
    fewest = -(-experts_per_node // slots_per_gpu)
    gpus_per_node = draw(st.integers(fewest, fewest + 3))
    return Cell(
        draw(loads(num_nodes * experts_per_node, max_layers=2)),
        Cluster(num_nodes * gpus_per_node, num_nodes, slots_per_gpu),
        num_nodes * groups_per_node,
    )
