"""Whether to move at all: what a plan is expected to gain on loads to come, and what moving costs.

Moves are priced by what they cost the service in the time until the next decision, so a plan moves
only the layers for which it pays. How much of its gain lasts is tried on the windows themselves:
plans made from the earlier ones are scored on the later ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eplb.balance import Interval, ratio_interval
from eplb.checks import real_number
from eplb.cluster import Cluster
from eplb.loads import check_weights, check_windows
from eplb.moving.service import Service
from eplb.placement import Placement
from eplb.planning.passes import Effort
from eplb.planning.plan import Plan, plan
from eplb.planning.relocate import check_current

__all__ = ["Decision", "decide"]

MARGIN = 2.0
"""Minimum ratio of gain to cost. It is hysteresis: a fluctuating load moves nothing."""

_TRIES = 4
"""Plans made from the earlier windows."""
_FEWEST_WINDOWS = 4
"""Windows below which nothing is tried."""


@dataclass(frozen=True)
class Decision:
    """What to do now, and why.

    Attributes:
        action: "move", "move layers" where only some gain enough, or "wait".
        layers: those that move, none to wait.
        plan: the placement to go to; when waiting, the one that was weighed.
        gain: share by which the peaks are expected to fall on loads to come, mean over windows.
        gain_interval: where that is with 95 % confidence; None of too few windows.
        tried: whether the gain was tried on windows that a plan had not seen.
        gained_seconds: time that the service is expected to gain until the next decision.
        lost_seconds: time that it loses by moving.
        moves: experts that GPUs must receive.
        total_bytes: bytes of them.
        moving_seconds: time that the transfers take.
        reason: all that in a sentence.
    """

    action: Literal["move", "move layers", "wait"]
    layers: tuple[int, ...]
    plan: Plan
    gain: float
    gain_interval: Interval | None
    tried: bool
    gained_seconds: float
    lost_seconds: float
    moves: int
    total_bytes: int
    moving_seconds: float
    reason: str

    @property
    def placement(self) -> Placement | None:
        """The placement to go to, None to stay."""
        return None if self.action == "wait" else self.plan.placement


def decide(
    loads: Any,
    cluster: Cluster,
    current: Placement,
    service: Service,
    seconds: float,
    *,
    num_groups: int = 1,
    weights: Any = None,
    max_moves: int | None = None,
    margin: float = MARGIN,
    effort: Effort = "fast",
    threads: int | None = None,
) -> Decision:
    """Move, move some layers, or wait.

    Args:
        loads: [T, L, E] the windows measured last, in the order in which they happened, or one.
        cluster: the GPUs and their slots; where they are not those of `current`, moving is a must.
        current: the placement that runs.
        service: what moving costs and lighter GPUs give.
        seconds: time until the next decision.
        num_groups: groups that the model routes by.
        weights: [T] what windows count.
        max_moves: maximum number of moves.
        margin: minimum ratio of gain to cost.
        effort: work of a plan.
        threads: most threads to use.

    Raises:
        EplbError: as for `eplb.plan`.
        OptionError: `seconds` is not above 0, or `margin` is below 1.
    """
    seconds = real_number(seconds, "seconds", "seconds")
    margin = real_number(margin, "margin", "times the cost", least=1.0, above=False)
    windows = check_windows(loads)
    check_weights(weights, len(windows))
    current = check_current(current, *windows.shape[1:])
    forced = cluster != current.cluster

    def planned(some: NDArray[np.float64], counts: Any) -> Plan:
        # What another cluster needs moves at any price, the rest where it pays.
        return plan(
            some,
            cluster,
            num_groups=num_groups,
            weights=counts,
            current=current,
            max_moves=max_moves,
            move_cost=_price(_counting(some, counts)[0], current, service, seconds, margin),
            effort=effort,
            threads=threads,
        )

    made = planned(windows, weights)
    outlook = Outlook(0.0, None, tried=False)
    if made.moves and not forced:
        outlook = _outlook(*_counting(windows, weights), current, made.placement, planned)
    moving = service.moving_seconds(current, made.placement)
    gained = service.gained_seconds(outlook.gain, seconds)
    lost = service.lost_seconds(moving)
    layers = np.arange(windows.shape[1])
    if not forced:
        layers = np.flatnonzero((made.placement.phy2log != current.phy2log).any(axis=1))
    why_not = None
    if not forced:
        why_not = _why_not(made.moves, outlook, gained, lost, margin, seconds, service)
    action: Literal["move", "move layers", "wait"]
    every = layers.size == np.count_nonzero(windows.any(axis=(0, 2)))
    total_bytes = made.moves * service.expert_bytes
    what = (
        f"{made.moves} experts in {layers.size} of {windows.shape[1]} layers "
        f"({total_bytes / 1e9:.3g} GB in {moving:.2g} s)"
    )
    if why_not is not None:
        action, reason = "wait", why_not.format(what=what)
    elif forced:
        action, reason = "move", f"the cluster has changed, so its GPUs must receive {what}"
    else:
        action = "move" if every else "move layers"
        reason = f"{what} {_in_words(outlook, gained, lost, seconds)}"
    return Decision(
        action,
        tuple(layers.tolist()) if why_not is None else (),
        made,
        outlook.gain,
        outlook.interval,
        outlook.tried,
        gained,
        lost,
        made.moves,
        total_bytes,
        moving,
        reason,
    )


@dataclass(frozen=True)
class Outlook:
    """Share by which peaks are expected to fall, where that is, and whether it was tried."""

    gain: float
    interval: Interval | None
    tried: bool


def _counting(
    windows: NDArray[np.float64], weights: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """The windows that have any load and count for something, and what they count."""
    counts = None if weights is None else np.asarray(weights)
    some = windows.any(axis=(1, 2)) & (True if counts is None else counts > 0.0)
    return windows[some], None if counts is None else counts[some]


def _price(
    windows: NDArray[np.float64],
    current: Placement,
    service: Service,
    seconds: float,
    margin: float,
) -> float:
    """What a layer's peak is to fall by for each move, to be worth a margin times its cost."""
    peak = float(_peaks(current, windows).mean()) if len(windows) else 0.0
    worth = service.gained_seconds(1.0, seconds) / peak if peak > 0.0 else 0.0
    cost = margin * service.move_seconds(current.cluster)
    if cost == 0.0:
        return 0.0
    # Where nothing is gained, no fall is enough.
    return cost / worth if worth > 0.0 else peak + 1.0


