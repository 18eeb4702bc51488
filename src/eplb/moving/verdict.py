"""What to do about a placement: one verdict, from what plans gain on windows they have not seen.

Two kinds of trial are held out, each of at most four plans. Plans from the earlier windows are
scored on the windows that follow, which shows what is lost where loads drift. Plans from all
windows but some are scored on those, which shows a plan for nearly as many windows as there are.
Both count alike. What a plan gains on windows that it was made from advises no change, unless there
is one window only.

How sure the gain is follows from the windows held out one by one, and from their sums, in which
chance is smaller. Where loads drift, above all where they drift towards what makes the GPUs of what
runs uneven already, it gets worse, and less is asked.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eplb.balance import Interval, paced, student
from eplb.checks import real_number, share_of_one
from eplb.cluster import Cluster
from eplb.dispatching.rules import check_named, under
from eplb.loads import check_weights, check_windows
from eplb.placement import Placement
from eplb.planning.backtest import HELD_OUT
from eplb.planning.engine import engine_placement
from eplb.planning.pinned import check_pins, keeps
from eplb.planning.pins import Pins
from eplb.planning.plan import Plan, plan, what_is_left
from eplb.planning.problem import Effort, check_problem
from eplb.planning.relocate import BudgetError, check_current
from eplb.planning.solve import planned_rule

LEAST_GAIN = 0.002
"""Balancedness that a plan is to gain (docs/experiments.md)."""
CONFIDENCE = 0.84
"""Confidence that it gains anything (docs/experiments.md)."""

NOTHING_BETTER = "No plan found is better by what its moves are to gain."
"""Why nothing moves, where no window held out is needed to see that."""

_TRIES = 4
"""Parts of windows in order that are held out."""
_BUDGETS = (0.125, 0.25, 0.5)
"""Shares of a plan's moves that are tried too."""
_ENOUGH = 0.9
"""Share of the gain on unseen windows that fewer moves must keep."""
_ROOM = 0.02
"""Balancedness that knowing the windows would gain, from which it matters that it cannot be had."""
_DRIFT = (-1.0, 3.0)
"""The least and the most standard errors that a steady change of the loads counts for."""
_FAR = 3.3
"""Times as many standard errors as a confidence is, that a gain twice, on windows and on sums of
them, and a steady change are to add up to (docs/experiments.md).
"""
_ORDERS = 200
"""Orders of the windows that a steady change is compared with."""
_FEWEST = 4
"""Windows from which a steady change can be told from chance."""
_UNDERSTATED = 0.1
"""Share of what plans gain more on the windows that they are made from, by which an interval is
wider (docs/experiments.md).
"""
_ROUNDING = 1e-9
_SURE = 10.0
"""Standard errors from which a gain is as sure as can be."""
_CHANCE = 2.0
"""Times the variance of counted tokens up to which windows differ by chance alone."""

Action = Literal["switch it on", "re-plan", "move n", "keep what runs", "unpredictable"]
_Loads = NDArray[np.float64]
_Folds = list[tuple[NDArray[np.intp], NDArray[np.intp]]]


