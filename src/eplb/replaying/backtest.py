"""Which forecast to plan by: each is tried on a trace, scored by what came next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eplb.cluster import Cluster
from eplb.errors import LoadsError
from eplb.loads import LoadTrace
from eplb.planning.forecast import FORECASTS, Forecast, named_forecast
from eplb.planning.plan import Effort
from eplb.replaying.compare import Comparison, compare, score
from eplb.replaying.policies import Forecasted
from eplb.replaying.replay import HISTORY

__all__ = ["Backtest", "backtest"]

_TIE = 0.002
"""Balancedness by which a rule must be better, where there are too few windows for an interval."""


@dataclass(frozen=True)
class Backtest:
    """How forecasts did on a trace.

    Attributes:
        best: the rule to use: the simplest of those that are not clearly worse than the one that
            did best.
        top: the one that did best.
        comparison: all of them, in the order from simple to clever.
    """

    best: str
    top: str
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {"best": self.best, "top": self.top, **self.comparison.to_json()}


def backtest(
    trace: LoadTrace,
    cluster: Cluster,
    forecasts: Sequence[str] | Mapping[str, Forecast] = tuple(FORECASTS),
    *,
    num_groups: int = 1,
    every: int = 1,
    history: int = HISTORY,
    first: int | None = None,
    effort: Effort = "default",
    threads: int | None = None,
) -> Backtest:
    """Try forecasts on a trace, each window scored before any plan has seen it.

    Args:
        trace: the windows, in the order in which they happened.
        cluster: the GPUs and their slots.
        forecasts: names in `eplb.forecast.FORECASTS`, or rules by name, from simple to clever.
        num_groups: groups that the model routes by.
        every: windows from one plan to the next.
        history: most windows that a rule is shown.
        first: the first window that is served; by default the one after `history`, or half of what
            there is if that is less.
        effort: of each plan.
        threads: most threads of a plan, None for one a processor.

    Raises:
        LoadsError: fewer than 2 windows.
        OptionError: a forecast that there is not.
        ClusterError: numbers that fit nothing.
    """
    if trace.num_windows < 2:
        raise LoadsError("the trace has 1 window: to try a forecast takes 2")
    if not isinstance(forecasts, Mapping):
        forecasts = {name: named_forecast(name) for name in forecasts}
    policies = {name: Forecasted(forecast, effort, threads) for name, forecast in forecasts.items()}
    found = compare(
        trace,
        cluster,
        policies,
        num_groups=num_groups,
        every=every,
        history=history,
        first=first or max(1, min(history, trace.num_windows // 2)),
    )
    top = max(found.replays, key=lambda replay: replay.average())
    for replay in found.replays:
        behind = score(replay, top)
        interval = behind.gain_interval
        if behind.gain >= -_TIE if interval is None else interval.high >= 0.0:
            break
    return Backtest(replay.name, top.name, found)