def _outlook(
    windows: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    current: Placement,
    made: Placement,
    planned: Callable[[NDArray[np.float64], Any], Plan],
) -> Outlook:
    """What a plan gains on windows that it has not seen, by plans made from the earlier windows."""
    num_windows = windows.shape[0]
    if num_windows < _FEWEST_WINDOWS:
        now, then = _peaks(current, windows), _peaks(made, windows)
        return Outlook(float((now - then).sum() / now.sum()), None, tried=False)
    first = num_windows // 2
    length = -(-(num_windows - first) // _TRIES)
    now = _peaks(current, windows[first:])
    then = np.empty(now.shape)
    for begin in range(first, num_windows, length):
        counts = None if weights is None else weights[:begin]
        tried = planned(windows[:begin], counts).placement
        some = windows[begin : begin + length]
        then[begin - first : begin - first + length] = _peaks(tried, some)
    gain = float((now - then).sum() / now.sum()) if now.any() else 0.0
    return Outlook(gain, ratio_interval(now - then, now, length), tried=True)


def _peaks(placement: Placement, windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T] sum over layers of the load of the busiest GPU."""
    peaks: NDArray[np.float64] = placement.gpu_load(windows).max(axis=2).sum(axis=1)
    return peaks


def _why_not(
    moves: int,
    outlook: Outlook,
    gained: float,
    lost: float,
    margin: float,
    seconds: float,
    service: Service,
) -> str | None:
    """The reason to wait, with a place for what would move, or None."""
    if not moves:
        return (
            f"no expert would gain {margin:g} times the cost of its move in the {seconds:g} s "
            "until the next decision"
        )
    words = _in_words(outlook, gained, lost, seconds)
    if outlook.gain < 0.0:
        return "{what} " + words
    if gained < margin * lost or gained <= 0.0:
        return "{what} " + f"{words}; the gain is not {margin:g} times the cost"
    if outlook.interval is not None:
        least = service.gained_seconds(outlook.interval.low, seconds)
        if least <= lost:
            worst = f"lose {-least:.2g} s" if least < 0.0 else f"gain only {least:.2g} s"
            return "{what} " + f"{words}; it may {worst}"
    return None


def _in_words(outlook: Outlook, gained: float, lost: float, seconds: float) -> str:
    """What moving would do to the peaks, and the time that it gains and costs."""
    rises = outlook.gain < 0.0
    percent = -100.0 if rises else 100.0
    span = ""
    if outlook.interval is not None:
        low, high = sorted((percent * outlook.interval.low, percent * outlook.interval.high))
        span = f" ({low:.1f} to {high:.1f} %)"
    seen = "on windows not planned for" if outlook.tried else "if the load stays as it is"
    return (
        f"would {'raise' if rises else 'lower'} the peaks by {percent * outlook.gain:.1f} %{span} "
        f"{seen}, which {'loses' if rises else 'gains'} {abs(gained):.2g} s in {seconds:g} s "
        f"and costs {lost:.2g} s"
    )
