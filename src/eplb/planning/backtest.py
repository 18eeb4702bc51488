"""Which forecast to plan by: each is tried on a trace, scored by what came next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.balance import Interval, Served
from eplb.checks import counted, in_one_line, printable, whole_number
from eplb.cluster import Cluster, check_shape
from eplb.dispatching.rules import check_rule
from eplb.errors import ClusterError, EplbError, LoadsError, PolicyError
from eplb.loads import LoadTrace
from eplb.merging import alike
from eplb.planning.forecast import (
    FORECASTS,
    HISTORY,
    Forecast,
    Recent,
    Scenarios,
    changed_at,
    in_no_order,
    named_forecast,
)
from eplb.planning.problem import Effort, check_effort, check_problem
from eplb.planning.solve import check_dispatch, planned_rule, solve_for
from eplb.solver.arrays import F64

BEST = "best"
"""In place of a forecast's name: the best of those that are tried."""

HELD_OUT = 8
"""Parts of windows in no order that are held out, at most, where each has plans of its own."""

_TIE = 0.002
"""Balancedness by which a rule must be better, where there are too few windows for an interval."""

_OF_ANY_ORDER = ("mean", "deviation", "recent", "extended", "clusters")
"""Forecasts that ask for no order of windows."""

_TRIALS = 16
"""Plans that each forecast may make while it is tried, about."""


