"""Ways to place experts side by side, on windows seen and unseen; what is hot, and where."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eplb.balance import paced
from eplb.loads import LoadTrace
from eplb.placement import Placement
from eplb.planning.forecast import Recent
from eplb.replaying.compare import Comparison, score
from eplb.replaying.sizing import evenly
from eplb.report.figures import Contender, Heat, Hot, Who
from eplb.report.sample import Asked

_HOTTEST = 3
_TYPICAL = 64
"""Windows among which a typical one is looked for, where there are more."""


def standings_of(
    asked: Asked,
    comparison: Comparison | None,
    made: Placement,
    engine: Placement,
    current: Placement | None,
) -> tuple[Contender, ...]:
    """All of them, what runs now first, then what engines do by themselves; on windows unseen as a
    comparison found.
    """
    placements: dict[Who, Placement | None] = {
        "contiguous" if current is None else "current": current or asked.start,
        "engine": engine,
        "plan": made,
        "contiguous": asked.start,
    }
    if comparison is None:
        return tuple(_standing(who, each, asked, None) for who, each in placements.items())
    return tuple(
        _standing(who, each, asked, comparison)
        for who, each in (placements | {"oracle": None}).items()
    )


def _standing(
    who: Who, placement: Placement | None, asked: Asked, comparison: Comparison | None
) -> Contender:
    seen = interval = None
    if placement is not None:
        served = placement.serve(asked.seen, asked.dispatch)
        seen, interval = served.average(), served.interval()
    if comparison is None:
        return Contender(who, seen, interval, *(None,) * 8)
    replays = {each.name: each for each in comparison.replays}
    found = score(replays[who], replays.get("current", replays["contiguous"]))
    over_engine = score(replays[who], replays["engine"])
    return Contender(
        who,
        seen,
        interval,
        found.balancedness,
        found.balancedness_interval,
        found.worst_window,
        found.gain,
        found.gain_interval,
        over_engine.gain,
        over_engine.gain_interval,
        found.moved,
    )


def why_unsure(standings: tuple[Contender, ...], num_windows: int) -> str | None:
    """Why there are no intervals; None where there are."""
    if any(each.unseen_interval is not None for each in standings):
        return None
    if num_windows == 1:
        return "one window does not show how a plan does on loads that it has not seen"
    return f"{num_windows} windows are too few for a confidence interval (it takes about 36)"


def heat_of(asked: Asked, running: Placement, made: Placement, ran: Sequence[Placement]) -> Heat:
    """A typical window of those not seen, with the plan that `ran` [T] then; or the only one."""
    trace = asked.trace
    first = 1 if trace.ordered else 0
    loaded = [each for each in range(first, trace.num_windows) if trace.loads[each].any()]
    loaded = [loaded[each] for each in evenly(len(loaded), _TYPICAL)]
    window, after, seen = int(trace.loads.any(axis=(1, 2)).argmax()), made, True
    if loaded:
        heights = np.array(
            [ran[each].balancedness(trace.loads[each], asked.dispatch) for each in loaded]
        )
        window = loaded[int(np.abs(heights - heights.mean()).argmin())]
        after, seen = ran[window], False
    layers = np.flatnonzero(trace.loads[window].any(axis=1))
    return Heat(
        trace.names[window],
        seen,
        tuple(np.array(trace.layer_numbers)[layers].tolist()),
        *(
            _over_mean(each, trace.loads[window], layers, asked.dispatch)
            for each in (running, after)
        ),
    )


def _over_mean(
    placement: Placement, window: NDArray[np.float64], layers: NDArray[np.intp], dispatch: str
) -> tuple[tuple[float, ...], ...]:
    load = paced(placement.gpu_load(window, dispatch)[layers], placement.cluster.speeds)
    return tuple(map(tuple, (load / load.mean(axis=1, keepdims=True)).tolist()))


def hottest(trace: LoadTrace, made: Placement) -> tuple[Hot, ...]:
    """The hottest experts of each layer with load, all windows alike."""
    total = Recent(trace.num_windows)(trace.loads).loads.sum(axis=0)
    rows = []
    for layer in np.flatnonzero(~trace.dense).tolist():
        load = total[layer]
        hottest = np.argsort(-load, kind="stable")[:_HOTTEST]
        rows.append(
            Hot(
                trace.layer_numbers[layer],
                tuple(hottest.tolist()),
                tuple((load[hottest] / load.sum()).tolist()),
                tuple(made.logcnt[layer, hottest].tolist()),
                float(load.max() / load.mean()),
            )
        )
    return tuple(rows)
