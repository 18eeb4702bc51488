"""The planner's passes over layers, each over threads, and the arrays that they fill."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from eplb.checks import number_of_threads, whole_number
from eplb.cluster import Cluster, check_shape
from eplb.errors import ClusterError, LoadsError, OptionError
from eplb.loads import check_weights, check_windows
from eplb.placement import Placement
from eplb.planning.relocate import Relocation, Work, relocate
from eplb.solver.threads import run_kernel

__all__ = ["Effort", "Solution", "check_effort"]

Effort = Literal["fast", "default", "thorough"]
"""How much work a plan may be: fixed amounts, the same on every host."""

_QUICK = (4, 8)
"""Layers that a thread takes at a time, least and most, where each takes microseconds."""
_SLOW = (1, 1)
"""The same where each takes longer than starting on it."""


@dataclass(frozen=True)
class Solution:
    """The planner's passes over layers, each over threads, and the arrays that they fill.

    Each pass is compiled when it is first needed.
    """

    windows: NDArray[np.float64]
    weight: NDArray[np.float64]
    loads: NDArray[np.float64]
    cluster: Cluster
    num_groups: int
    nodes: int
    threads: int
    phy2log: NDArray[np.int64]
    peaks: NDArray[np.float64]
    bounds: NDArray[np.float64]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        loads: Any,
        cluster: Cluster,
        num_groups: int,
        weights: Any,
        threads: int | None,
    ) -> "Solution":
        """With everything checked and nothing solved yet; arguments and errors as of `plan`."""
        windows = check_windows(loads)
        weight = check_weights(weights, windows.shape[0])
        _, num_layers, num_experts = windows.shape
        num_groups = whole_number(num_groups, "num_groups", error=ClusterError)
        nodes = check_shape(num_experts, cluster, num_groups)
        threads = number_of_threads(threads)
        if windows.shape[0] > 1 and not windows[weight > 0.0].any():
            raise LoadsError(
                f"none of {windows.shape[0]} windows has any load: give at least one that has"
            )
        notes = _notes(windows, weight)
        seen = np.flatnonzero(weight)
        if seen.size == 1:
            # A view: a copy would take a tenth of the time of a plan.
            windows, weight = windows[seen[0] : seen[0] + 1], np.ones(1)
        return cls(
            windows,
            weight,
            windows[0] if seen.size == 1 else _mean_of(windows, weight),
            cluster,
            num_groups,
            nodes,
            threads,
            np.empty((num_layers, cluster.num_slots), np.int64),
            np.empty(num_layers),
            np.zeros(num_layers),
            notes,
        )

    def make(self, effort: Effort, *, anew: bool) -> bool:
        """Plan every layer for all windows; where that takes long and no plan made afresh is
        needed (`anew`), for their mean only. Return whether it was for all.
        """
        if self.windows.shape[0] == 1:
            self.solve(effort)
        elif anew or effort != "fast":
            self.solve_windows(effort)
        else:
            self.solve(effort)
            return False
        return True

    def relocate(
        self,
        current: Placement,
        budget: int | None = None,
        price: NDArray[np.float64] | None = None,
        *,
        anew: bool,
        near: float | None = None,
    ) -> Relocation:
        """Walk from a current placement to what is solved, or, where that is not for all windows,
        as far as it goes; or to where the gap is `near`.
        """
        from eplb.solver.layers import NEAR_ENOUGH

        layers = np.flatnonzero(self.loads.any(axis=1))
        shape = (self.cluster, self.nodes, self.num_groups, self.threads)
        work = Work(self.windows, self.weight, layers, *shape, near or NEAR_ENOUGH)
        enough = self.bounds * (1.0 + work.near)
        if anew and near is None:
            np.maximum(enough, self.peaks, out=enough)
        afresh = self.phy2log if anew else None
        return relocate(work, current, afresh, self.peaks, enough, budget, price)

    def solve(self, effort: Effort) -> NDArray[np.int64]:
        """Plan every layer, then those again that are not near enough to their bound; return the
        experts of each node, as `_gather` does.
        """
        from eplb.solver.improve import (
            FEW_SLOTS,
            WORTH_A_SEARCH,
            _recount_layers,
            _search_layers,
        )
        from eplb.solver.layers import NEAR_ENOUGH

        expert_of = self._gather()
        self._first_pass(expert_of)
        far = self._above(FEW_SLOTS)
        if far.any() and effort != "fast":
            self._raise_bounds(np.flatnonzero(far))
            self._again(_recount_layers, far & self._above(NEAR_ENOUGH))
        if effort != "fast":
            worth = NEAR_ENOUGH if effort == "thorough" else WORTH_A_SEARCH
            self._again(_search_layers, self._above(worth))
        return expert_of

    def solve_windows(self, effort: Effort) -> None:
        """Plan every layer for its mean, then those with any load for the windows [T, L, E]."""
        from eplb.solver.windows import EFFORTS, _plan_windows

        expert_of = self.solve(effort)
        layers = np.flatnonzero(self.loads.any(axis=1))
        filled = (self.phy2log, self.peaks, self.bounds)
        cluster = self.cluster
        shape = (expert_of, cluster.num_gpus, cluster.slots_per_gpu)
        windows, weight = self.windows, self.weight
        deviations = _deviations(1.0 / float((weight**2).sum()))

        def work(begin: int, end: int) -> None:
            some = layers[begin:end]
            _plan_windows(windows, weight, some, *shape, deviations, EFFORTS[effort], *filled)

        run_kernel(_plan_windows, work, layers.size, _SLOW, self.threads)

    def _gather(self) -> NDArray[np.int64]:
        """The experts of each node, [L, N, E / N], or [1, 1, E] where nodes do not matter."""
        num_layers, num_experts = self.loads.shape
        if self.nodes == 1:
            return np.arange(num_experts).reshape(1, 1, num_experts)
        from eplb.solver.groups import _gather_layers

        expert_of = np.empty((num_layers, self.nodes, num_experts // self.nodes), np.int64)

        def work(begin: int, end: int) -> None:
            _gather_layers(self.loads, begin, end, self.num_groups, expert_of, self.bounds)

        run_kernel(_gather_layers, work, num_layers, _QUICK, self.threads)
        np.divide(self.bounds, self.cluster.num_gpus // self.nodes, out=self.bounds)
        return expert_of

    def _first_pass(self, expert_of: NDArray[np.int64]) -> None:
        from eplb.solver.layers import _plan_layers

        num_gpus, slots_per_gpu = self.cluster.num_gpus, self.cluster.slots_per_gpu
        filled = (self.phy2log, self.peaks, self.bounds)

        def work(begin: int, end: int) -> None:
            _plan_layers(self.loads, begin, end, expert_of, num_gpus, slots_per_gpu, *filled)

        run_kernel(_plan_layers, work, self.loads.shape[0], _QUICK, self.threads)

    def _raise_bounds(self, layers: NDArray[np.int64]) -> None:
        from eplb.solver.bounds import _raise_bounds

        num_gpus, slots_per_gpu = self.cluster.num_gpus, self.cluster.slots_per_gpu

        def work(begin: int, end: int) -> None:
            some = layers[begin:end]
            _raise_bounds(self.loads, some, num_gpus, slots_per_gpu, self.peaks, self.bounds)

        run_kernel(_raise_bounds, work, layers.size, _SLOW, self.threads)

    def _again(self, improve: Callable[..., None], which: NDArray[np.bool_]) -> None:
        """Improve the layers that `which` [L] says by one of the kernels that do so."""
        layers = np.flatnonzero(which)
        filled = (self.phy2log, self.peaks, self.bounds)

        def work(begin: int, end: int) -> None:
            some = layers[begin:end]
            improve(self.loads, some, self.nodes, self.cluster.num_gpus, *filled)

        run_kernel(improve, work, layers.size, _SLOW, self.threads)

    def _above(self, gap: float) -> NDArray[np.bool_]:
        """[L] whether a layer's peak is above its bound by more than a gap."""
        return self.peaks > self.bounds * (1.0 + gap)