@dataclass(frozen=True)
class Verdict:
    """What to do, and the evidence.

    Attributes:
        action: "switch it on" where engines' start layout runs; "re-plan"; "move n", where fewer
            moves keep nearly all of the gain; "keep what runs"; "unpredictable", where plans gain
            on the windows that they were made from and not on others.
        moves: experts that GPUs receive if the advice is followed.
        gain: balancedness gained on windows that plans have not seen, with as many moves; of one
            window, or where plans gain less than `least_gain` on the windows that they were made
            from, on those.
        interval: where that is with 95 % confidence on windows like these; None where nothing was
            held out.
        engine_gain: the same of DeepSeek's EPLB for the sum of the windows, which is what engines
            run by themselves; None where nothing was held out.
        engine_moves: experts that GPUs receive if they do.
        now: balancedness of what runs, on all the windows.
        seen_gain: balancedness that the plan gains on the windows that it was made from.
        lasting: correlation of GPUs' loads, over their layer's mean, between the earlier and the
            later half of the windows: 1 where hot spots persist, 0 where they pass; None of one
            window, or of windows in no order.
        split_groups: expert groups that what runs has on more nodes than one, in all layers, where
            groups are to stay on a node.
        windows: how many are held out in turn; 0 where nothing is.
        tokens: routed to the experts of a layer in a window, on average.
        least_gain, confidence: the thresholds.
        dispatch: the rule of dispatch that balancedness is under.
        plan: the plan that was weighed.
        advice: what to do, in a sentence.
        evidence: why, with its figures, in sentences.
    """

    action: Action
    moves: int
    gain: float
    interval: Interval | None
    engine_gain: float | None
    engine_moves: int
    now: float
    seen_gain: float
    lasting: float | None
    split_groups: int
    windows: int
    tokens: float
    least_gain: float
    confidence: float
    dispatch: str
    plan: Plan
    advice: str
    evidence: str

    @property
    def advised(self) -> bool:
        """Whether anything is to change."""
        return self.action in {"switch it on", "re-plan", "move n"}

    @property
    def words(self) -> str:
        """What to do, and why."""
        return f"{self.advice} {self.evidence}"

    @property
    def fall(self) -> float:
        """Share by which the peaks fall where balancedness rises by the gain."""
        after = self.now + self.gain
        return self.gain / after if after > 0.0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        figures = {name: value for name, value in vars(self).items() if name != "plan"}
        return {**figures, "interval": None if self.interval is None else asdict(self.interval)}


@dataclass(frozen=True, eq=False)
class _Trials:
    """Windows [T, L, E] that have load, what they count, what runs, how plans are
    made, and the rule that scores them.
    """

    windows: _Loads
    weights: _Loads | None
    cluster: Cluster
    num_groups: int
    running: Placement
    options: dict[str, Any]
    dispatch: str
    made: dict[tuple[bytes, ...], Plan] = field(default_factory=dict)

    def plan(self, chosen: NDArray[np.intp], **budget: int) -> Plan:
        """A plan from some of the windows, made once: the last windows are held out in trials of
        both kinds.
        """
        asked = (chosen.tobytes(), repr(budget).encode())
        if asked not in self.made:
            self.made[asked] = plan(
                self.windows[chosen],
                self.cluster,
                num_groups=self.num_groups,
                weights=None if self.weights is None else self.weights[chosen],
                **self.options | budget,
            )
        return self.made[asked]

    def engine(self, chosen: NDArray[np.intp]) -> Placement:
        """What engines make of the same windows by themselves."""
        return engine_placement(self.windows[chosen], self.cluster, self.num_groups)

    def gained(self, placement: Placement, held: NDArray[np.intp]) -> _Loads:
        """[H + 1, L] balancedness gained over what runs on windows, and on their sum, the last."""
        windows = self.windows[held]
        windows = np.concatenate([windows, windows.sum(axis=0, keepdims=True)])
        before = self.running.ratios(windows, self.dispatch)
        return placement.ratios(windows, self.dispatch) - before

    def of(self, folds: _Folds, **budget: int) -> tuple[_Loads, _Loads]:
        """[H, L] balancedness gained on windows that plans have not seen, fold by fold, and [F, L]
        on the sum of each fold's.
        """
        found = [self.gained(self.plan(shown, **budget).placement, held) for shown, held in folds]
        return _apart(found)

    def of_engine(self, folds: _Folds) -> tuple[_Loads, _Loads]:
        """The same where the engine plans by itself."""
        return _apart([self.gained(self.engine(shown), held) for shown, held in folds])


