"""Policies side by side on one trace: what each would have given, and how sure that is."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from eplb.balance import Interval, Served
from eplb.checks import real_number
from eplb.cluster import Cluster
from eplb.cost.models import expert_bytes_of
from eplb.dispatching.rules import check_rule, name_of
from eplb.errors import EplbError, OptionError, PolicyError
from eplb.loads import LoadTrace
from eplb.moving.service import Service
from eplb.planning.backtest import Schedule
from eplb.planning.forecast import HISTORY
from eplb.replaying.policies import Policies, named_policies, plans_for, told
from eplb.replaying.replay import Replay, Step, replay_of, replay_steps


@dataclass(frozen=True)
class Score:
    """What one policy gave.

    Attributes:
        policy: its name.
        balancedness: mean GPU load / max GPU load, mean over windows and layers.
        balancedness_interval: where that is with 95 % confidence; None of fewer than 16 windows
            or 4 blocks of them.
        pooled: the same as sum of means / sum of maxima.
        pooled_interval: of that.
        worst_window: balancedness of the least balanced window.
        gain: balancedness above that of the first policy compared.
        gain_interval: of that; both policies' windows are drawn together.
        plans: times that the policy was asked.
        moved: share of the slots of layers with any load that GPUs had to receive at a plan, the
            first left out, on average; None where there was no other, or no order.
        bytes_per_plan: the same in bytes, None where an expert's bytes are unknown.
        plan_ms: median time of a plan in milliseconds, without the first where there are more;
            first_plan_ms: of the first, for which a file's kernels may be loaded or compiled;
            longest_plan_ms: the longest of all.
        net: share of the service's time that is saved against the first policy compared, the time
            of transfers included, but for the first plan's; None where no service is known.
    """

    policy: str
    balancedness: float
    balancedness_interval: Interval | None
    pooled: float
    pooled_interval: Interval | None
    worst_window: float
    gain: float
    gain_interval: Interval | None
    plans: int
    moved: float | None
    bytes_per_plan: float | None
    plan_ms: float
    first_plan_ms: float
    longest_plan_ms: float
    net: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Several policies on the same windows.

    Attributes:
        windows: windows served by every policy; wanted: those that were to be.
        layers: L; dense_layers: those with no load in any window; experts: E.
        dispatch: name of the rule of dispatch that all scores are under.
        ordered: whether windows follow each other; else each was held out in turn.
        balancedness_under: by the name of each rule asked for, the first included, the balancedness
            of the same placements under it, of each policy.
        placed_for: by the name of each rule asked for but the first, the balancedness under it of
            placements that are made for it, of each policy; None of one that knows no rules.
        scores: one per policy, in the order given.
        replays: the records that the scores come from.
    """

    windows: int
    wanted: int
    layers: int
    dense_layers: int
    experts: int
    gpus: int
    nodes: int
    slots: int
    groups: int
    every: int
    history: int
    first: int
    dispatch: str
    ordered: bool
    balancedness_under: dict[str, list[float]]
    placed_for: dict[str, list[float | None]]
    scores: list[Score]
    replays: list[Replay]

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values; of the records those of whole windows."""
        fields = {name: value for name, value in vars(self).items() if name != "replays"}
        return {
            **fields,
            "scores": [asdict(score) for score in self.scores],
            "by_window": [_by_window(replay) for replay in self.replays],
        }


def compare(
    trace: LoadTrace,
    cluster: Cluster,
    policies: Policies,
    *,
    num_groups: int = 1,
    every: int = 1,
    history: int = HISTORY,
    first: int = 1,
    expert_bytes: int | None = None,
    service: Service | None = None,
    window_seconds: float | None = None,
    dispatch: Any = "even",
    progress: Callable[[int, int], bool | None] | None = None,
    failed: Callable[[EplbError], object] | None = None,
) -> Comparison:
    """Replay policies in step, each window by all of them before the next.

    Example:
        >>> import eplb
        >>> trace = eplb.synthetic.trace(
        ...     "gpt-oss-20b", num_windows=12, tokens_per_window=2048, num_layers=2
        ... )
        >>> cluster = eplb.Cluster(num_gpus=8, slots_per_gpu=5)
        >>> found = eplb.compare(trace, cluster, ["deepseek", "eplb"])
        >>> [score.policy for score in found.scores]
        ['deepseek', 'eplb']
        >>> found.scores[1].gain > 0.0
        True

    Args:
        trace: the windows, in the order in which they happened; in no order, each is held out in
            turn as in `eplb.replay`.
        cluster: the GPUs and their slots.
        policies: names in `eplb.policies.POLICIES` and paths of Python files, or callables by name;
            a lone one need not be in a list.
        num_groups: as in `eplb.replay`; so are every, history, first and expert_bytes.
        every: windows from one plan to the next.
        history: most windows that a policy is shown.
        first: the first window served.
        expert_bytes: bytes of an expert's weights in one layer.
        service: what moves cost and lighter GPUs give, for the policy "deciding" and the net
            benefit of each.
        window_seconds: time that a window stands for, with a service; by default as the trace says.
        dispatch: how windows are served, as in `eplb.replay`. Of a list of rules, every figure is
            under the first. The balancedness of the same placements under the others is given too,
            and that of placements made for them, where a policy is this planner: it then plans for
            each rule.
        progress: called after each window with how many are done, and how many there are; where it
            returns False the replays end, and what was done counts.
        failed: called with the error where a policy fails after the first window, in place of
            raising it; the windows that all policies have served count.

    Raises:
        EplbError: as for `eplb.replay`.
    """
    if not isinstance(policies, Mapping):
        policies = dict[str, Any](named_policies(policies))
    elif not policies:
        raise PolicyError("no policy is given")
    rules = _rules_of(dispatch)
    size = expert_bytes_of(trace.model, expert_bytes)
    length = None
    if service is not None:
        if not trace.ordered:
            raise OptionError(
                f"these are {trace.in_words}, and whether moves pay is a question of time: leave "
                "out the service, or give the files in their order"
            )
        size = service.expert_bytes
        length = time_of_window(trace)
        if window_seconds is not None:
            length = real_number(window_seconds, "window_seconds", "seconds")
        if length is None:
            raise OptionError(
                "the trace does not say how long a window lasts: give window_seconds "
                "(--window-seconds)"
            )
        policies = {
            name: told(policy, service, length * every) for name, policy in policies.items()
        }
    schedule = Schedule(every, history, first)
    # This planner plans for a rule, so it walks once more for each other one.
    again = [
        (rule, name)
        for rule in rules[1:]
        for name, policy in policies.items()
        if plans_for(policy, rule)
    ]
    walks = [
        replay_steps(
            trace,
            cluster,
            policies[name],
            schedule,
            num_groups=num_groups,
            service=service,
            dispatch=rule,
        )
        for rule, name in [*((rules[0], name) for name in policies), *again]
    ]
    wanted = schedule.num_served(trace)
    rounds: list[tuple[Step, ...]] = []
    try:
        for steps in zip(*walks, strict=True):
            rounds.append(steps)
            if progress is not None and progress(len(rounds), wanted) is False:
                break
    except EplbError as error:
        if failed is None or not rounds:
            raise
        failed(error)
    walked = list(zip(*rounds, strict=True))
    replays = [
        replay_of(steps, name, cluster, size, service, rules[0], ordered=trace.ordered)
        for name, steps in zip(policies, walked[: len(policies)], strict=True)
    ]
    placed = {
        pair: Served.joined(step.served for step in steps).average()
        for pair, steps in zip(again, walked[len(policies) :], strict=True)
    }
    return Comparison(
        windows=len(rounds),
        wanted=wanted,
        layers=trace.num_layers,
        dense_layers=int(trace.dense.sum()),
        experts=trace.num_experts,
        gpus=cluster.num_gpus,
        nodes=cluster.num_nodes,
        slots=cluster.num_held,
        groups=num_groups,
        every=every,
        history=history,
        first=first,
        dispatch=name_of(rules[0]),
        ordered=trace.ordered,
        balancedness_under={
            name_of(rule): [
                (replay if rule is rules[0] else replay.under(trace, rule)).average()
                for replay in replays
            ]
            for rule in rules
        },
        placed_for={rule: [placed.get((rule, name)) for name in policies] for rule in rules[1:]},
        scores=[
            replace(
                score(replay, replays[0]),
                net=None if service is None else _net(replay, replays[0], service, length or 0.0),
            )
            for replay in replays
        ],
        replays=replays,
    )


def _rules_of(dispatch: Any) -> list[Any]:
    """The rules asked for: a list of names, or a lone rule or split.

    Raises:
        OptionError: a rule that is not known, or one that is given twice.
    """
    several = isinstance(dispatch, list | tuple) and all(isinstance(one, str) for one in dispatch)
    rules = [check_rule(rule) for rule in (dispatch if several else [dispatch])]
    if not rules or (several and len(set(rules)) < len(rules)):
        raise OptionError(f"dispatch is {dispatch!r}: give a rule, or several, each once")
    return rules


def time_of_window(trace: LoadTrace) -> float | None:
    """Seconds that a window stands for; None where the trace does not say."""
    if trace.times is None or trace.times.size < 2:
        return None
    between = float(np.median(np.diff(trace.times)))
    return between if between > 0.0 else None


def _net(replay: Replay, reference: Replay, service: Service, seconds: float) -> float:
    """Share of the time that is saved against a reference, the first plans' transfers left out."""
    peaks, other = replay.peak.sum(axis=1), reference.peak.sum(axis=1)
    fall = np.divide(other - peaks, other, out=np.zeros(peaks.size), where=other > 0.0)
    whole = saved = 0.0
    for one, sign in ((reference, 1.0), (replay, -1.0)):
        first = int(np.flatnonzero(one.planned)[0])
        moving = 0.0 if one.moving_seconds is None else float(one.moving_seconds[first + 1 :].sum())
        moved = one.moves[first + 1 :] > 0
        lost = service.lost_seconds(moving, int(moved.sum()), int(moved.any(axis=1).sum()))
        saved += sign * lost
        whole += lost if sign > 0.0 else 0.0
    whole += seconds * peaks.size
    saved += service.gained_seconds(float(fall.sum()), seconds)
    return float(saved / whole)


