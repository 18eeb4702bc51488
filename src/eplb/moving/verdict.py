"""What to do about a placement: one verdict, from what plans gain on windows they have not seen.

Two kinds of trial are held out, each made of at most four plans. Plans from the earlier windows are
scored on the windows that follow, which shows what is lost where loads drift. Plans from all
windows but some are scored on those, which shows a plan for nearly as many windows as there are.
Both count alike. What a plan gains on windows that it was made from chooses nothing.
"""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eplb.balance import Interval, ratios
from eplb.checks import real_number, share_of_one
from eplb.cluster import Cluster
from eplb.dispatching.rules import check_named, under
from eplb.loads import check_weights, check_windows
from eplb.placement import Placement
from eplb.planning.passes import Effort
from eplb.planning.plan import Plan, plan, planned_rule
from eplb.planning.relocate import check_current

__all__ = ["CONFIDENCE", "LEAST_GAIN", "Action", "Verdict", "counting", "judge"]

LEAST_GAIN = 0.003
"""Balancedness that a plan is to gain (docs/experiments.md)."""
CONFIDENCE = 0.84
"""Confidence that it gains anything: one standard error (docs/experiments.md)."""

_TRIES = 4
_BUDGETS = (0.125, 0.25, 0.5)
"""Shares of a plan's moves that are tried too."""
_ENOUGH = 0.9
"""Share of the gain on unseen windows that fewer moves must keep."""
_ROOM = 0.02
"""Balancedness that knowing the windows would gain, from which it matters that it cannot be had."""
_CHANCE = 2.0
"""Times the variance of counted tokens up to which windows differ by chance alone."""
_TWO_SIDED = NormalDist().inv_cdf(0.975)

