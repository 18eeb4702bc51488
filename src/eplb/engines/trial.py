"""Takes back a plan that has turned out worse than what ran before it.

A plan is made for loads that have been seen, and serves loads that have not. The loads of each
interval are those of logical experts, whatever placement served them, so both placements are
measured on them: the peak of the plan, and the peak that what ran before it would have had. Loads
that have become harder for both put no blame on a plan.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.engines.control import Command
from eplb.engines.rebalances import Reason
from eplb.moving.verdict import LEAST_GAIN
from eplb.placement import Placement

INTERVALS = 2
"""In which a plan that is taken back was found worse."""

_SURE = 3.0
"""Standard errors that are beyond noise. A plan is taken back where two intervals say so."""


class _Trial(NamedTuple):
    """A plan that runs on trial, what ran before it, and whether an interval has found it worse."""

    before: Placement
    plan: Placement
    worse: bool = False


class Trials:
    """The last plan of each model that an engine runs, while it is on trial.

    It is on trial for one interval, and for a second one where the first finds it worse beyond
    noise. What runs is kept meanwhile, so that both intervals measure the same plan.
    """

    def __init__(self) -> None:
        self._on: dict[str, _Trial] = {}

    def begin(self, kind: str, before: Placement | None, plan: Placement) -> None:
        """Try the plan that runs from now on, if what ran before it is known and it moves anything.
        The kind of the call tells models apart.
        """
        self._on.pop(kind, None)
        if before is not None and before.cluster == plan.cluster and plan.moves_from(before):
            self._on[kind] = _Trial(before, plan)

    def judge(
        self, kind: str, running: Placement | None, windows: NDArray[np.float64]
    ) -> Command | None:
        """What to do instead of a plan, by the loads since the last one [T, L, E], some above 0:
        keep what runs for an interval more, or take it back. None where there is no plan on trial,
        it does not run, or it is not worse.
        """
        trial = self._on.pop(kind, None)
        if trial is None or running is None or running.cluster != trial.plan.cluster:
            return None
        if running.moves_from(trial.plan) or trial.plan.moves_from(running):
            return None
        planned, before, error = _peaks(trial.plan, trial.before, windows)
        if planned - before <= max(LEAST_GAIN, _SURE * error):
            return None
        found = (
            f"its peak over the mean is {planned:.3f} on the loads since, and {before:.3f} that of "
            "what ran before it"
        )
        if not trial.worse:
            self._on[kind] = trial._replace(worse=True)
            reason = Reason("on trial", f"the last plan is measured once more: {found}")
            return Command(reason, None)
        reason = Reason("taken back", f"the last plan was worse in two intervals: {found}")
        return Command(reason, trial.before.phy2log.copy())

    def clear(self) -> None:
        """Try nothing any more."""
        self._on.clear()

    def state(self) -> bytes:
        """What two of them share if they judge the same from now on."""
        tried = [
            (kind, each.worse, each.before.phy2log.tobytes(), each.plan.phy2log.tobytes())
            for kind, each in self._on.items()
        ]
        return repr(tried).encode()


def _peaks(
    one: Placement, other: Placement, windows: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Largest GPU load over the mean of two placements on windows [T, L, E], the mean over windows
    and layers with load, and the standard error of their difference.

    That is the larger one of two errors: of what chance makes of counted tokens, and of how much
    layers differ. One window of a model of one layer does not show that, and its error is infinite.
    """
    mean = windows.sum(axis=2) / one.cluster.num_gpus
    known = mean > 0.0
    scale = np.where(known, mean, 1.0)
    (peak, part), (other_peak, other_part) = (_busiest(each, windows) for each in (one, other))
    # The difference of two peaks is a sum over experts of their tokens times what each part is.
    chance = (windows * (part - other_part) ** 2).sum(axis=2) / scale**2
    number = int(known.sum())
    away = np.where(known, peak - other_peak, 0.0) / scale
    # Layers are told apart where there are several, and windows in a model of one layer.
    axis = 0 if len(away[0]) > 1 else 1
    served = known.any(axis=axis)
    apart = away.sum(axis=axis)[served] / known.sum(axis=axis)[served]
    spread = float(apart.std(ddof=1)) / math.sqrt(apart.size) if apart.size > 1 else math.inf
    error = max(math.sqrt(float(chance[known].sum())) / number, spread)
    return (
        float((peak / scale)[known].mean()),
        float((other_peak / scale)[known].mean()),
        error,
    )


def _busiest(
    placement: Placement, windows: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[T, L] loads of the busiest GPUs, and [T, L, E] which part of each expert's tokens they
    take.
    """
    load = placement.gpu_load(windows)
    num_layers, num_experts = placement.logcnt.shape
    layer = np.arange(num_layers)
    slots = placement.phy2log.reshape(num_layers, placement.cluster.num_gpus, -1)
    held = slots[layer, np.argmax(load, axis=2)]
    part: NDArray[np.float64] = np.zeros((*load.shape[:2], num_experts))
    np.add.at(part, (np.arange(len(load))[:, None, None], layer[:, None], held), 1.0)
    return load.max(axis=2), part / placement.logcnt
