"""The planner: loads and a cluster in, a placement with its peak and proven bound out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster, whole_number
from eplb.errors import ClusterError
from eplb.loads import check_loads
from eplb.placement import Placement
from eplb.threads import check_threads, run_chunks

__all__ = ["Plan", "check_shape", "plan", "warmup"]

_QUICK = (4, 8)
"""Layers that a thread takes at a time, least and most, where each takes microseconds."""
_SLOW = (1, 1)
"""The same where each takes longer than starting on it."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What the planner decided, and how far from proven best it is.

    Attributes:
        placement: the experts of every slot.
        peak: [L] load of the busiest GPU, in the unit of the loads.
        bound: [L] proven: no plan for this cluster, with the groups on nodes, has a lower peak.
    """

    placement: Placement
    peak: NDArray[np.float64]
    bound: NDArray[np.float64]

    @cached_property
    def gap(self) -> NDArray[np.float64]:
        """[L] peak / bound - 1: what is left to gain at most; 0 for layers with no load."""
        safe = np.where(self.bound > 0.0, self.bound, 1.0)
        gap: NDArray[np.float64] = np.where(self.bound > 0.0, self.peak / safe - 1.0, 0.0)
        gap.flags.writeable = False
        return gap


def plan(loads: Any, cluster: Cluster, *, num_groups: int = 1, threads: int | None = None) -> Plan:
    """Decide how many replicas each expert gets and on which GPU each sits.

    Layers are planned on their own: replicas by Adams' apportionment, packed by the balanced
    largest differencing method, then improved by swaps until the busiest GPU is within 0.04 % of a
    proven lower bound; where swaps end further than 0.1 % from it, by a search over replica counts
    and hand-overs of slots, until a fixed amount of work is spent. No GPU gets two replicas of an
    expert unless it has more slots than there are experts. The same input gives the same plan on
    every host and with any number of threads.

    Args:
        loads: [L, E] tokens routed to each logical expert: a torch tensor of any type and device, a
            numpy array or nested lists. A layer with no load is spread evenly.
        cluster: the GPUs and their slots; at least E slots.
        num_groups: groups that the model routes by. Where the nodes divide them, each group stays
            on one node, equally many on each, so that the busiest node is as light as it can be;
            otherwise experts go anywhere.
        threads: most threads to use, None for one a processor.

    Raises:
        LoadsError: loads that are not [L, E], or hold values that are not finite or below 0.
        ClusterError: fewer slots than experts, or groups that do not divide the experts.
    """
    checked = check_loads(loads)
    num_layers, num_experts = checked.shape
    num_groups = whole_number(num_groups, "num_groups")
    nodes = check_shape(num_experts, cluster, num_groups)
    threads = check_threads(threads)
    solution = _Solution(
        checked,
        cluster,
        nodes,
        threads,
        np.empty((num_layers, cluster.num_slots), np.int64),
        np.empty(num_layers),
        np.zeros(num_layers),
    )
    solution.solve(num_groups)
    for array in (solution.peaks, solution.bounds):
        array.flags.writeable = False
    placement = Placement._trusted(solution.phy2log, num_experts, cluster)
    return Plan(placement, solution.peaks, solution.bounds)


@dataclass(frozen=True)
class _Solution:
    """The planner's passes over layers, each over threads, and the arrays that they fill.

    Each pass is compiled when it is first needed.
    """

    loads: NDArray[np.float64]
    cluster: Cluster
    nodes: int
    threads: int
    phy2log: NDArray[np.int64]
    peaks: NDArray[np.float64]
    bounds: NDArray[np.float64]

    def solve(self, num_groups: int) -> None:
        """Plan every layer, then those again that are not near enough to their bound."""
        from eplb.solver.improve import (
            FEW_SLOTS,
            WORTH_A_SEARCH,
            _recount_layers,
            _search_layers,
        )
        from eplb.solver.layers import NEAR_ENOUGH

        self._first_pass(self._gather(num_groups))
        far = self._above(FEW_SLOTS)
        if far.any():
            self._raise_bounds(np.flatnonzero(far))
            self._again(_recount_layers, far & self._above(NEAR_ENOUGH))
        self._again(_search_layers, self._above(WORTH_A_SEARCH))
        # Rounding may leave a proven bound above the peak that attains it.
        np.minimum(self.bounds, self.peaks, out=self.bounds)

    def _gather(self, num_groups: int) -> NDArray[np.int64]:
        """The experts of each node, [L, N, E / N], or [1, 1, E] where nodes do not matter."""
        num_layers, num_experts = self.loads.shape
        if self.nodes == 1:
            return np.arange(num_experts).reshape(1, 1, num_experts)
        from eplb.solver.groups import _gather_layers

        expert_of = np.empty((num_layers, self.nodes, num_experts // self.nodes), np.int64)

        def work(begin: int, end: int) -> None:
            _gather_layers(self.loads, begin, end, num_groups, expert_of, self.bounds)

        self._run(_gather_layers, work, num_layers, _QUICK)
        np.divide(self.bounds, self.cluster.num_gpus // self.nodes, out=self.bounds)
        return expert_of

    def _first_pass(self, expert_of: NDArray[np.int64]) -> None:
        from eplb.solver.layers import _plan_layers

        num_gpus, slots_per_gpu = self.cluster.num_gpus, self.cluster.slots_per_gpu
        filled = (self.phy2log, self.peaks, self.bounds)

        def work(begin: int, end: int) -> None:
            _plan_layers(self.loads, begin, end, expert_of, num_gpus, slots_per_gpu, *filled)

        self._run(_plan_layers, work, self.loads.shape[0], _QUICK)

    def _raise_bounds(self, layers: NDArray[np.int64]) -> None:
        from eplb.solver.bounds import _raise_bounds

        num_gpus, slots_per_gpu = self.cluster.num_gpus, self.cluster.slots_per_gpu

        def work(begin: int, end: int) -> None:
            some = layers[begin:end]
            _raise_bounds(self.loads, some, num_gpus, slots_per_gpu, self.peaks, self.bounds)

        self._run(_raise_bounds, work, layers.size, _SLOW)

    def _again(self, improve: Callable[..., None], which: NDArray[np.bool_]) -> None:
        """Improve the layers that `which` [L] says by one of the kernels that do so."""
        layers = np.flatnonzero(which)
        filled = (self.phy2log, self.peaks, self.bounds)

        def work(begin: int, end: int) -> None:
            some = layers[begin:end]
            improve(self.loads, some, self.nodes, self.cluster.num_gpus, *filled)

        self._run(improve, work, layers.size, _SLOW)

    def _run(
        self,
        kernel: Callable[..., None],
        work: Callable[[int, int], None],
        num_items: int,
        at_once: tuple[int, int],
    ) -> None:
        """Work on all items over threads, `at_once` of them (least, most) at a time.

        A kernel that is still to be compiled is called by this thread alone: the others could only
        wait, and an interrupt reaches this one.
        """
        from eplb.solver.jit import is_ready

        threads = self.threads if is_ready(kernel) else 1
        fewest, most = at_once
        chunk_size = max(fewest, min(most, -(-num_items // threads)))
        run_chunks(work, num_items, chunk_size, threads)

    def _above(self, gap: float) -> NDArray[np.bool_]:
        """[L] whether a layer's peak is above its bound by more than a gap."""
        return self.peaks > self.bounds * (1.0 + gap)


def warmup() -> None:
    """Compile every kernel, or load it from disk, so that no later plan waits for that.

    Servers call this when they start. What is compiled is kept beside the package, or in the
    user's cache where that cannot be written, so only the first process on a machine compiles.
    """
    # Two slots on a GPU and loads this uneven need every pass.
    loads = np.array([[600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0]])
    for num_groups in (1, 4):
        made = plan(loads, Cluster(num_gpus=8, num_nodes=2, slots_per_gpu=2), num_groups=num_groups)
        made.placement.log2phy  # noqa: B018  # has a kernel of its own


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
