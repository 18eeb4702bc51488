"""Through time: how plans age, how loads drift, and when moving would have paid."""

from collections.abc import Callable
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from eplb.cost.gpus import Gpu
from eplb.cost.models import Model
from eplb.describe import drift
from eplb.moving.decide import decide
from eplb.moving.service import Service
from eplb.placement import Placement
from eplb.planning.forecast import HISTORY, Forecast
from eplb.replaying.compare import Comparison, time_of_window
from eplb.report.figures import Missing, Moment, Through
from eplb.report.sample import Asked

FEWEST = 8
"""Windows below which nothing is said of time."""

_POINTS = 100
"""Points of a line, each the mean of the windows that fall on it."""
_COMPARED = 256
"""Windows, the last ones, that are compared to say how loads drift."""
_DECISIONS = 4
_SHOWN = 12
"""Windows that a decision is taken by."""


def measure_through(
    asked: Asked,
    comparison: Comparison | None,
    running: Placement,
    rule: Forecast,
    model: Model | Missing,
    gpu: Gpu,
    engine: str | None,
    window_seconds: float | None,
    progress: Callable[[int, int], object],
) -> Through | Missing:
    """What the windows in their order tell."""
    trace = asked.trace
    total = trace.num_windows
    if not trace.ordered:
        return Missing(f"{trace.in_words} say nothing of time")
    if comparison is None or total < FEWEST:
        windows = "1 window does" if total == 1 else f"{total} windows do"
        return Missing(f"{windows} not show how loads change; {FEWEST} are needed")
    half = total // 2
    kept = np.full(total, np.nan)
    made = asked.plan(rule(trace.loads[:half])).placement
    kept[half:] = made.serve(trace.loads[half:], asked.dispatch).by_window()
    by_name = {each.name: each.by_window() for each in comparison.replays}
    now = np.concatenate([[np.nan], by_name.get("current", by_name["contiguous"])])
    replanned = np.concatenate([[np.nan], by_name["plan"]])
    size = -(-(total - 1) // _POINTS)
    change = drift(trace.pick(slice(-_COMPARED, None)))
    seconds = time_of_window(trace) if window_seconds is None else window_seconds
    moments: tuple[Moment, ...] | Missing
    decided = None
    if isinstance(model, Missing):
        moments = Missing(f"the cost of a move is not known: {model.why}")
    elif seconds is None:
        moments = Missing("the trace does not say how long a window lasts (give --window-seconds)")
    else:
        service = Service.of(model, gpu, asked.cluster, engine=engine)
        moments, decided = _decide(asked, running, service, seconds, progress)
    return Through(
        windows=tuple(range(1, total, size)),
        per_point=size,
        now=_means(now[1:], size),
        replanned=_means(replanned[1:], size),
        kept=_means(kept[1:], size),
        kept_mean=_mean(kept[half:]),
        replanned_mean=_mean(replanned[half:]),
        now_mean=_mean(now[half:]),
        half=half,
        drift=tuple(
            (int(lag), float(correlation))
            for lag, correlation in zip(change.lags, change.correlation, strict=True)
            if not np.isnan(correlation)
        ),
        moments=moments,
        decided=decided,
        engine=engine,
    )


def _decide(
    asked: Asked,
    running: Placement,
    service: Service,
    seconds: float,
    progress: Callable[[int, int], object],
) -> tuple[tuple[Moment, ...], tuple[float, float]]:
    """Decide at a few windows, evenly apart; what that gave, and the placement of before."""
    loads = asked.trace.loads
    total = len(loads)
    begin = min(HISTORY, total // 2)
    every = -(-(total - begin) // _DECISIONS)
    current, moments = running, []
    served = np.full(total, np.nan)
    stayed = running.serve(loads[begin:], asked.dispatch).by_window()
    for number, window in enumerate(range(begin, total, every)):
        shown = loads[max(0, window - _SHOWN) : window]
        if shown.any():
            found = decide(
                shown,
                asked.cluster,
                current,
                service,
                seconds * every,
                num_groups=asked.num_groups,
                dispatch=asked.dispatch,
                threads=asked.threads,
            )
            current = found.placement or current
            told = {each.name: getattr(found, each.name) for each in fields(Moment)[1:]}
            moments.append(Moment(window, **told))
        some = slice(window, window + every)
        served[some] = current.serve(loads[some], asked.dispatch).by_window()
        progress(number + 1, -(-(total - begin) // every))
    return tuple(moments), (_mean(served[begin:]), _mean(stayed))


def _means(values: NDArray[np.float64], size: int) -> tuple[float | None, ...]:
    """Means of `size` values in a row; None where there is none."""
    means = [_mean(values[at : at + size], np.nan) for at in range(0, values.size, size)]
    return tuple(None if np.isnan(each) else each for each in means)


def _mean(values: NDArray[np.float64], otherwise: float = 1.0) -> float:
    known = ~np.isnan(values)
    return float(values[known].mean()) if known.any() else otherwise
