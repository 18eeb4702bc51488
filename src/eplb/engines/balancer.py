"""A planner with a memory, for an engine that calls it now and then: loads in, a plan or wait out.

It is what the plug-ins of vLLM and SGLang do, without an engine around it.
"""

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import Budget, budget_from, counted, real_number, whole_number
from eplb.cluster import Cluster, check_shape
from eplb.engines.live import balancedness_of, next_placement, windows_to_plan_for
from eplb.engines.settings import Settings
from eplb.engines.trial import INTERVALS, Trials
from eplb.errors import ClusterError, LoadsError, PlacementError
from eplb.loads import check_loads
from eplb.moving.verdict import LEAST_GAIN
from eplb.placement import Placement
from eplb.planning.pins import Pins
from eplb.planning.problem import Effort, check_effort

_STANDARD = Settings()


@dataclass(frozen=True)
class Rebalance:
    """A placement to move to.

    Attributes:
        placement: to run next; experts that stay on a GPU keep their slot.
        moves: experts that GPUs must receive.
        before, after: balancedness on the windows remembered, of what runs and of the new one. The
            last window counts more than the others where loads last from window to window.
        taken_back: whether it goes back to what ran before the last plan, which two windows have
            found worse than that.
    """

    placement: Placement
    moves: int
    before: float
    after: float
    taken_back: bool = False


