"""From what an engine shows to the next placement: what both plug-ins share.

Every rank plans for itself, and no loads are sent between them, so what a rank remembers must
follow from calls that every rank has seen. Ranks that join later have seen fewer; when they join,
the number of ranks changes, or slots are empty, and then every rank forgets the model's windows.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster
from eplb.engines.settings import Settings
from eplb.errors import PlacementError
from eplb.loads import to_total
from eplb.merging import summed_if_alike
from eplb.placement import Placement
from eplb.planning.drop_in import groups_on_nodes
from eplb.planning.plan import DEFAULT_MOVE_COST, plan

_UNSEEN = 4
"""Windows of doubt: docs/experiments.md, "Loads that last"."""


def next_placement(
    windows: NDArray[np.float64],
    cluster: Cluster,
    num_groups: int | None,
    current: Placement | None,
    settings: Settings,
    new: int = 1,
) -> NDArray[np.int64]:
    """The experts to run next, [L, P].

    An expert that stays on its GPU stays in its slot. The budget of moves is not kept where engines
    start, from a layout that knows no loads, nor where ranks come or go.

    Args:
        windows: [T, L, E] loads, each with a load in some layer.
        cluster: the ranks and their slots.
        num_groups: groups that the model routes by; 0 or None for none, as engines say it.
        current: what runs now, None where that is not known.
        settings: how much may move, what pins are to be kept, how much work the plan may be, and
            on how many threads.
        new: how many of the windows, the last ones, came after the last plan.
    """
    windows, weights = windows_to_plan_for(windows, new)
    num_layers = windows.shape[1]
    moving: dict[str, Any] = {}
    if current is not None and not is_start(current):
        moving["current"] = current
        if current.cluster.capacity == cluster.capacity:
            loaded = int(windows.any(axis=2).sum()) * len(cluster.alive)
            moving["max_moves"] = settings.max_moves.of(num_layers * cluster.num_slots)
            moving["move_cost"] = DEFAULT_MOVE_COST * float(windows.sum()) / max(loaded, 1)
    made = plan(
        windows,
        cluster,
        num_groups=groups_on_nodes(num_groups, cluster),
        weights=weights,
        pins=settings.pins,
        effort=settings.effort,
        threads=settings.threads,
        **moving,
    )
    phy2log: NDArray[np.int64] = made.placement.phy2log.copy()
    if current is not None and not moving and current.cluster.capacity == cluster.capacity:
        idle = ~windows.any(axis=(0, 2))
        phy2log[idle] = current.phy2log[idle]
    return phy2log


def windows_to_plan_for(
    windows: NDArray[np.float64], new: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Windows [T, L, E] as they are, or their sum [1, L, E] where they differ by chance alone; and
    what each of them counts, [T], adding up to 1.

    A window counts by its tokens, up to the mean of the windows: what was seen in an idle hour is
    mostly chance. If a window is all that came from one plan to the next, the last one counts more,
    by as much as windows so far have lasted: the next one will be as long. The last `new` of them
    came after the last plan.
    """
    windows = summed_if_alike(windows)
    total = windows.sum(axis=(1, 2))
    weights = np.minimum(total, total.mean())
    part = _lasting(windows) if new == 1 else 0.0
    weights[-1] *= 1.0 + part / (1.0 - part) * weights.sum() / total.mean()
    return windows, weights / weights.sum()


def _lasting(windows: NDArray[np.float64]) -> float:
    """The part of what is new in a window, beside those before it, that the next one still has:
    from 0, as where workloads take turns, to below 1.

    It is found by least squares, of windows [T, L, E] in order. A few show it badly, so as many
    more as `_UNSEEN` count as having shown nothing.
    """
    number = len(windows) - 2
    if number < 1:
        return 0.0
    total = windows.sum(axis=2, keepdims=True)
    shares = to_total(windows, total, np.ones_like(total[0]))
    so_far = np.arange(2, len(windows))[:, None, None]
    means = np.cumsum(shares, axis=0)[1:-1] / so_far
    new, then = shares[1:-1] - means, shares[2:] - means
    square = float((new * new).sum())
    if square == 0.0:
        return 0.0
    part = min(max(float((new * then).sum()) / square, 0.0), 1.0)
    return part * number / (number + _UNSEEN)