Action = Literal["switch it on", "re-plan", "move n", "keep what runs", "unpredictable"]
_Loads = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What to do, and the evidence.

    Attributes:
        action: "switch it on" where engines' start layout runs; "re-plan"; "move n", where fewer
            moves keep nearly all of the gain; "keep what runs"; "unpredictable", where plans gain
            on the windows that they were made from and not on others.
        moves: experts that GPUs receive if the advice is followed.
        gain: balancedness gained on windows that plans have not seen, with as many moves; of one
            window, on that one.
        interval: where that is with 95 % confidence; None of one window.
        now: balancedness of what runs, on all the windows.
        seen_gain: balancedness that the plan gains on the windows that it was made from.
        windows: how many are held out in turn; 0 where there is one, and nothing is held out.
        least_gain, confidence: the thresholds.
        dispatch: the rule of dispatch that balancedness is under.
        plan: the plan that was weighed.
        words: the advice in sentences, with its figures.
    """

    action: Action
    moves: int
    gain: float
    interval: Interval | None
    now: float
    seen_gain: float
    windows: int
    least_gain: float
    confidence: float
    dispatch: str
    plan: Plan
    words: str

    @property
    def advised(self) -> bool:
        """Whether anything is to change."""
        return self.action in {"switch it on", "re-plan", "move n"}

    @property
    def fall(self) -> float:
        """Share by which the peaks fall where balancedness rises by the gain."""
        after = self.now + self.gain
        return self.gain / after if after > 0.0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        figures = {name: value for name, value in vars(self).items() if name != "plan"}
        return {**figures, "interval": None if self.interval is None else asdict(self.interval)}


def judge(
    loads: Any,
    cluster: Cluster,
    current: Placement | None = None,
    *,
    num_groups: int = 1,
    weights: Any = None,
    max_moves: int | None = None,
    move_cost: float | None = None,
    least_gain: float = LEAST_GAIN,
    confidence: float = CONFIDENCE,
    effort: Effort = "fast",
    dispatch: str = "even",
    threads: int | None = None,
) -> Verdict:
    """Whether to change what runs, and how much of it.

    Args:
        loads: [T, L, E] the windows measured last, in the order in which they happened, or one.
            Windows without any load count for nothing.
        cluster: the GPUs and their slots.
        current: the placement that runs, of this cluster; None where the layout runs that engines
            start with. Where it is of another cluster, moving is a must, and this says what a plan
            gains.
        num_groups: groups that the model routes by.
        weights: [T] what windows count.
        max_moves: maximum number of moves.
        move_cost: price of a move, as for `eplb.plan`.
        least_gain: balancedness that a plan is to gain.
        confidence: from 0.5 to 1, that it gains anything at all.
        effort: work of each plan.
        dispatch: the rule by which windows are scored, as for `Placement.gpu_load`.
        threads: most threads to use.

    Raises:
        EplbError: as for `eplb.plan`.
        OptionError: a threshold out of its range, or a rule that is not known.
    """
    least_gain = real_number(least_gain, "least_gain", "balancedness", least=0.0, above=False)
    confidence = share_of_one(confidence, "confidence")
    check_named(dispatch)
    windows = check_windows(loads)
    some = counting(windows, weights)
    weights = None if weights is None else np.asarray(weights)[some]
    windows = windows[some]
    num_layers, num_experts = windows.shape[1:]
    running = Placement.contiguous(num_layers, num_experts, cluster)
    if current is not None:
        running = check_current(current, num_layers, num_experts)

    def planned(chosen: NDArray[np.intp], budget: int | None) -> Plan:
        moving: dict[str, Any] = {}
        if current is not None:
            moving = {"current": current, "max_moves": budget, "move_cost": move_cost}
        return plan(
            windows[chosen],
            cluster,
            num_groups=num_groups,
            weights=None if weights is None else weights[chosen],
            dispatch=planned_rule(dispatch, current),
            effort=effort,
            threads=threads,
            **moving,
        )

    number = len(windows)
    order = np.arange(number)
    made = planned(order, max_moves)
    now, then = (_scores(each, windows, dispatch) for each in (running, made.placement))
    seen_gain = _mean(then - now)

    def trial(folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]], budget: int | None) -> _Loads:
        """[H, L] balancedness gained on windows that plans have not seen, fold by fold."""
        gained = []
        for shown, held in folds:
            tried = planned(shown, budget).placement
            gained.append(_scores(tried, windows[held], dispatch) - now[held])
        return np.concatenate(gained)

    changes = made.moves > 0 or (current is None and made.placement != running)
    if number < 2 or not changes:
        held_out = number if number > 1 else 0
        gain, interval, sure = (seen_gain if changes else 0.0), None, changes
    else:
        held_out = number
        first = number // 2
        length = -(-(number - first) // _TRIES)
        ahead = [
            (order[:begin], order[begin : begin + length]) for begin in range(first, number, length)
        ]
        apart = [
            (np.setdiff1d(order, held), held) for held in np.array_split(order, min(_TRIES, number))
        ]
        later = trial(ahead, max_moves)
        gained = 0.5 * trial(apart, max_moves)
        gained[first:] += 0.5 * later * number / (number - first)
        gain, error = _mean(gained), _error(gained)
        sure = gain > NormalDist().inv_cdf(confidence) * error if confidence < 1.0 else False
        interval = Interval(gain - _TWO_SIDED * error, gain + _TWO_SIDED * error)
    advised = changes and sure and gain > 0.0 and gain >= least_gain
    action: Action = "keep what runs"
    if advised:
        action = "switch it on" if current is None else "re-plan"
        if interval is not None and current is not None and current.cluster == cluster:
            for share in _BUDGETS:
                budget = math.ceil(share * made.moves)
                kept = _mean(trial(ahead, budget)) / _mean(later) if _mean(later) > 0.0 else 0.0
                if kept >= _ENOUGH and kept * gain >= least_gain:
                    made, action = planned(order, budget), "move n"
                    scale = min(kept, 1.0)
                    gain *= scale
                    interval = Interval(scale * interval.low, scale * interval.high)
                    break
    elif held_out and seen_gain >= max(_ROOM, least_gain):
        action = "unpredictable"
    balance = _mean(now, 1.0)
    moves = 0
    if advised:
        moves = made.moves if current is not None else made.placement.moves_from(running)
    words = _words(
        action, moves, made, gain, interval, balance, seen_gain, held_out, windows, under(dispatch)
    )
    return Verdict(
        action,
        moves,
        gain,
        interval,
        balance,
        seen_gain,
        held_out,
        least_gain,
        confidence,
        dispatch,
        made,
        words,
    )


def counting(windows: _Loads, weights: Any) -> NDArray[np.bool_]:
    """[T] the windows that have any load and count for something, or one that counts.

    Raises:
        LoadsError: weights that are none.
    """
    counts = check_weights(weights, len(windows)) > 0.0
    some = counts & windows.any(axis=(1, 2))
    return some if some.any() else np.arange(len(windows)) == counts.argmax()


def _scores(placement: Placement, windows: _Loads, dispatch: str) -> _Loads:
    """[T, L] balancedness, NaN where a layer has no load."""
    return ratios(placement.gpu_load(windows, dispatch))


def _mean(values: _Loads, otherwise: float = 0.0) -> float:
    known = ~np.isnan(values)
    return float(values[known].mean()) if known.any() else otherwise


def _error(gained: _Loads) -> float:
    """Standard error of the mean of [T, L]: layers are those there are, windows are a sample."""
    known = ~np.isnan(gained)
    layers = known.any(axis=0)
    gained, known = gained[:, layers], known[:, layers]
    away = (gained - np.nanmean(gained, axis=0))[known]
    freedom = known.sum() - known.shape[1]
    return math.sqrt(float((away**2).sum()) / freedom / known.sum()) if freedom > 0 else math.inf


def _words(
    action: Action,
    moves: int,
    made: Plan,
    gain: float,
    interval: Interval | None,
    now: float,
    seen_gain: float,
    held_out: int,
    windows: _Loads,
    by_rule: str,
) -> str:
    """The advice, what it rests on, and what helps."""
    size = f"{moves:,} {'expert' if moves == 1 else 'experts'}"
    advice = {
        "switch it on": "Switch balancing on",
        "re-plan": f"Re-plan: move {size}",
        "move n": f"Move {size}, which keeps nearly all of the gain of a whole plan",
        "keep what runs": "Keep what runs",
        "unpredictable": "Keep what runs: these loads cannot be predicted",
    }[action]
    if not made.moves and not moves and gain == 0.0 and seen_gain < LEAST_GAIN:
        return f"{advice}. No plan found is better by what its moves are to gain."
    if not held_out:
        what = (
            f"gains {gain:+.4f} of balancedness over {now:.4f}{by_rule} on the window it was made "
            "from"
        )
        return (
            f"{advice}. A plan {what}. One window cannot show whether that lasts: record 2 or "
            "more, better 16."
        )
    half = "" if interval is None else f" ±{(interval.high - interval.low) / 2.0:.4f}"
    found = (
        f"On {held_out} windows, each held out in turn, plans gain {gain:+.4f}{half} of "
        f"balancedness over {now:.4f}{by_rule}"
    )
    if action != "unpredictable":
        return f"{advice}. {found}."
    seen = f"{seen_gain:+.4f} where they have seen the windows"
    return f"{advice}. {found}, and {seen}. {_help(windows)}"


def _help(windows: _Loads) -> str:
    """What helps where plans do not gain on windows to come."""
    total = windows.sum(axis=2, keepdims=True)
    expected = windows.sum(axis=0) / np.maximum(total.sum(axis=0), 1e-300) * total
    away = np.divide(
        (windows - expected) ** 2, expected, out=np.zeros(windows.shape), where=expected > 0.0
    )
    freedom = (np.count_nonzero(total) - windows.shape[1]) * max(1, windows.shape[2] - 1)
    if away.sum() <= _CHANCE * max(freedom, 1):
        return (
            "Windows differ by little more than chance: windows of more tokens (--merge, or longer "
            "recording) would show what lasts."
        )
    return (
        "Windows differ by more than chance: more spare slots help with any load, and a longer "
        "recording shows what comes back."
    )
