"""The planner: loads and a cluster in, a placement with its peak and proven bound out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster, whole_number
from eplb.errors import ClusterError, LoadsError, OptionError
from eplb.loads import check_weights, check_windows
from eplb.placement import Placement
from eplb.relocation import Relocation, Work, check_current, check_moves, relocate
from eplb.threads import check_threads, run_kernel

__all__ = ["Effort", "Plan", "check_shape", "plan", "warmup"]

Effort = Literal["fast", "default", "thorough"]
"""How much work a plan may be: fixed amounts, the same on every host."""

_QUICK = (4, 8)
"""Layers that a thread takes at a time, least and most, where each takes microseconds."""
_SLOW = (1, 1)
"""The same where each takes longer than starting on it."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What the planner decided, and how far from proven best it is.

    Attributes:
        placement: the experts of every slot.
        peak: [L] load of the busiest GPU, in the unit of the loads; of several windows the expected
            one, each window scaled to their mean total.
        bound: [L] proven: no plan for this cluster, with the groups on nodes, has a lower peak.
        moves: experts that GPUs must receive, from the placement that was current; 0 without one.
        notes: what a user should know of the loads: windows that count for nothing.
    """

    placement: Placement
    peak: NDArray[np.float64]
    bound: NDArray[np.float64]
    moves: int = 0
    notes: tuple[str, ...] = ()

    @cached_property
    def gap(self) -> NDArray[np.float64]:
        """[L] peak / bound - 1: what is left to gain at most; 0 for layers with no load."""
        safe = np.where(self.bound > 0.0, self.bound, 1.0)
        gap: NDArray[np.float64] = np.where(self.bound > 0.0, self.peak / safe - 1.0, 0.0)
        gap.flags.writeable = False
        return gap


def plan(
    loads: Any,
    cluster: Cluster,
    *,
    num_groups: int = 1,
    weights: Any = None,
    current: Placement | None = None,
    max_moves: int | None = None,
    move_cost: float | None = None,
    effort: Effort = "default",
    threads: int | None = None,
) -> Plan:
    """Decide how many replicas each expert gets and on which GPU each sits.

    Layers are planned on their own. For one window: replicas by Adams' apportionment, packed by the
    balanced largest differencing method, then improved by swaps until the busiest GPU is within
    0.04 % of a proven lower bound; where swaps end further than 0.1 % from it, by a search over
    replica counts and hand-overs of slots, until a fixed amount of work is spent. For several
    windows the expected peak is lowered: each is scaled to the same total, replicas go by the mean
    load and its standard deviation, are spread so that loads of a GPU add up evenly in every
    window, and swapped under norms of rising power. No GPU gets two replicas of an expert unless it
    has more slots than there are experts. The same input gives the same plan on every host and with
    any number of threads.

    With a current placement each layer is walked from there towards balance, and goes as far as a
    budget of moves, shared by all layers, or the price of a move allows, never further than to the
    peak of a plan made afresh. Experts that stay on a GPU keep their slot.

    Args:
        loads: tokens routed to each logical expert, of one window [L, E] or several [T, L, E]: a
            torch tensor of any type and device, a numpy array or nested lists. A layer with no load
            is spread evenly; a window in which a layer has none counts for nothing there.
        cluster: the GPUs and their slots; at least E slots.
        num_groups: groups that the model routes by. Where the nodes divide them, each group stays
            on one node, equally many on each, so that the busiest node is as light as it can be;
            otherwise experts go anywhere.
        weights: [T] what windows count, None for all alike.
        current: the placement that runs, of this cluster or of one with other GPUs or slots: GPUs
            keep their numbers, those added hold nothing, those taken away are the last. None to
            plan afresh.
        max_moves: most moves from `current` in all layers together, None for any number.
        move_cost: what the peak of a layer is to fall by at least for each move, in the unit of the
            loads. None for 0.05 % of the mean GPU load, or for nothing where `max_moves` is given.
        effort: "fast", "default" or "thorough": fixed amounts of work, each several times the one
            before. "fast" with a current placement and several windows plans nothing afresh.
        threads: most threads to use, None for one a processor.

    Raises:
        LoadsError: loads that are not [L, E] or [T, L, E], or hold values that are not finite or
            below 0; weights of another number, or below 0.
        ClusterError: fewer slots than experts, or groups that do not divide the experts.
        PlacementError: a current placement of other layers or experts.
        OptionError: another effort; a negative number of moves or cost, or one of the two without
            a current placement; a budget with which not every expert would have a slot.
    """
    windows = check_windows(loads)
    weight = check_weights(weights, windows.shape[0])
    _, num_layers, num_experts = windows.shape
    num_groups = whole_number(num_groups, "num_groups")
    nodes = check_shape(num_experts, cluster, num_groups)
    if effort not in get_args(Effort):
        raise OptionError(f"effort is {effort!r}: give {', '.join(map(repr, get_args(Effort)))}")
    threads = check_threads(threads)
    if current is None:
        if max_moves is not None or move_cost is not None:
            raise OptionError("max_moves and move_cost need a current placement to move from")
    else:
        current = check_current(current, num_layers, num_experts)
        max_moves, move_cost = check_moves(max_moves, move_cost)
    solution = _Solution.of(windows, weight, cluster, nodes, threads)
    afresh = solution.make(num_groups, effort, anew=current is None)
    phy2log, peaks, moves = solution.phy2log, solution.peaks, 0
    if current is not None:
        relocation = solution.relocate(current, num_groups, max_moves, anew=afresh)
        price = np.full(num_layers, move_cost or 0.0)
        if move_cost is None and max_moves is None:
            price = DEFAULT_MOVE_COST * solution.loads.sum(axis=1) / cluster.num_gpus
        phy2log, peaks = relocation.settle(relocation.choose(max_moves, price))
    # Rounding may leave a proven bound above the peak that attains it.
    bounds = np.minimum(solution.bounds, peaks)
    for array in (peaks, bounds):
        array.flags.writeable = False
    placement = Placement._trusted(phy2log, num_experts, cluster)
    if current is not None:
        moves = placement.moves_from(current)
    return Plan(placement, peaks, bounds, moves, _notes(windows, weight))


def _notes(windows: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[str, ...]:
    """What is to be said of windows that count for nothing."""
    if windows.shape[0] == 1:
        return ()
    empty = np.flatnonzero(~windows.any(axis=(1, 2)) & (weight > 0.0))
    if not 0 < empty.size < windows.shape[0]:
        return ()
    some = ", ".join(map(str, empty[:5])) + (", ..." if empty.size > 5 else "")
    return (f"{empty.size} of {windows.shape[0]} windows have no load and were left out: {some}",)


def _mean_of(windows: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L, E] the mean of windows that are scaled to the same total in each layer."""
    total = windows.sum(axis=2)
    loaded = np.zeros(total.shape[1])
    mean_total = np.zeros(total.shape[1])
    for each, of_window in zip(weight, total, strict=True):
        loaded += np.where(of_window > 0.0, each, 0.0)
        mean_total += each * of_window
    np.divide(mean_total, loaded, out=mean_total, where=loaded > 0.0)
    # One window after the other: products of matrices differ from processor to processor.
    mean = np.zeros(windows.shape[1:])
    with np.errstate(all="ignore"):
        for each, of_window, window in zip(weight, total, windows, strict=True):
            factor = each / loaded * (mean_total / of_window)
            counts = (of_window > 0.0) & (each > 0.0)
            mean += np.where(counts, factor, 0.0)[:, None] * window
    if not np.isfinite(mean).all():
        raise LoadsError("windows differ too much in their totals: give loads of like windows")
    return mean


