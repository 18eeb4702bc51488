"""Balancedness against moves: every point from the placement that runs to a plan made afresh."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.balance import balancedness, mean_and_peak
from eplb.checks import Immutable, whole_number
from eplb.cluster import Cluster
from eplb.dispatching.rules import check_named
from eplb.errors import OptionError
from eplb.placement import Placement
from eplb.planning.pinned import check_pins
from eplb.planning.pins import Pins
from eplb.planning.problem import Effort, check_effort, check_problem
from eplb.planning.relocate import check_current, choose, moves, relocate, settle
from eplb.planning.solve import planned_rule, solve_for
from eplb.planning.traffic import Traffic, check_traffic, mean_other_nodes

_NEAR = 1e-4
"""Peak over bound, less 1, at which a layer's curve ends: further than plans go, as a curve shows
all that moves can buy."""
_LOWER = 1.0 - 1e-12
"""A peak is lower than another where it is below so much of it: the rest is rounding."""


@dataclass(frozen=True, eq=False, repr=False)
class Frontier(Immutable):
    """K placements, from no moves (or the fewest that the cluster needs) to as many as a plan made
    afresh is worth. Each has a lower peak and a higher balancedness than all with fewer moves.

    Attributes:
        moves: [K] experts that GPUs must receive, rising.
        balancedness: [K] mean GPU load / max GPU load, mean over windows and layers, of the loads
            that it was planned for, which rises.
        peak: [K] sum over layers of the expected load of the busiest GPU, which falls.
        placements: [K] the placements.
        dispatch: name of the rule of dispatch that balancedness and peak are under.
        other_nodes: [K] distinct other nodes that a token is sent to, as `eplb.other_nodes` has
            them, mean over layers with load; None where the traffic is not known.
    """

    moves: NDArray[np.int64]
    balancedness: NDArray[np.float64]
    peak: NDArray[np.float64]
    placements: tuple[Placement, ...]
    dispatch: str = "even"
    other_nodes: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        return (
            f"Frontier({len(self.placements)} points, balancedness {self.balancedness[0]:.4f} at "
            f"{self.moves[0]} moves to {self.balancedness[-1]:.4f} at {self.moves[-1]})"
        )

    def reach(self, balancedness: float) -> int | None:
        """The first point that is at least so balanced; None where none is."""
        found = np.flatnonzero(self.balancedness >= balancedness)
        return int(found[0]) if found.size else None


def frontier(
    loads: ArrayLike,
    cluster: Cluster,
    current: Placement,
    *,
    num_groups: int = 1,
    weights: Any = None,
    points: int = 20,
    effort: Effort = "default",
    dispatch: str = "even",
    traffic: Traffic | None = None,
    pins: Pins | None = None,
    threads: int | None = None,
) -> Frontier:
    """What so many moves would give, for all numbers of moves in one go.

    Example:
        >>> import eplb
        >>> cluster = eplb.Cluster(num_gpus=4, slots_per_gpu=3)
        >>> loads = [[90.0, 40.0, 10.0, 10.0, 10.0, 10.0, 5.0, 5.0]]
        >>> runs = eplb.plan(loads, cluster).placement
        >>> later = [[5.0, 40.0, 10.0, 10.0, 10.0, 10.0, 5.0, 90.0]]
        >>> found = eplb.frontier(later, cluster, runs)
        >>> found.moves.tolist()
        [0, 1, 2, 3]
        >>> bool(found.balancedness[0] < 0.5 < 0.9 < found.balancedness[-1])
        True

    Args:
        loads: [L, E] or [T, L, E], as for `eplb.plan`; so are weights, effort and threads.
        cluster: the GPUs and their slots.
        current: the placement that runs.
        num_groups: groups that the model routes by.
        weights: [T] what windows count.
        points: most points, 2 or more; they stand closer where moves are few.
        effort: work of the plan made afresh.
        dispatch: how points are scored, as for `Placement.gpu_load`. Moves are chosen for "even"
            and "best". For the rules of engines and for a split they are chosen as for an even
            split, and fewer points may be left.
        traffic: how tokens are routed, to count the other nodes of a token at each point.
        pins: what placements must keep to, as for `eplb.plan`; the fewest moves are then those to
            one that keeps them.
        threads: most threads to use.

    Raises:
        EplbError: as for `eplb.plan`.
        OptionError: fewer than 2 points, a rule that is not known, or traffic with a price.
    """
    points = whole_number(points, "points")
    if points < 2:
        raise OptionError(f"points is {points}: give 2 or more")
    check_named(dispatch)
    problem = check_problem(loads, cluster, num_groups, weights, threads)
    num_layers, num_experts = problem.loads.shape
    current = check_current(current, num_layers, num_experts)
    if traffic is not None:
        check_traffic(traffic, num_layers, num_experts, problem.num_groups, cluster.num_nodes)
        if traffic.price is not None:
            raise OptionError(
                "a frontier is of balancedness against moves, whatever nodes cost: give traffic "
                "without a price, which counts other nodes"
            )
    planned = planned_rule(dispatch, current)
    if pins is not None:
        problem = check_pins(problem, pins, dispatch if isinstance(dispatch, str) else planned)
    layers = solve_for(problem, check_effort(effort), planned)
    relocation = relocate(problem, current, layers, afresh=True, rule=planned, near=_NEAR)
    free = np.zeros(num_layers)
    least = int(relocation.pieces.base_moves.sum())
    most = least + int(relocation.pieces.moves.sum())
    shares = np.linspace(0.0, 1.0, points) ** 2
    found: list[tuple[int, float, float, Placement]] = []
    for budget in np.unique(least + np.round((most - least) * shares).astype(np.int64)):
        chosen = choose(relocation, int(budget), free)
        phy2log, peaks = settle(relocation, chosen)
        peaks = peaks / problem.speed
        placement = Placement._of_survivors(phy2log, num_experts, cluster)
        load = placement.gpu_load(problem.windows, dispatch)
        if dispatch != planned:
            peaks = (mean_and_peak(load, cluster.speeds)[1] * problem.weight).sum(axis=0)
        score, peak = balancedness(load, speeds=cluster.speeds), float(peaks.sum())
        # The one may fall while the other does, of several windows or under another rule.
        if not found or (score > found[-1][1] and peak < found[-1][2] * _LOWER):
            found.append((moves(relocation, chosen), score, peak, placement))
    moves_of, balancedness_of, peak_of, placements = zip(*found, strict=True)
    arrays = np.array(moves_of), np.array(balancedness_of), np.array(peak_of)
    others = None
    if traffic is not None:
        of_all = (
            mean_other_nodes(each, problem.loads, traffic, num_groups=problem.num_groups)
            for each in placements
        )
        others = np.array(list(of_all))
    for array in (*arrays, others):
        if array is not None:
            array.flags.writeable = False
    return Frontier(*arrays, placements, dispatch, others)