def score(replay: Replay, reference: Replay | None = None) -> Score:
    """The figures of one replay, and its gain over another of the same windows."""
    reference = reference or replay
    asked = np.flatnonzero(replay.planned)
    later = asked[1:]
    every = int(np.diff(asked).max()) if later.size else replay.num_steps
    moe = replay.peak.any(axis=0)  # a dense layer has nothing to move
    received = replay.moves[np.ix_(later, moe)].sum(axis=1)
    mean_moves = float(received.mean()) if later.size and replay.ordered else None
    slots = max(1, int(moe.sum())) * replay.cluster.num_held
    seconds = replay.seconds[replay.planned]
    gain, gain_interval = replay.gain_over(reference, every)
    return Score(
        policy=replay.name,
        balancedness=replay.average(),
        balancedness_interval=replay.interval(every),
        pooled=replay.pooled(),
        pooled_interval=replay.pooled_interval(every),
        worst_window=replay.worst_window(),
        gain=gain,
        gain_interval=gain_interval,
        plans=int(replay.planned.sum()),
        moved=None if mean_moves is None else mean_moves / slots,
        bytes_per_plan=(
            None
            if mean_moves is None or replay.expert_bytes is None
            else mean_moves * replay.expert_bytes
        ),
        plan_ms=float(np.median(seconds[1:] if later.size else seconds)) * 1e3,
        first_plan_ms=float(seconds[0]) * 1e3,
        longest_plan_ms=float(seconds.max()) * 1e3,
    )


def _by_window(replay: Replay) -> dict[str, Any]:
    """Of each window the balancedness (None without load), the moves, and the time of a plan."""
    return {
        "policy": replay.name,
        "window": replay.windows.tolist(),
        "balancedness": [None if np.isnan(each) else each for each in replay.by_window().tolist()],
        "moves": replay.moves.sum(axis=1).tolist(),
        "plan_ms": [
            seconds * 1e3 if planned else None
            for seconds, planned in zip(
                replay.seconds.tolist(), replay.planned.tolist(), strict=True
            )
        ],
    }