@dataclass(frozen=True)
class Schedule:
    """When plans are made on a trace, and from what.

    Windows in no order are held out in turn, `every` at a time, and planned for from all others.

    Attributes:
        every: windows from one plan to the next.
        history: most windows that a plan is made from, the last ones before it.
        first: the first window that is served; those before it are only planned from. It and
            `history` say nothing of windows in no order.

    Raises:
        OptionError: a number below 1.
    """

    every: int = 1
    history: int = HISTORY
    first: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, whole_number(value, name))

    def check(self, trace: LoadTrace) -> None:
        """Raise a LoadsError for a trace that is too short."""
        if not trace.ordered:
            return  # one window is in order
        number = trace.num_windows
        if number == 1:
            raise LoadsError(
                "the trace has 1 window, and plans are scored on windows after those that they are "
                "made from: give at least 2"
            )
        if number <= self.first:
            raise LoadsError(
                f"first is {self.first}, and the trace has {number} windows: give {number - 1} or "
                "less, so that one is left to score plans on"
            )

    def num_served(self, trace: LoadTrace) -> int:
        """How many windows are served."""
        return trace.num_windows - (self.first if trace.ordered else 0)

    def plans(self, trace: LoadTrace) -> Iterator[tuple[slice | NDArray[np.intp], slice]]:
        """For each plan the windows that it is made from, and those that it serves."""
        total = trace.num_windows
        # Of those in no order, some are always left to plan for.
        every = self.every if trace.ordered else min(self.every, total // 2)
        for window in range(self.first if trace.ordered else 0, total, every):
            served = slice(window, min(window + every, total))
            if trace.ordered:
                yield slice(max(0, window - self.history), window), served
            else:
                yield np.delete(np.arange(total), served), served


@dataclass(frozen=True)
class Tried:
    """How one forecast did.

    Attributes:
        forecast: its name.
        balancedness: mean GPU load / max GPU load, mean over the windows served and layers.
        interval: where that is with 95 % confidence; None of too few windows.
        behind: balancedness below that of the forecast that did best; behind_interval: of that.
    """

    forecast: str
    balancedness: float
    interval: Interval | None
    behind: float
    behind_interval: Interval | None


@dataclass(frozen=True)
class Backtest:
    """How forecasts did on a trace.

    Attributes:
        best: the rule to use: the simplest of those that are not clearly worse than the one that
            did best.
        top: the one that did best.
        windows: how many were served.
        schedule: when plans were made, and from what.
        forecasts: all of them, in the order from simple to clever.
    """

    best: str
    top: str
    windows: int
    schedule: Schedule
    forecasts: tuple[Tried, ...]

    @property
    def scores(self) -> dict[str, float]:
        """Balancedness by the name of the forecast."""
        return {each.forecast: each.balancedness for each in self.forecasts}

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Expected:
    """What to plan for.

    Attributes:
        scenarios: windows and what they count.
        words: the same in a sentence, and how it was found; None of one window.
        tried: how forecasts did, None where none was tried.
    """

    scenarios: Scenarios
    words: str | None
    tried: Backtest | None


def backtest(
    trace: LoadTrace,
    cluster: Cluster,
    forecasts: Sequence[str] | Mapping[str, Forecast] | None = None,
    *,
    num_groups: int = 1,
    every: int = 1,
    history: int = HISTORY,
    first: int | None = None,
    effort: Effort = "default",
    dispatch: str = "even",
    planned: str | None = None,
    threads: int | None = None,
) -> Backtest:
    """Try forecasts on a trace, each window scored before any plan has seen it.

    Example:
        >>> import eplb
        >>> trace = eplb.synthetic.trace(
        ...     "gpt-oss-20b", num_windows=12, tokens_per_window=2048, num_layers=2
        ... )
        >>> cluster = eplb.Cluster(num_gpus=8, slots_per_gpu=5)
        >>> eplb.backtest(trace, cluster, ["last", "recent"]).best
        'recent'

    Args:
        trace: the windows, in the order in which they happened; in no order, each is held out in
            turn and planned for from the others.
        cluster: the GPUs and their slots.
        forecasts: names in `eplb.forecast.FORECASTS`, or rules by name, from simple to clever; None
            for all that do not ask for an order that windows do not have.
        num_groups: groups that the model routes by.
        every: windows from one plan to the next.
        history: most windows that a rule is shown.
        first: the first window that is served; by default the one after `history`, or half of what
            there is if that is less.
        effort: of each plan.
        dispatch: the rule by which windows are served, as for `Placement.gpu_load`.
        planned: the rule that plans are made for, None for the same.
        threads: most threads of a plan, None for one a processor.

    Raises:
        LoadsError: fewer than 2 windows.
        OptionError: an unknown forecast or rule.
        ClusterError: numbers that fit nothing.
        PolicyError: a rule that fails.
    """
    check_rule(dispatch)
    if trace.num_windows < 2:
        raise LoadsError("the trace has 1 window: 2 are needed to try a forecast")
    if forecasts is None:
        forecasts = list(FORECASTS) if trace.ordered else list(_OF_ANY_ORDER)
    if not isinstance(forecasts, Mapping):
        forecasts = {name: named_forecast(name) for name in forecasts}
    if not trace.ordered:
        forecasts = {name: in_no_order(rule) for name, rule in forecasts.items()}
    begin = first or max(1, min(history, trace.num_windows // 2))
    schedule = Schedule(every, history, begin)
    schedule.check(trace)
    check_shape(
        trace.num_experts, cluster, whole_number(num_groups, "num_groups", error=ClusterError)
    )

    made_for = planned or planned_rule(dispatch)
    check_effort(effort)
    check_dispatch(made_for)

    def served(name: str, rule: Forecast) -> Served:
        parts = []
        for shown, after in schedule.plans(trace):
            expected = _ask(name, rule, trace.loads[shown], after.start)
            problem = check_problem(expected.loads, cluster, num_groups, expected.weights, threads)
            placement = problem.placement(solve_for(problem, effort, made_for).phy2log)
            parts.append(placement.serve(trace.loads[after], dispatch))
        return Served.joined(parts)

    found = {name: served(name, rule) for name, rule in forecasts.items()}
    top = max(found, key=lambda name: found[name].average())
    tried = []
    for name, each in found.items():
        gain, interval = each.gain_over(found[top], every)
        tried.append(Tried(name, each.average(), each.interval(every), -gain, _turned(interval)))
    best = next(each.forecast for each in tried if _as_good(each))
    return Backtest(best, top, schedule.num_served(trace), schedule, tuple(tried))


def expected_of(
    trace: LoadTrace,
    cluster: Cluster,
    forecast: str = BEST,
    *,
    num_groups: int = 1,
    effort: Effort = "default",
    dispatch: str = "even",
    planned: str | None = None,
    threads: int | None = None,
) -> Expected:
    """What to plan for on a trace: by the forecast of that name, or by the best of all, tried.
    Workloads in no order are all planned for alike, and each is held out in turn to try that.

    Raises:
        EplbError: as for `backtest`.
    """
    trace = trace.merged()
    if trace.num_windows == 1:
        return Expected(Scenarios(trace.loads, np.ones(1)), None, None)
    known = 0 if trace.merging is None or not trace.ordered else trace.merging.changed
    changed = ""
    if trace.ordered and (begin := known or changed_at(trace.loads)):
        changed = (
            f". Loads changed clearly at window {printable(trace.names[begin])}, and what was "
            "before is passed over"
        )
    if known:
        trace = trace.pick(slice(known, None))
    if forecast == BEST and (len(trace) == 1 or alike(trace.loads)):
        # Forecasts would be told apart by chance.
        words = (
            "the only window since then"
            if len(trace) == 1
            else f"the sum of {trace.in_words}, which differ by chance alone"
        )
        scenarios = Scenarios(trace.total()[None], np.ones(1))
        return Expected(scenarios, f"Planned for: {words}{changed}", None)
    if forecast != BEST:
        rule = named_forecast(forecast)
        scenarios = (rule if trace.ordered else in_no_order(rule))(trace.loads)
        words = f"Planned for: {_words(forecast, scenarios, trace)}{changed}"
        return Expected(scenarios, words, None)
    tried = backtest(
        trace,
        cluster,
        None if trace.ordered else ["recent"],
        num_groups=num_groups,
        every=max(1, trace.num_windows // _TRIALS),
        effort=effort,
        dispatch=dispatch,
        planned=planned,
        threads=threads,
    )
    scores = tried.scores
    if not trace.ordered:
        words = (
            f"Planned for: {trace.in_words}, all alike. {held_out(trace, tried.schedule.every)}, "
            f"plans for the others gave {scores[tried.best]:.4f}"
        )
        return Expected(in_no_order(Recent())(trace.loads), words, tried)
    scenarios = named_forecast(tried.best)(trace.loads)
    unseen = "1 unseen window" if tried.windows == 1 else f"{tried.windows} unseen windows"
    words = (
        f"Planned for: {_words(tried.best, scenarios, trace)}. On {unseen} this forecast gave "
        f"{scores[tried.best]:.4f}, and the mean of the windows gave {scores['mean']:.4f} "
        f"({len(scores)} forecasts tried){changed}"
    )
    return Expected(scenarios, words, tried)


def _ask(name: str, rule: Forecast, shown: F64, window: int) -> Scenarios:
    try:
        return rule(shown)
    except EplbError:
        raise
    except Exception as error:
        raise PolicyError(
            f"forecast {name} fails before window {window}: {in_one_line(error)}"
        ) from error


def _as_good(tried: Tried) -> bool:
    """Whether a forecast is not clearly worse than the one that did best."""
    if tried.behind_interval is None:
        return tried.behind <= _TIE
    return tried.behind_interval.low <= 0.0


def _turned(interval: Interval | None) -> Interval | None:
    return None if interval is None else Interval(-interval.high, -interval.low)


def _words(forecast: str, scenarios: Scenarios, trace: LoadTrace) -> str:
    number = len(scenarios.loads)
    count = "1 scenario" if number == 1 else f"{number} scenarios"
    return f"{forecast}, {count} of {trace.in_words}"


def held_out(trace: LoadTrace, every: int = 1) -> str:
    """How windows in no order are held out, as the begin of a sentence."""
    number = counted(trace.num_windows, "workload")
    if every == 1:
        return f"Each of {number} held out in turn"
    return f"Of {number}, {every} at a time held out in turn"