class Balancer:
    """Remembers the last windows of loads and what runs; says when to move, and to what.

    What it answers is a function of the calls so far, the same on every host: ranks that each have
    one and are shown the same loads agree, and `digest` lets them check that they do.

    Each plan is measured on the windows that follow it, beside what ran before it. If it is worse
    beyond noise, what runs is kept for a window more; if that one finds it worse too, the plan is
    taken back, and the windows from before it are forgotten.

    Example:
        >>> import eplb
        >>> balancer = eplb.Balancer(8, eplb.Cluster(num_gpus=4, slots_per_gpu=3))
        >>> first = balancer.step([[90.0, 40.0, 10.0, 10.0, 10.0, 10.0, 5.0, 5.0]])
        >>> first.after > first.before
        True
        >>> balancer.step([[90.0, 40.0, 10.0, 10.0, 10.0, 10.0, 5.0, 5.0]]) is None
        True

    Args:
        num_experts: E, logical experts of a layer.
        cluster: the GPUs and their slots.
        num_groups: groups that the model routes by.
        current: the placement that runs; None for the layout that engines start with.
        windows: most windows to remember and to plan for.
        max_moves: most experts that GPUs receive at a step: a number, a share of all slots such as
            "5%", or None for any number. It is not kept at the first step from the layout that
            engines start with.
        least_gain: balancedness that a plan must gain on the windows remembered; else wait.
        pins: what placements must keep to, as for `eplb.plan`.
        effort: work of a plan: "fast", "default" or "thorough".
        threads: most threads of a plan.

    Raises:
        ClusterError: fewer slots than experts, or groups that do not divide the experts.
        PlacementError: a current placement of other experts or another cluster.
        OptionError: a number out of its range.
    """

    def __init__(
        self,
        num_experts: int,
        cluster: Cluster,
        *,
        num_groups: int = 1,
        current: Placement | None = None,
        windows: int = _STANDARD.windows,
        max_moves: int | str | None = "5%",
        least_gain: float = LEAST_GAIN,
        pins: Pins | None = None,
        effort: Effort = _STANDARD.effort,
        threads: int = _STANDARD.threads,
    ) -> None:
        self.num_experts = whole_number(num_experts, "num_experts")
        self.cluster = cluster
        self.num_groups = whole_number(num_groups, "num_groups", error=ClusterError)
        check_shape(self.num_experts, cluster, self.num_groups)
        check_effort(effort)
        if isinstance(max_moves, str):
            budget = budget_from(max_moves, "max_moves")
        elif max_moves is None:
            budget = Budget()
        else:
            budget = Budget(moves=whole_number(max_moves, "max_moves", least=0))
        self._settings = Settings(
            windows=whole_number(windows, "windows"),
            max_moves=budget,
            effort=effort,
            threads=whole_number(threads, "threads"),
            pins=pins,
        )
        self._least_gain = real_number(least_gain, "least_gain", above=False)
        self._windows: deque[NDArray[np.float64]] = deque(maxlen=self._settings.windows)
        self._trials = Trials()
        self._current: Placement | None = None
        self.current = current

    def __repr__(self) -> str:
        return (
            f"Balancer({self.num_experts} experts, {self.cluster.num_slots} slots on "
            f"{self.cluster.num_gpus} GPUs, {len(self._windows)} windows remembered)"
        )

    @property
    def current(self) -> Placement | None:
        """The placement that runs; None before the first loads, where none was given. Set it where
        the engine runs another than the last that was answered: a transfer that failed.

        Raises:
            PlacementError: of other layers, experts or another cluster.
        """
        return self._current

    @current.setter
    def current(self, placement: Placement | None) -> None:
        if placement is not None:
            if not isinstance(placement, Placement):
                raise PlacementError(f"current is {placement!r}: give a Placement")
            layers = self._windows[0].shape[0] if self._windows else placement.num_layers
            asked = (layers, self.num_experts, self.cluster)
            if (placement.num_layers, placement.num_experts, placement.cluster) != asked:
                raise PlacementError(
                    f"current is {placement!r}: give one of {counted(layers, 'layer')} and "
                    f"{self.num_experts} experts for {self.cluster!r}"
                )
        self._current = placement

    @property
    def windows(self) -> NDArray[np.float64]:
        """[T, L, E] the windows remembered, the last one last.

        Raises:
            LoadsError: none yet.
        """
        if not self._windows:
            raise LoadsError("no window is remembered yet: call step with loads first")
        return np.stack(self._windows)

    @property
    def digest(self) -> str:
        """A short text that two balancers share if they answer the same from now on."""
        how = self._settings
        told = (
            *(self.num_experts, self.cluster, self.num_groups, self._least_gain),
            *(how.windows, str(how.max_moves), how.effort, how.pins),
        )
        digest = hashlib.sha256(repr(told).encode())
        for window in self._windows:
            digest.update(repr(window.shape).encode() + window.tobytes())
        if self._current is not None:
            digest.update(self._current.phy2log.tobytes())
        digest.update(self._trials.state())
        return digest.hexdigest()[:16]

    def step(self, loads: Any) -> Rebalance | None:
        """Take in a window of loads; what to move to now, or None to keep what runs.

        The answer is taken to run from then on. Where the engine does not get there, set `current`.

        Args:
            loads: [L, E] tokens routed to each logical expert since the last step, an array, a
                tensor or nested lists. A window without any load is not remembered.

        Raises:
            LoadsError: values that are no numbers of tokens, or another shape than before.
        """
        window = check_loads(loads)
        layers = None if self._current is None else self._current.num_layers
        layers = self._windows[0].shape[0] if self._windows else layers
        if window.shape[1] != self.num_experts or layers not in {None, window.shape[0]}:
            known = "L" if layers is None else layers
            raise LoadsError(
                f"loads have shape {window.shape}: give [{known}, {self.num_experts}], as before"
            )
        if not window.any():
            return None
        self._windows.append(window.copy())
        running = self._current
        if running is None:
            running = Placement.contiguous(window.shape[0], self.num_experts, self.cluster)
        self._current = running
        asked = self._trials.judge("", running, window[None])
        if asked is None:
            phy2log = next_placement(
                self.windows, self.cluster, self.num_groups, running, self._settings
            )
        elif asked.phy2log is None:
            return None
        else:
            phy2log = asked.phy2log
            # From the windows before it the plan would be made again.
            while len(self._windows) > INTERVALS:
                self._windows.popleft()
        placement = Placement(phy2log, self.num_experts, self.cluster)
        moves = placement.moves_from(running)
        planned_for = windows_to_plan_for(self.windows)
        before, after = (balancedness_of(each, *planned_for) for each in (running, placement))
        if asked is None and (not moves or after - before < self._least_gain):
            return None
        if asked is None:
            self._trials.begin("", running, placement)
        self._current = placement
        return Rebalance(placement, moves, before, after, taken_back=asked is not None)

    def forget(self) -> None:
        """Forget the windows, and what ran before the last plan: the traffic has changed for
        good.
        """
        self._windows.clear()
        self._trials.clear()
