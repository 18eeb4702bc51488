"""What the planner is asked, checked, and what it fills in: plans of all layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from eplb.checks import number_of_threads, whole_number
from eplb.cluster import Cluster, check_shape
from eplb.errors import ClusterError, LoadsError, OptionError
from eplb.loads import as_array, check_weights, check_windows, to_total
from eplb.placement import Placement
from eplb.planning.pins import Pinned
from eplb.solver.arrays import F64, I64, B, Gpus, Task, Wishes

Effort = Literal["fast", "default", "thorough"]
"""How much work a plan may be: fixed amounts, the same on every host."""

_UNEVEN_NODES = (
    "groups are not kept on nodes: the GPUs alive do not divide over them as the groups do"
)
_UNEVEN_GPUS = "groups are not kept on nodes: the GPUs differ in slots or speed"

_TINY = 1e-100
"""Squares of loads much below this would underflow."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be planned.

    Attributes:
        windows: [T, L, E] loads, in an order that does not depend on how they came; of several
            windows each layer has one total, that of their mean.
        weight: [T, L] what windows count in a layer, 0 where it has no load; adds up to 1.
        loads: [L, E] the mean over windows.
        exponent: of a power of two, the unit of all these loads; 0 unless they are tiny.
        cluster: the GPUs that are alive, numbered from 0, and their slots.
        whole: the cluster that was asked for, dead GPUs and all.
        num_groups: groups that the model routes by.
        nodes: nodes that groups are kept on, 1 if they go anywhere.
        threads: most threads to use.
        notes: what a user should know of the loads.
        pinned: what placements must keep to, None for nothing.
    """

    windows: F64
    weight: F64
    loads: F64
    exponent: int
    cluster: Cluster
    whole: Cluster
    num_groups: int
    nodes: int
    threads: int
    notes: tuple[str, ...]
    pinned: Pinned | None = None

    @property
    def loaded(self) -> I64:
        """The layers that have some load."""
        return np.flatnonzero(self.loads.any(axis=1))

    @property
    def speed(self) -> float:
        """The mean speed of the GPUs that are alive: peaks and bounds here are for one of 1."""
        return 1.0 if self.cluster.speed is None else float(np.mean(self.cluster.speed))

    @cached_property
    def gpus(self) -> Gpus:
        """The GPUs that are alive, for kernels: their slots, and their pace, 1 on average."""
        first = np.zeros(self.cluster.num_gpus + 1, np.int64)
        np.cumsum(self.cluster.capacity, out=first[1:])
        pace, speed = np.ones(self.cluster.num_gpus), self.cluster.speed
        if speed is not None and len(set(speed)) > 1:
            pace = np.array(speed) / self.speed
        return Gpus(first, pace)

    @cached_property
    def wishes(self) -> Wishes:
        """What placements must keep to, for kernels."""
        if self.pinned is not None:
            return self.pinned.wishes
        num_experts = self.loads.shape[1]
        return Wishes(
            np.zeros((1, 0, 0), np.bool_),
            np.ones((1, num_experts), np.int64),
            np.full((1, num_experts), self.cluster.num_held),
            np.empty((1, num_experts, 0), np.int64),
        )

    @cached_property
    def task(self) -> Task:
        """The problem, for kernels."""
        return Task(self.windows, self.weight, self.nodes, self.gpus, self.wishes)

    def placement(self, phy2log: I64) -> Placement:
        """The placement of slots [L, P] of the GPUs alive."""
        return Placement._of_survivors(phy2log, self.loads.shape[1], self.whole)

    def held_by(self, placement: Placement) -> B:
        """[L, G, E] whether each GPU that is alive holds an expert in a placement."""
        held = placement.held_by(self.whole.num_gpus)
        return np.ascontiguousarray(held[:, list(self.whole.alive)]) if self.whole.dead else held

    def of_layers(self, rows: I64) -> Problem:
        """The same of some layers [K], in that order, of which one may come again."""
        # `[:, rows]` would be of another layout, for which kernels are compiled anew.
        return replace(
            self,
            windows=self.windows.take(rows, axis=1),
            weight=self.weight.take(rows, axis=1),
            loads=self.loads[rows],
            pinned=None if self.pinned is None else self.pinned.of_layers(rows),
        )


@dataclass(frozen=True, eq=False)
class Layers:
    """Plans of all layers, in arrays that the passes fill.

    Attributes:
        phy2log: [L, P] expert in each slot that a GPU alive has, GPU by GPU.
        peaks: [L] expected load of the busiest GPU, by its pace.
        bounds: [L] proven: no plan has a lower peak.
    """

    phy2log: I64
    peaks: F64
    bounds: F64

    @classmethod
    def of_slots(cls, shape: tuple[int, ...]) -> Layers:
        """Room for plans [L, P], of which no bound is proven yet."""
        return cls(np.empty(shape, np.int64), np.empty(shape[0]), np.zeros(shape[0]))

    @property
    def filled(self) -> tuple[I64, F64, F64]:
        """The arrays, for kernels."""
        return self.phy2log, self.peaks, self.bounds


def check_effort(effort: Effort) -> Effort:
    """One of the efforts.

    Raises:
        OptionError: another.
    """
    if effort not in get_args(Effort):
        raise OptionError(f"effort is {effort!r}: give {', '.join(map(repr, get_args(Effort)))}")
    return effort


def check_problem(
    loads: Any, cluster: Cluster, num_groups: int, weights: Any, threads: int | None
) -> Problem:
    """What is to be planned, checked; arguments and errors as of `eplb.plan`."""
    windows = check_windows(loads)
    raw = None if weights is None else as_array(weights, "weights")
    weight = check_weights(raw, windows.shape[0])
    _, num_layers, num_experts = windows.shape
    num_groups = whole_number(num_groups, "num_groups", error=ClusterError)
    nodes = check_shape(num_experts, cluster, num_groups)
    threads = number_of_threads(threads)
    notes: tuple[str, ...] = ()
    whole = replace(cluster, dead=()) if cluster.dead else cluster
    if nodes == 1 < check_shape(num_experts, whole, num_groups):
        notes = (_UNEVEN_NODES,)
    if nodes > 1 and not cluster.survivors.even:
        nodes, notes = 1, (_UNEVEN_GPUS,)
    if windows.shape[0] > 1:
        with_load = np.asarray(windows.any(axis=(1, 2)))
        if not with_load[weight > 0.0].any():
            raise LoadsError(
                f"none of {windows.shape[0]} windows has any load: give at least one that has"
            )
        notes += _notes(with_load, weight)
        counting = np.flatnonzero(with_load & (weight > 0.0))
        if counting.size == 1:
            # A view: a copy would take a tenth of the time of a plan.
            windows = windows[counting[0] : counting[0] + 1]
        else:
            # To the last bit as if only these had been given.
            windows = windows[counting]
            weight = np.ones(counting.size) if raw is None else raw[counting]
    if windows.shape[0] == 1:
        mean, weight_of = windows[0], np.ones((1, num_layers))
    else:
        windows, weight_of, mean = _of_one_total(windows, weight)
    largest = mean.max()
    exponent = int(np.frexp(largest)[1]) if largest < _TINY else 0
    if exponent:
        windows, mean = np.ldexp(windows, -exponent), np.ldexp(mean, -exponent)
    return Problem(
        windows,
        weight_of,
        mean,
        exponent,
        cluster.survivors,
        cluster,
        num_groups,
        nodes,
        threads,
        notes,
    )


def _notes(with_load: B, weight: F64) -> tuple[str, ...]:
    """What is to be said of windows that count for nothing."""
    empty = np.flatnonzero(~with_load & (weight > 0.0))
    if not 0 < empty.size < with_load.size:
        return ()
    some = ", ".join(map(str, empty[:5])) + (", ..." if empty.size > 5 else "")
    return (f"{empty.size} of {with_load.size} windows have no load and were left out: {some}",)


def _of_one_total(windows: F64, weight: F64) -> tuple[F64, F64, F64]:
    """Windows [T, L, E] of the total of their mean in each layer, what they count there [T, L], and
    their mean [L, E], from weights [T] of any sum.

    Those of a layer are put in an order of what they hold, so that not a bit depends on how they
    come.
    """
    # Bytes of numbers of 0 or more, the highest first, are in the order of the numbers.
    keys = (windows + 0.0).astype(">f8")
    num_windows, num_layers, _ = windows.shape
    order = np.empty((num_windows, num_layers), np.int64)
    for layer in range(num_layers):
        content = [(keys[t, layer].tobytes(), weight[t]) for t in range(num_windows)]
        order[:, layer] = sorted(range(num_windows), key=content.__getitem__)
    windows = np.take_along_axis(windows, order[:, :, None], axis=0)
    total = windows.sum(axis=2)
    counts = np.where(total > 0.0, weight[order], 0.0)
    loaded, mean_total = np.zeros(total.shape[1]), np.zeros(total.shape[1])
    # One window after the other: products of matrices differ from processor to processor.
    for count, of_window in zip(counts, total, strict=True):
        loaded += count
        mean_total += count * of_window
    with np.errstate(all="ignore"):
        counts /= np.where(loaded > 0.0, loaded, 1.0)
        mean_total /= np.where(loaded > 0.0, loaded, 1.0)
        windows = to_total(windows, total[:, :, None], mean_total[:, None])
        mean = np.zeros(windows.shape[1:])
        for count, window in zip(counts, windows, strict=True):
            mean += count[:, None] * window
    if not np.isfinite(mean).all():
        raise LoadsError("windows differ too much in their totals: give loads of like windows")
    return windows, counts, mean