def judge(
    loads: Any,
    cluster: Cluster,
    current: Placement | None = None,
    *,
    num_groups: int = 1,
    weights: Any = None,
    ordered: bool = True,
    max_moves: int | None = None,
    move_cost: float | None = None,
    least_gain: float = LEAST_GAIN,
    confidence: float = CONFIDENCE,
    effort: Effort = "fast",
    dispatch: str = "even",
    pins: Pins | None = None,
    threads: int | None = None,
) -> Verdict:
    """Whether to change what runs, and how much of it.

    Args:
        loads: [T, L, E] the windows measured last, in the order in which they happened, or one.
            Windows without any load, or of weight 0, change nothing.
        cluster: the GPUs and their slots.
        current: the placement that runs; None where the layout runs that engines start with. Where
            it is of another cluster, moving is a must, and this says what a plan gains; where GPUs
            have died, over what is left of it.
        num_groups: groups that the model routes by.
        weights: [T] what windows count.
        ordered: whether windows follow each other; else none is tried on those after it, and
            nothing is said of what lasts.
        max_moves: maximum number of moves.
        move_cost: price of a move, as for `eplb.plan`.
        least_gain: balancedness that a plan is to gain.
        confidence: from 0.5 to 1, that it gains anything at all.
        effort: work of each plan.
        dispatch: the rule by which windows are scored, as for `Placement.gpu_load`.
        pins: what plans must keep to, as for `eplb.plan`; where what runs does not, moving is a
            must.
        threads: most threads to use.

    Raises:
        EplbError: as for `eplb.plan`.
        OptionError: a threshold out of its range, or a rule that is not known.
    """
    least_gain = real_number(least_gain, "least_gain", "balancedness", least=0.0, above=False)
    confidence = share_of_one(confidence, "confidence", least=0.5)
    check_named(dispatch)
    windows = check_windows(loads)
    some = counting(windows, weights)
    windows = windows[some]
    number, num_layers, num_experts = windows.shape
    running = Placement.contiguous(num_layers, num_experts, cluster)
    options: dict[str, Any] = {
        "effort": effort,
        "threads": threads,
        "dispatch": planned_rule(dispatch, current),
        "pins": pins,
    }
    if current is not None:
        current = check_current(current, num_layers, num_experts)
        running = what_is_left(current, cluster, windows, threads)
        options |= {"current": current, "max_moves": max_moves, "move_cost": move_cost}
    counts = None if weights is None else np.asarray(weights)[some]
    trials = _Trials(windows, counts, cluster, num_groups, running, options, dispatch)
    order = np.arange(number)
    made = trials.plan(order)
    load = paced(running.gpu_load(windows, dispatch), running.cluster.speeds)
    now, then = (each.ratios(windows, dispatch) for each in (running, made.placement))
    gain = seen_gain = _mean(then - now)
    interval = engine_gain = None
    engine_moves = 0
    forced = must_move(windows, cluster, current, num_groups, pins, counts)
    changes = made.moves > 0 or made.placement != running
    sure = changes
    held_out = number if number > 1 and changes and (seen_gain >= least_gain or forced) else 0
    if held_out:
        first = number // 2
        length = -(-(number - first) // _TRIES)
        ahead = [
            (order[:begin], order[begin : begin + length]) for begin in range(first, number, length)
        ]
        folds = min(_TRIES if ordered else HELD_OUT, number)
        apart = [(np.setdiff1d(order, held), held) for held in np.array_split(order, folds)]
        if not ordered:
            ahead = apart
        later = trials.of(ahead)
        kinds = [later, trials.of(apart)] if ordered else [later]
        gained, added = _together(kinds)
        gain, half = _held_out([each[0] for each in kinds], seen_gain)
        interval = Interval(gain - half, gain + half)
        by_engine = [trials.of_engine(each) for each in ([ahead, apart] if ordered else [ahead])]
        engine_gain = float(np.mean([_mean(each) for each, _ in by_engine]))
        engine_moves = trials.engine(order).moves_from(running)
        drift = _drift(windows, load) if ordered else 0.0
        sure = _sure(gained, added, 2 if ordered else 1, drift=drift, confidence=confidence)
    advised = bool(forced) or (sure and gain > 0.0 and gain >= least_gain)
    action: Action = "keep what runs"
    if advised:
        action = "switch it on" if current is None else "re-plan"
        if interval is not None and current is not None and not forced:
            # The last two trials are made from most windows, and are enough.
            last = ahead[-2:]
            whole = _mean(later[0][-sum(held.size for _, held in last) :])
            for share in _BUDGETS if whole > 0.0 else ():
                budget = math.ceil(share * made.moves)
                try:
                    kept = _mean(trials.of(last, max_moves=budget)[0]) / whole
                except BudgetError:  # groups that come home to their nodes take more moves
                    continue
                if kept >= _ENOUGH and kept * gain >= least_gain:
                    made, action = trials.plan(order, max_moves=budget), "move n"
                    scale = min(kept, 1.0)
                    gain *= scale
                    interval = Interval(scale * interval.low, scale * interval.high)
                    break
    elif held_out and seen_gain >= max(_ROOM, least_gain):
        action = "unpredictable"
    moves = 0
    if advised:
        moves = made.moves if current is not None else made.placement.moves_from(running)
    tokens = windows.sum(axis=2)
    found = Verdict(
        action,
        moves,
        gain,
        interval,
        engine_gain,
        engine_moves,
        _mean(now, 1.0),
        seen_gain,
        _lasting(load) if ordered else None,
        0 if forced else _split_groups(running, num_groups),
        held_out,
        float(tokens[tokens > 0.0].mean()) if tokens.any() else 0.0,
        least_gain,
        confidence,
        dispatch,
        made,
        advice="",
        evidence="",
    )
    return replace(
        found,
        advice=_advice(found, forced),
        evidence=_evidence(found, number, _help(windows) if action == "unpredictable" else ""),
    )


def counting(windows: _Loads, weights: Any) -> NDArray[np.bool_]:
    """[T] the windows that have any load and count for something, or one that counts.

    Raises:
        LoadsError: weights that are none.
    """
    counts = check_weights(weights, len(windows)) > 0.0
    some = counts & windows.any(axis=(1, 2))
    return some if some.any() else np.arange(len(windows)) == counts.argmax()


def _mean(values: _Loads, otherwise: float = 0.0) -> float:
    known = ~np.isnan(values)
    return float(values[known].mean()) if known.any() else otherwise


def _apart(found: list[_Loads]) -> tuple[_Loads, _Loads]:
    """[H, L] figures of windows and [F, L] of the sums that end each fold."""
    return np.concatenate([each[:-1] for each in found]), np.stack([each[-1] for each in found])


def _together(kinds: list[tuple[_Loads, _Loads]]) -> tuple[_Loads, _Loads]:
    """Trials of all kinds: [T, L] where each kind counts alike, and all sums."""
    gained = [each for each, _ in kinds]
    return _alike(gained), np.concatenate([added for _, added in kinds])


def _alike(kinds: list[_Loads]) -> _Loads:
    """[T, L] from figures of the last [H, L] windows or all, so that each kind counts alike."""
    number = max(len(each) for each in kinds)
    total = np.zeros((number, kinds[0].shape[1]))
    for each in kinds:
        total[number - len(each) :] += each * number / len(each) / len(kinds)
    return total


def _held_out(kinds: list[_Loads], seen_gain: float) -> tuple[float, float]:
    """The mean of gains [H, L] of each kind of trial, and half its interval.

    Chance is that of whole windows about the mean of their kind, as the tokens of a window are good
    or bad for all layers at once. Where the kinds differ, the interval holds both. Plans held out
    are made from fewer windows than the plan, which understates it by some part of what plans gain
    more on the windows that they are made from (docs/experiments.md).
    """
    means = [_mean(each) for each in kinds]
    gain = sum(means) / len(means)
    away = [_away_by_window(each) for each in kinds if len(each) > 1]
    chance = _alike(away)[:, 0]
    error = math.sqrt(float((chance**2).sum())) / len(chance)
    between = (max(means) - min(means)) / 2.0
    hidden = _UNDERSTATED * max(0.0, seen_gain - gain)
    return gain, student(len(chance) - 1) * error + between + hidden


def _away_by_window(gained: _Loads) -> _Loads:
    """[H, 1] how far each of windows [H, L] takes their mean from what it is, as of a sample."""
    number, known = len(gained), int(np.count_nonzero(~np.isnan(gained)))
    away: _Loads = np.nansum(gained - _mean(gained), axis=1, keepdims=True)
    return away * (math.sqrt(number / (number - 1)) * number / max(1, known))


def _error(gained: _Loads) -> float:
    """Standard error of the mean of [T, L]: layers are those there are, windows are a sample."""
    known = ~np.isnan(gained)
    layers = known.any(axis=0)
    gained, known = gained[:, layers], known[:, layers]
    away = np.where(known, gained - np.nanmean(gained, axis=0), 0.0)
    freedom = known.sum() - known.shape[1]
    return math.sqrt(float((away**2).sum()) / freedom / known.sum()) if freedom > 0 else math.inf


def _sure(gained: _Loads, added: _Loads, sums: int, *, drift: float, confidence: float) -> bool:
    """Whether gains on windows [T, L] and on sums of them [F, L], in so many of which each window
    is, are above 0 with a confidence, where a steady change of the loads is so many standard errors
    from none.
    """
    if confidence >= 1.0:
        return False
    # Windows and layers are in two of the sums, once later and once apart, where both are tried.
    errors = _error(gained), math.sqrt(sums) * _error(added)
    far = sum(
        _over(_mean(each), error) for each, error in zip((gained, added), errors, strict=True)
    )
    least, most = _DRIFT
    return far + min(most, max(least, drift)) > _FAR * NormalDist().inv_cdf(confidence)


def _over(gain: float, error: float) -> float:
    """A gain over its error, up to what is sure."""
    return min(_SURE, max(-_SURE, gain / error)) if error > 0.0 else math.copysign(_SURE, gain)


def _drift(windows: _Loads, load: _Loads) -> float:
    """How surely windows [T, L, E] change steadily, in standard errors, 0 on average by chance.

    Half of it is how much of the experts' shares a straight line explains; by their square roots,
    whose noise is alike. The other half knows where such a change leads: what runs was even when it
    was made, so where loads drift, what its GPUs have above their mean, of loads [T, L, G], goes on
    growing; where they changed at once, or hardly, it does not. Both are compared with the same
    windows in other orders.
    """
    number = len(windows)
    total = windows.sum(axis=2, keepdims=True)
    known = (total > 0.0).all(axis=0).ravel()
    if number < _FEWEST or not known.any():
        return 0.0
    at = np.arange(number) - (number - 1) / 2.0
    others = np.random.default_rng(0).permuted(np.tile(at, (_ORDERS, 1)), axis=1)
    orders = np.concatenate([at[None], others])
    away = _away(np.sqrt(windows[:, known] / total[:, known]))
    explained = (np.tensordot(orders, away, 1) ** 2).sum(axis=(1, 2))
    shares = load[:, known] / load[:, known].sum(axis=2, keepdims=True)
    uneven = shares.mean(axis=0) - shares.mean(axis=(0, 2))[:, None]
    grows = orders @ (_away(shares) * uneven).sum(axis=(1, 2))
    found = [_over(each[0] - each[1:].mean(), each[1:].std()) for each in (explained, grows)]
    return float(sum(found)) / math.sqrt(len(found))


def _away(values: _Loads) -> _Loads:
    """[T, ...] values less their mean over windows, by more than rounding."""
    away: _Loads = values - values.mean(axis=0)
    away[np.abs(away) < _ROUNDING] = 0.0
    return away


def _lasting(load: _Loads) -> float | None:
    """How alike the earlier and the later half of the windows load GPUs, of loads [T, L, G]."""
    if len(load) < 2:
        return None
    halves = np.stack([part.sum(axis=0) for part in np.array_split(load, 2)])
    mean = halves.mean(axis=2, keepdims=True)
    above = np.divide(halves, mean, out=np.ones(halves.shape), where=mean > 0.0) - 1.0
    # Rounding is no hot spot.
    above[np.abs(above) < _ROUNDING] = 0.0
    size = float(np.sqrt((above[0] ** 2).sum() * (above[1] ** 2).sum()))
    return float((above[0] * above[1]).sum()) / size if size > 0.0 else 0.0


def _split_groups(running: Placement, num_groups: int) -> int:
    """How many groups of all layers have experts on more nodes than one, where they need not."""
    num_nodes = running.cluster.num_nodes
    if num_nodes == 1 or num_groups % num_nodes:
        return 0
    held = running.held_by(running.cluster.num_gpus)
    on_node = held.reshape(len(held), num_nodes, -1, held.shape[2]).any(axis=2)
    of_group = on_node.reshape(len(held), num_nodes, num_groups, -1).any(axis=3)
    return int((of_group.sum(axis=1) > 1).sum())


def must_move(
    windows: _Loads,
    cluster: Cluster,
    current: Placement | None,
    num_groups: int,
    pins: Pins | None,
    weights: Any,
) -> str:
    """Why what runs cannot stay, whatever a plan gains, in words; empty where it can."""
    if current is None:
        return ""
    if current.cluster != cluster:
        return "the cluster has changed"
    if pins is None:
        return ""
    problem = check_problem(windows, cluster, num_groups, weights, None)
    kept = keeps(check_pins(problem, pins, "even"), current)
    return "" if kept else "what runs does not keep the pins"


def _advice(found: Verdict, forced: str) -> str:
    size = f"{found.moves:,} {'expert' if found.moves == 1 else 'experts'}"
    if forced:
        return f"{forced[0].upper()}{forced[1:]}: re-plan, which moves {size}."
    return {
        "switch it on": "Switch balancing on.",
        "re-plan": f"Re-plan: move {size}.",
        "move n": f"Move {size}, which keeps nearly all of the gain of a whole plan.",
        "keep what runs": "Keep what runs.",
        "unpredictable": "Keep what runs: these loads cannot be predicted.",
    }[found.action]


def _evidence(found: Verdict, number: int, helps: str) -> str:
    """What the advice rests on, and what helps."""
    words = _of_gain(found, number)
    if found.split_groups:
        groups = "expert group" if found.split_groups == 1 else "expert groups"
        words += (
            f" What runs has {found.split_groups:,} {groups} on more nodes than one, which a plan "
            "would bring together."
        )
    return f"{words} {helps}" if helps else words


def _of_gain(found: Verdict, number: int) -> str:
    over = f"of balancedness over {found.now:.4f}{under(found.dispatch)}"
    if found.interval is None or found.engine_gain is None:
        if not found.plan.moves and found.gain < found.least_gain:
            return NOTHING_BETTER
        if number > 1:
            return (
                f"Even on the {number} windows that it was made from, a plan "
                f"{_gains(found.gain, 's', 'only ')} {over}."
            )
        return (
            f"A plan {_gains(found.gain, 's')} {over} on the window it was made from. One window "
            "cannot show whether that lasts: record 2 or more, better 16."
        )
    half = (found.interval.high - found.interval.low) / 2.0
    words = (
        f"On {found.windows} windows of {found.tokens:,.0f} routed tokens, each held out in turn, "
        f"plans {_gains(found.gain)} ±{half:.4f} {over}; the engine's own planner "
        f"{_gains(found.engine_gain, 's')} by moving {found.engine_moves:,} experts."
    )
    if found.action == "unpredictable":
        words += f" Where they have seen the windows, they {_gains(found.seen_gain)}."
    if found.lasting is not None:
        words += (
            f" Hot spots {'persist' if found.lasting >= 0.5 else 'pass'}: GPUs' loads in the "
            f"earlier and the later half of the windows correlate by {found.lasting:.2f}."
        )
    return words


def _gains(gain: float, ending: str = "", little: str = "") -> str:
    """A gain in words: "gain 0.0312", or "lose 0.0951"."""
    if round(gain, 4) < 0.0:
        return f"lose{ending} {-gain:.4f}"
    return f"gain{ending} {little}{abs(gain):.4f}"


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
