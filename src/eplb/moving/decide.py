"""Whether to move at all: what a plan is expected to gain on loads to come, and what moving costs.

Moves are priced by what they cost the service in the time until the next decision, so a plan moves
only the layers for which it pays. What it gains on loads to come is found by `moving.verdict`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.checks import real_number
from eplb.cluster import Cluster
from eplb.loads import check_windows
from eplb.moving.service import Service
from eplb.moving.verdict import CONFIDENCE, LEAST_GAIN, Verdict, counting, judge, must_move
from eplb.placement import Placement
from eplb.planning.pins import Pins
from eplb.planning.plan import DEFAULT_MOVE_COST, Plan, plan, what_is_left
from eplb.planning.problem import Effort
from eplb.planning.relocate import check_current
from eplb.planning.solve import planned_rule

MARGIN = 2.0
"""Minimum ratio of gain to cost. It is hysteresis: a fluctuating load moves nothing."""


@dataclass(frozen=True)
class Decision:
    """What to do now, and why.

    Attributes:
        action: "move", "move layers" where only some gain enough, or "wait".
        layers: those that move, none to wait.
        plan: the placement to go to; when waiting, the one that was weighed.
        verdict: what plans gain on loads that they have not seen, whatever moving costs.
        gain: share by which the peaks are expected to fall on loads to come.
        gained_seconds: time that the service is expected to gain until the next decision.
        lost_seconds: time that it loses by moving: to transfers, and to what else a rebalance
            costs the engine.
        break_even: seconds after which as much time has been gained as is lost, 0 where nothing is
            lost, None where moving never pays.
        moves: experts that GPUs must receive.
        total_bytes: bytes of them.
        moving_seconds: time that the transfers take.
        dispatch: the rule of dispatch that peaks are under.
        split_gain: share by which the peaks of what runs fall if each window is split best instead
            of evenly, which moves nothing; None under another rule.
        reason: all that in a sentence.
    """

    action: Literal["move", "move layers", "wait"]
    layers: tuple[int, ...]
    plan: Plan
    verdict: Verdict
    gain: float
    gained_seconds: float
    lost_seconds: float
    break_even: float | None
    moves: int
    total_bytes: int
    moving_seconds: float
    dispatch: str
    split_gain: float | None
    reason: str

    @property
    def placement(self) -> Placement | None:
        """The placement to go to, None to stay."""
        return None if self.action == "wait" else self.plan.placement


def decide(
    loads: ArrayLike,
    cluster: Cluster,
    current: Placement,
    service: Service,
    seconds: float,
    *,
    num_groups: int = 1,
    weights: Any = None,
    ordered: bool = True,
    max_moves: int | None = None,
    margin: float = MARGIN,
    least_gain: float = LEAST_GAIN,
    confidence: float = CONFIDENCE,
    effort: Effort = "fast",
    dispatch: str = "even",
    pins: Pins | None = None,
    threads: int | None = None,
) -> Decision:
    """Move, move some layers, or wait.

    Example:
        >>> import eplb
        >>> cluster = eplb.Cluster(num_gpus=4, slots_per_gpu=3)
        >>> loads = [[90.0, 40.0, 10.0, 10.0, 10.0, 10.0, 5.0, 5.0]]
        >>> runs = eplb.plan(loads, cluster).placement
        >>> later = [[5.0, 40.0, 10.0, 10.0, 10.0, 10.0, 5.0, 90.0]]
        >>> service = eplb.Service(44_040_192, bandwidth_within=360.0, bandwidth_between=320.0)
        >>> found = eplb.decide(later, cluster, runs, service, seconds=60.0)
        >>> found.action, found.moves
        ('move', 3)

    Args:
        loads: [T, L, E] the windows measured last, in the order in which they happened, or one.
        cluster: the GPUs and their slots; where they are not those of `current`, moving is a must.
        current: the placement that runs.
        service: what moving costs and lighter GPUs give.
        seconds: time until the next decision.
        num_groups: groups that the model routes by.
        weights: [T] what windows count.
        ordered: whether windows follow each other, as for `eplb.moving.verdict.judge`.
        max_moves: maximum number of moves.
        margin: minimum ratio of gain to cost.
        least_gain: balancedness that moving is to gain on windows held out.
        confidence: from 0.5 to 1, that it gains anything on them.
        effort: work of a plan.
        dispatch: the rule by which windows are scored, as for `Placement.gpu_load`. Of "best" it is
            said first what splitting alone gains, as that moves nothing.
        pins: what placements must keep to, as for `eplb.plan`; where what runs does not, moving is
            a must.
        threads: most threads to use.

    Raises:
        EplbError: as for `eplb.plan`.
        OptionError: `seconds` is not above 0, `margin` is below 1, a threshold is out of its
            range, or a rule is not known.
    """
    seconds = real_number(seconds, "seconds", "seconds")
    margin = real_number(margin, "margin", "times the cost", least=1.0, above=False)
    windows = check_windows(loads)
    some = counting(windows, weights)
    current = check_current(current, *windows.shape[1:])
    counts = None if weights is None else np.asarray(weights)[some]
    forced = must_move(windows[some], cluster, current, num_groups, pins, counts)
    left = what_is_left(current, cluster, windows, threads)

    verdict = judge(
        windows,
        cluster,
        current,
        num_groups=num_groups,
        weights=weights,
        ordered=ordered,
        max_moves=max_moves,
        least_gain=least_gain,
        confidence=confidence,
        effort=effort,
        dispatch=dispatch,
        pins=pins,
        threads=threads,
    )
    made, gain = verdict.plan, 0.0 if forced else verdict.fall
    peaks = _peaks(left, windows[some], dispatch)
    price = _price(float(peaks.mean()), current, made.placement, service, seconds, margin)
    # Where moves are cheap, they are those that every other command weighs.
    if price > DEFAULT_MOVE_COST * float(windows[some].sum(axis=2).mean()) / cluster.num_gpus:
        # What another cluster needs moves at any price, the rest where it pays.
        made = plan(
            windows[some],
            cluster,
            num_groups=num_groups,
            weights=counts,
            current=current,
            max_moves=verdict.moves if verdict.advised and not forced else max_moves,
            move_cost=price,
            dispatch=planned_rule(dispatch, current),
            pins=pins,
            effort=effort,
            threads=threads,
        )
        gain *= _share(left, made.placement, verdict.plan.placement, windows[some], dispatch)
    moving = service.moving_seconds(current, made.placement)
    moved = int(np.count_nonzero(made.placement.moves_by_layer(current)))
    gained = service.gained_seconds(gain, seconds, moved)
    lost = service.lost_seconds(moving, moved)
    # Gained in a second, once all have moved.
    pace = service.expert_share * gain
    even = None
    if pace > 0.0 and made.moves:
        even = lost / pace + service.delay(moved) if lost > 0.0 else 0.0
    layers = np.arange(windows.shape[1])
    if not forced:
        layers = np.flatnonzero((made.placement.phy2log != current.phy2log).any(axis=1))
    action: Literal["move", "move layers", "wait"]
    every = layers.size == np.count_nonzero(windows.any(axis=(0, 2)))
    total_bytes = made.moves * service.expert_bytes
    what = (
        f"{made.moves} experts in {layers.size} of {windows.shape[1]} layers "
        f"({total_bytes / 1e9:.3g} GB in {_in_short(moving)} s)"
    )
    action = "move" if every or forced else "move layers"
    if forced:
        reason = f"{forced}, so its GPUs must receive {what}"
    elif not made.moves:
        action = "wait"
        reason = (
            f"no expert would gain {margin:g} times the cost of its move in the {seconds:g} s "
            "until the next decision"
        )
    else:
        reason = f"{what} {_in_words(verdict, gain, gained, lost, seconds, even)}"
        if not verdict.advised:
            action = "wait"
            reason += "" if gain < 0.0 else "; it may gain nothing"
        elif gained < margin * lost or gained <= 0.0:
            action = "wait"
            reason += f"; the gain is not {margin:g} times the cost"
    split_gain = None
    if dispatch == "best":
        evenly = float(_peaks(left, windows[some], "even").sum())
        split_gain = max(0.0, 1.0 - float(peaks.sum()) / evenly) if evenly > 0.0 else 0.0
        enough = ", and that is enough" if action == "wait" and split_gain > 0.0 else ""
        reason = (
            f"splitting each window best, which moves nothing, lowers the peaks by "
            f"{100.0 * split_gain:.1f} % from an even split{enough}; beyond that, {reason}"
        )
    return Decision(
        action,
        () if action == "wait" else tuple(layers.tolist()),
        made,
        verdict,
        gain,
        gained,
        lost,
        even,
        made.moves,
        total_bytes,
        moving,
        dispatch,
        split_gain,
        reason,
    )


def _price(
    peak: float,
    current: Placement,
    made: Placement,
    service: Service,
    seconds: float,
    margin: float,
) -> float:
    """What a layer's peak is to fall by for each move, to be worth a margin times its cost, where
    the sum of the peaks of all layers is `peak`. What a layer costs is spread over its moves, as
    many as a plan makes that counts no costs.
    """
    received = made.moves_by_layer(current)
    layers, moves = int(np.count_nonzero(received)), int(received.sum())
    worth = service.gained_seconds(1.0, seconds, layers) / peak if peak > 0.0 else 0.0
    cost = service.move_seconds(current.cluster)
    if moves:
        cost += service.layer_seconds * layers / moves
    cost *= margin
    if cost == 0.0:
        return 0.0
    # Where nothing is gained, no fall is enough.
    return cost / worth if worth > 0.0 else peak + 1.0


def _peaks(
    placement: Placement, windows: NDArray[np.float64], dispatch: str
) -> NDArray[np.float64]:
    """[T] sum over layers of the load of the busiest GPU."""
    peaks: NDArray[np.float64] = placement.peaks(windows, dispatch).sum(axis=1)
    return peaks


def _share(
    current: Placement,
    some: Placement,
    whole: Placement,
    windows: NDArray[np.float64],
    dispatch: str,
) -> float:
    """How much of what one placement gains on windows that are known another has, from 0 to 1."""
    now, part, all_of_it = (
        float(_peaks(each, windows, dispatch).sum()) for each in (current, some, whole)
    )
    return min(1.0, max(0.0, (now - part) / (now - all_of_it))) if all_of_it < now else 0.0


def _in_short(seconds: float) -> str:
    """Two figures, and all those of whole seconds."""
    return f"{seconds:.2g}" if abs(seconds) < 99.5 else f"{seconds:,.0f}"


def _in_words(
    verdict: Verdict,
    gain: float,
    gained: float,
    lost: float,
    seconds: float,
    break_even: float | None = None,
) -> str:
    """What moving would do to the peaks, and the time that it gains and costs."""
    rises = gain < 0.0
    costs = (
        f" and costs {_in_short(lost)} s" if lost > 0.0 else ", and the service never stops for it"
    )
    pays = f" (made up for after {_in_short(break_even)} s)" if break_even else ""
    seen = "on windows held out" if verdict.windows else "if the load stays as it is"
    return (
        f"would {'raise' if rises else 'lower'} the peaks by {100.0 * abs(gain):.1f} % "
        f"{seen}, which {'loses' if rises else 'gains'} {_in_short(abs(gained))} s "
        f"in {seconds:g} s{costs}{pays}"
    )