def balancedness_of(
    placement: Placement, windows: NDArray[np.float64], weights: NDArray[np.float64]
) -> float:
    """Balancedness on windows [T, L, E] that count `weights` [T]; 1 where none has any load."""
    found = placement.ratios(windows)
    known = ~np.isnan(found)
    counted = weights[:, None] * known
    if not counted.any():
        return 1.0
    return float((np.where(known, found, 0.0) * counted).sum() / counted.sum())


def is_start(current: Placement) -> bool:
    """Whether a placement is the layout that engines start with."""
    row = np.arange(current.cluster.num_slots) % current.num_experts
    return bool((current.phy2log == row).all())


def running_placement(
    old: NDArray[np.int64], num_experts: int, slots_per_gpu: int
) -> Placement | None:
    """The placement to start from; None where slots are empty that no rank to come explains.

    Args:
        old: [L, P'] expert in each slot now. Where ranks come, theirs are the last and hold -1;
            where ranks go, there are more slots than will be filled.
        num_experts: E.
        slots_per_gpu: slots of a rank.

    Raises:
        PlacementError: experts that the model does not have, or ranks with other slots.
    """
    if old.ndim != 2 or old.shape[1] % slots_per_gpu:
        raise PlacementError(
            f"the engine's placement has shape {old.shape}: "
            f"its slots do not divide over ranks of {slots_per_gpu}"
        )
    held = np.flatnonzero((old >= 0).any(axis=0))
    num_gpus = int(held[-1]) // slots_per_gpu + 1 if held.size else 0
    running = old[:, : num_gpus * slots_per_gpu]
    if num_gpus == 0 or (running < 0).any():
        return None
    return Placement(running, num_experts, Cluster(num_gpus, 1, slots_per_gpu))


@dataclass(frozen=True)
class Call:
    """What stays the same from call to call while the ranks do.

    Attributes:
        num_slots: P, slots of a layer to fill.
        num_groups: groups that the model routes by.
        num_nodes: nodes.
        num_gpus: G, ranks.
    """

    num_slots: int
    num_groups: int | None
    num_nodes: int
    num_gpus: int

    def cluster(self) -> Cluster:
        """The ranks and their slots."""
        return Cluster.with_slots(self.num_slots, self.num_gpus, self.num_nodes)


class History:
    """The last windows of each model that an engine runs, so many at most, as [L, E] loads.

    Models are told apart by L, E, slots of a rank and groups: an engine that drafts with a second
    model shows both in turn.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._models: dict[tuple[Any, ...], dict[Call, deque[NDArray[np.float64]]]] = {}
        self._scaled: set[tuple[Any, ...]] = set()

    def see(self, call: Call, shape: tuple[int, ...], *, scaling: bool) -> None:
        """Forget the windows of a model (L, E) where its ranks are not those of its call before, or
        it is scaling: slots are empty now, or are to be left.

        A call of the engine's other thread, for the ranks before scaling, may come after the call
        that scales on this rank, and before it on another. It has windows of its own.
        """
        model = _model(call, shape)
        calls = self._models.setdefault(model, {})
        if scaling:
            self._scaled.add(model)
        if scaling or (call not in calls and model not in self._scaled):
            calls.clear()
        calls.setdefault(call, deque(maxlen=self._most))

    def add(self, call: Call, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add a window [L, E] of the call seen; return its model's, [T, L, E], this one last."""
        windows = self._models[_model(call, loads.shape)][call]
        windows.append(loads)
        return np.stack(windows)

    def keep(self, call: Call, shape: tuple[int, ...], last: int) -> None:
        """Forget the windows of a call seen but for so many, the last ones."""
        windows = self._models[_model(call, shape)][call]
        while len(windows) > last:
            windows.popleft()

    def clear(self) -> None:
        """Forget all windows of all models."""
        self._models.clear()
        self._scaled.clear()


def _model(call: Call, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """What tells a model from others, and stays the same where ranks come or go."""
    return shape, call.num_slots // max(call.num_gpus, 1), call.num_groups
