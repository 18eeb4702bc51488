"""What each rebalance did, and why: one line in the engine's log, on the first rank.

The log and the metrics name decisions and reasons alike, by `DECISIONS`.

Balancedness is the mean over windows, as a plan counts them, and over layers, with tokens split
evenly over the copies of their expert. `before` and `planned` are on the windows that were planned
for, `since` on those that came after the last plan, which it was not made for. So `since` beside
what the last plan expected says what planning is worth on this service.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.engines.log import failure
from eplb.engines.settings import Settings

DECISIONS = {
    "moved": ("first plan", "ranks changed", "gain", "budget", "asked", "taken back"),
    "waited": ("no tokens", "no gain", "budget", "paused", "asked", "on trial"),
    "kept": ("ranks disagree",),
    "own": ("ranks disagree", "planning failed"),
}
"""What is decided, and the reasons for it, by their names."""


class Reason(NamedTuple):
    """Why a rebalance does what it does.

    Attributes:
        name: one of `DECISIONS`.
        words: more of it, for the log.
    """

    name: str
    words: str

    def __str__(self) -> str:
        return f"{self.name}, {self.words}"


@dataclass
class Seen:
    """What an engine showed at one call, as its plan takes it.

    Attributes:
        windows: [T, L, E] planned for, None where none has any load.
        new: how many of them, the last ones, came after the last plan.
        num_experts: E.
        cluster: the ranks to place experts on, None where even that is not known.
        current: the placement that runs, None where that is not known.
        reason: why the plan is what it is; None where that follows from the loads.
    """

    windows: NDArray[np.float64] | None = None
    new: int = 0
    num_experts: int = 0
    cluster: Any = None
    current: Any = None
    reason: Reason | None = None


class Outcome(NamedTuple):
    """What all ranks were answered at one call.

    Attributes:
        decision: "planned", "kept" where ranks disagreed and what runs stays, or "own" where the
            engine's own planner answered.
        phy2log: [L, P] the map.
        seconds: of planning and of agreeing.
        agreed: whether ranks are set alike, and have the same map.
    """

    decision: Literal["planned", "kept", "own"]
    phy2log: NDArray[np.int64]
    seconds: float
    agreed: bool


@dataclass(frozen=True)
class Rebalance:
    """One rebalance.

    Attributes:
        number: of the model's, from 1.
        decision: "moved", "waited", "kept" or "own".
        reason: why.
        before: balancedness of what ran, on the windows planned for; None where that is not known.
        planned: balancedness of what runs from now on, on the same windows; None without load.
        windows: how many these are.
        since: balancedness of what ran, on the windows since the last plan; None before any.
        expected: what the last plan expected of them; None before any.
        moves: experts that GPUs receive.
        slots: P of all layers.
        bytes: that GPUs receive; None where the size of an expert is not known.
        seconds: of planning and of agreeing.
        by_layer: [L] balancedness planned, NaN where a layer has no load; None without load.
        peak: the largest GPU load over the mean, of any layer and window planned; None without.
        agreed: whether ranks are set alike, and have the same map.
    """

    number: int
    decision: Literal["moved", "waited", "kept", "own"]
    reason: Reason
    before: float | None
    planned: float | None
    windows: int
    since: float | None
    expected: float | None
    moves: int
    slots: int
    bytes: int | None
    seconds: float
    by_layer: NDArray[np.float64] | None
    peak: float | None
    agreed: bool

    def __str__(self) -> str:
        some = f"{self.moves:,} of {self.slots:,} experts move" if self.moves else "nothing moves"
        size = f" ({_size(self.bytes)})" if self.moves and self.bytes is not None else ""
        parts = [f"rebalance {self.number}: {some}{size}: {self.reason}"]
        if self.planned is not None:
            plural = "" if self.windows == 1 else "s"
            known = "" if self.before is None else f"{self.before:.3f} before, "
            parts.append(
                f"balancedness {known}{self.planned:.3f} planned, on {self.windows} "
                f"window{plural} planned for"
            )
        if self.since is not None:
            expected = "" if self.expected is None else f", {self.expected:.3f} expected"
            parts.append(f"{self.since:.3f} since the last plan{expected}")
        return "; ".join([*parts, f"{self.seconds:.2f} s"])


class Rebalances:
    """Tells of the rebalances of all models of an engine, whose own planner lines call `own`."""

    def __init__(self, logger: logging.Logger, settings: Settings, own: str) -> None:
        self._logger = logger
        self._settings = settings
        self._role = "" if settings.role is None else f"{settings.role}: "
        self._own = own
        self._weights: dict[tuple[int, int] | None, Callable[[], Any]] = {}
        self._expert_bytes: dict[tuple[int, int], int | None] = {}
        self._last: dict[str, tuple[int, float | None]] = {}
        self.observers: list[Callable[[Rebalance], object]] = []

    def weigh(self, weights: Callable[[], Any], model: tuple[int, int] | None = None) -> None:
        """Note where the weights of a layer are, tensors [slots of this rank, ...], that say what
        an expert weighs, by the model's L and E where the engine may run several.
        """
        self._weights[model] = weights

    def _bytes_of(self, model: tuple[int, int]) -> int | None:
        """Bytes of an expert of a layer."""
        if model not in self._expert_bytes:
            weights = self._weights.get(model) or self._weights.get(None)
            size = None
            try:
                if weights is not None:
                    size = sum(each[0].numel() * each.element_size() for each in weights())
            except Exception as error:
                failure(self._logger, error, "the log does not say how many bytes move")
            self._expert_bytes[model] = size
        return self._expert_bytes[model]

    def tell(self, kind: str, seen: Seen, outcome: Outcome) -> None:
        """Say what one rebalance did, of the model that the kind of call tells.

        Before any window has load nothing is said: engines call so to find out what memory a
        rebalance takes.
        """
        number, expected = self._last.get(kind, (0, None))
        planned = outcome.decision == "planned" and seen.reason is None
        if number == 0 and seen.windows is None and planned:
            return
        rebalance = self._of(number + 1, expected, seen, outcome)
        expected = rebalance.planned if outcome.decision == "planned" else None
        self._last[kind] = (number + 1, expected)
        self._logger.info("eplb: %s%s", self._role, rebalance)
        for observer in self.observers:
            observer(rebalance)

    def _of(self, number: int, expected: float | None, seen: Seen, outcome: Outcome) -> Rebalance:
        from eplb.engines.live import balancedness_of, windows_to_plan_for
        from eplb.placement import Placement

        moves, size, before, planned, since, by_layer, peak = 0, None, None, None, None, None, None
        number_planned = 0
        if seen.cluster is not None:
            made, current = Placement(outcome.phy2log, seen.num_experts, seen.cluster), seen.current
            if current is not None:
                moves = made.moves_from(current)
                expert_bytes = self._bytes_of((made.num_layers, made.num_experts))
                size = None if expert_bytes is None else moves * expert_bytes
            if seen.windows is not None:
                windows, weights = windows_to_plan_for(seen.windows, seen.new)
                number_planned = len(windows)
                of_windows = made.ratios(windows)
                known = ~np.isnan(of_windows)
                total = np.where(known, of_windows, 0.0).sum(axis=0)
                by_layer = np.full(made.num_layers, np.nan)
                np.divide(total, known.sum(axis=0), out=by_layer, where=known.any(axis=0))
                planned = balancedness_of(made, windows, weights)
                peak = float(1.0 / of_windows[known].min())
                if current is not None:
                    before = balancedness_of(current, windows, weights)
                    if number > 1 and seen.new:
                        since = current.balancedness(seen.windows[-seen.new :])
        decision: Literal["moved", "waited", "kept", "own"] = "moved" if moves else "waited"
        if outcome.decision != "planned":
            decision = outcome.decision
        return Rebalance(
            number,
            decision,
            self._reason(seen, outcome, moves),
            before,
            planned,
            number_planned,
            since,
            None if since is None else expected,
            moves,
            outcome.phy2log.size,
            size,
            outcome.seconds,
            by_layer,
            peak,
            outcome.agreed,
        )

    def _reason(self, seen: Seen, outcome: Outcome, moves: int) -> Reason:
        from eplb.engines.live import is_start

        if outcome.decision != "planned":
            name = "planning failed" if outcome.agreed else "ranks disagree"
            instead = "what runs stays" if outcome.decision == "kept" else f"{self._own} answers"
            return Reason(name, instead)
        if seen.reason is not None:
            return seen.reason
        budget = self._settings.max_moves
        allowed = budget.of(outcome.phy2log.size)
        if not moves:
            if seen.windows is None or not seen.new:
                return Reason("no tokens", "none came since the last rebalance")
            if allowed == 0:
                return Reason("budget", f"EPLB_MAX_MOVES allows none ({budget})")
            return Reason("no gain", "no plan found is better by what its moves are to gain")
        if is_start(seen.current):
            return Reason("first plan", "from a layout that knows no loads")
        if seen.current.cluster.capacity != seen.cluster.capacity:
            return Reason("ranks changed", "as some have come or gone")
        if moves == allowed:
            return Reason("budget", f"as many as EPLB_MAX_MOVES allows ({budget})")
        return Reason("gain", "each lowers the peak of its layer by enough")


def _size(number: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number / 1e3:.1f} kB"