@dataclass(frozen=True)
class _Solution:
    """The planner's passes over layers, each over threads, and the arrays that they fill.

    Each pass is compiled when it is first needed.
    """

    windows: NDArray[np.float64]
    weight: NDArray[np.float64]
    loads: NDArray[np.float64]
    cluster: Cluster
    nodes: int
    threads: int
    phy2log: NDArray[np.int64]
    peaks: NDArray[np.float64]
    bounds: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        windows: NDArray[np.float64],
        weight: NDArray[np.float64],
        cluster: Cluster,
        nodes: int,
        threads: int,
    ) -> "_Solution":
        """With nothing solved yet."""
        seen = np.flatnonzero(weight)
        if seen.size == 1:
            windows, weight = windows[seen], np.ones(1)
        num_layers = windows.shape[1]
        return cls(
            windows,
            weight,
            windows[0] if seen.size == 1 else _mean_of(windows, weight),
            cluster,
            nodes,
            threads,
            np.empty((num_layers, cluster.num_slots), np.int64),
            np.empty(num_layers),
            np.zeros(num_layers),
        )

    def make(self, num_groups: int, effort: Effort, *, anew: bool) -> bool:
        """Plan every layer for all windows; where that takes long and no plan made afresh is
        needed (`anew`), for their mean only. Return whether it was for all.
        """
        if self.windows.shape[0] == 1:
            self.solve(num_groups, effort)
        elif anew or effort != "fast":
            self.solve_windows(num_groups, effort)
        else:
            self.solve(num_groups, effort)
            return False
        return True

    def relocate(
        self, current: Placement, num_groups: int, budget: int | None, *, anew: bool
    ) -> Relocation:
        """Walk from a current placement to what is solved, or, where that is not for all windows,
        as far as it goes.
        """
        from eplb.solver.layers import NEAR_ENOUGH

        layers = np.flatnonzero(self.loads.any(axis=1))
        work = Work(
            self.windows, self.weight, layers, self.cluster, self.nodes, num_groups, self.threads
        )
        enough = self.bounds * (1.0 + NEAR_ENOUGH)
        if anew:
            np.maximum(enough, self.peaks, out=enough)
        return relocate(work, current, self.phy2log if anew else None, self.peaks, enough, budget)

    def solve(self, num_groups: int, effort: Effort) -> NDArray[np.int64]:
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

        expert_of = self._gather(num_groups)
        self._first_pass(expert_of)
        far = self._above(FEW_SLOTS)
        if far.any() and effort != "fast":
            self._raise_bounds(np.flatnonzero(far))
            self._again(_recount_layers, far & self._above(NEAR_ENOUGH))
        if effort != "fast":
            worth = NEAR_ENOUGH if effort == "thorough" else WORTH_A_SEARCH
            self._again(_search_layers, self._above(worth))
        return expert_of

    def solve_windows(self, num_groups: int, effort: Effort) -> None:
        """Plan every layer for its mean, then those with any load for the windows [T, L, E]."""
        from eplb.solver.windows import EFFORTS, _plan_windows

        expert_of = self.solve(num_groups, effort)
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

    def _gather(self, num_groups: int) -> NDArray[np.int64]:
        """The experts of each node, [L, N, E / N], or [1, 1, E] where nodes do not matter."""
        num_layers, num_experts = self.loads.shape
        if self.nodes == 1:
            return np.arange(num_experts).reshape(1, 1, num_experts)
        from eplb.solver.groups import _gather_layers

        expert_of = np.empty((num_layers, self.nodes, num_experts // self.nodes), np.int64)

        def work(begin: int, end: int) -> None:
            _gather_layers(self.loads, begin, end, num_groups, expert_of, self.bounds)

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


def _deviations(num_windows: float) -> float:
    """The largest of so many normal numbers, as expected (Blom, 1958), to two decimals, so that it
    is the same on every host: how far above its mean an expert's load is to be planned for.
    """
    largest = NormalDist().inv_cdf((num_windows - 0.375) / (num_windows + 0.25))
    return max(0.0, round(largest, 2))


DEFAULT_MOVE_COST = 5e-4
"""What a move is to gain where nothing else is said, as a share of the mean GPU load."""


def warmup() -> None:
    """Compile every kernel, or load it from disk, so that no later plan waits for that.

    Servers call this when they start. What is compiled is kept beside the package, or in the
    user's cache where that cannot be written, so only the first process on a machine compiles.
    """
    # Two slots on a GPU and loads this uneven need every pass.
    loads = np.array([[600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0]])
    for num_groups in (1, 4):
        cluster = Cluster(num_gpus=8, num_nodes=2, slots_per_gpu=2)
        made = plan(loads, cluster, num_groups=num_groups)
        made.placement.log2phy  # noqa: B018  # has a kernel of its own
        plan(np.stack([loads, loads[:, ::-1]]), cluster, num_groups=num_groups)


def check_shape(num_experts: int, cluster: Cluster, num_groups: int) -> int:
    """Check that the experts fit the cluster; return the nodes that groups are spread over.

    Raises:
        ClusterError: fewer slots than experts, or groups that do not divide the experts.
    """
    if cluster.num_slots < num_experts:
        enough = -(-num_experts // cluster.num_gpus)
        raise ClusterError(
            f"{cluster.num_slots} slots do not hold {num_experts} experts: give each of the "
            f"{cluster.num_gpus} GPUs at least {enough} slots, {enough * cluster.num_gpus} in all"
        )
    if num_experts % num_groups:
        divisors = [k for k in range(1, num_experts + 1) if num_experts % k == 0]
        nearest = sorted(divisors, key=lambda k: (abs(k - num_groups), k))[:2]
        raise ClusterError(
            f"{num_experts} experts do not divide into {num_groups} groups: "
            f"{' or '.join(map(str, sorted(nearest)))} groups would"
        )
    return cluster.num_nodes if num_groups % cluster.num_nodes == 0 else 1