def check_effort(effort: Effort) -> Effort:
    """One of the efforts.

    Raises:
        OptionError: another.
    """
    if effort not in get_args(Effort):
        raise OptionError(f"effort is {effort!r}: give {', '.join(map(repr, get_args(Effort)))}")
    return effort


def _notes(windows: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[str, ...]:
    """What is to be said of windows that count for nothing."""
    num_windows = windows.shape[0]
    if num_windows == 1:
        return ()
    empty = np.flatnonzero(~windows.any(axis=(1, 2)) & (weight > 0.0))
    if not 0 < empty.size < num_windows:
        return ()
    some = ", ".join(map(str, empty[:5])) + (", ..." if empty.size > 5 else "")
    return (f"{empty.size} of {num_windows} windows have no load and were left out: {some}",)


def _mean_of(windows: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L, E] the mean of windows that are scaled to the same total in each layer; not a bit of it
    depends on the order in which they come.
    """
    from eplb.solver.windows import SORTED_BY

    layers = np.arange(windows.shape[1])
    # One window after the other: products of matrices differ from processor to processor.
    order = np.lexsort(windows[:, :, :SORTED_BY].transpose(2, 1, 0)[::-1]).T
    total = windows.sum(axis=2)[order, layers]
    counts = np.where(total > 0.0, weight[order], 0.0)
    loaded, mean_total = np.zeros(layers.size), np.zeros(layers.size)
    for count, of_window in zip(counts, total, strict=True):
        loaded += count
        mean_total += count * of_window
    np.divide(mean_total, loaded, out=mean_total, where=loaded > 0.0)
    mean = np.zeros(windows.shape[1:])
    with np.errstate(all="ignore"):
        for rank, (count, of_window) in enumerate(zip(counts, total, strict=True)):
            factor = count / loaded * (mean_total / of_window)
            mean += np.where(count > 0.0, factor, 0.0)[:, None] * windows[order[rank], layers]
    if not np.isfinite(mean).all():
        raise LoadsError("windows differ too much in their totals: give loads of like windows")
    return mean


def _deviations(num_windows: float) -> float:
    """The largest of so many normal numbers, as expected (Blom, 1958), to two decimals, so that it
    is the same on every host: how far above its mean an expert's load is to be planned for.
    """
    largest = NormalDist().inv_cdf((num_windows - 0.375) / (num_windows + 0.25))
    return max(0.0, round(largest, 2))
