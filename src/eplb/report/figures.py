"""Every figure of a report, as data: the page and the text say these and nothing else.

What could not be computed is a `Missing` that says why. Figures hold no time of a clock, so the
same input gives the same report.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from eplb.balance import Interval
from eplb.moving.verdict import Verdict
from eplb.replaying.sizing import Sizing

Who = Literal["contiguous", "current", "engine", "plan", "oracle"]


@dataclass(frozen=True)
class Missing:
    """A part that could not be computed.

    Attributes:
        why: a sentence without its full stop, fit to follow a colon.
    """

    why: str


@dataclass(frozen=True)
class Setting:
    """What is reported on; names are as files give them, to be shown as text only.

    Attributes:
        trace: what the trace is called: the path that was given.
        current: path of the placement that runs; None where the layout that engines start with
            stands for it.
        dispatch: the rule of dispatch that balancedness and times are under.
        every: windows from one plan to the next in the replay.
        merged: how windows were added up, in a sentence; None where none were.
        ordered: whether windows follow each other; else each was held out in turn.
    """

    trace: str
    model: str | None
    current: str | None
    num_windows: int
    first_window: str
    last_window: str
    num_layers: int
    dense_layers: tuple[int, ...]
    num_experts: int
    num_gpus: int
    num_nodes: int
    num_slots: int
    slots_per_gpu: int
    num_groups: int
    dispatch: str
    every: int
    merged: str | None = None
    ordered: bool = True
    uneven: str = ""


@dataclass(frozen=True)
class Choice:
    """The plan that is recommended.

    Attributes:
        forecast: the rule that says what to plan for; None of one window.
        command: makes it, as one types it; None where nothing is to change.
        compare: prints the figures on unseen loads.
        tried: balancedness of each rule on the windows that all were tried on; empty of one window.
        gap: peak / proven bound - 1, mean over layers: what any plan could gain at most on the
            loads planned for.
    """

    forecast: str | None
    command: str | None
    compare: str | None
    tried: tuple[tuple[str, float], ...]
    gap: float


@dataclass(frozen=True)
class Contender:
    """One way to place experts: balancedness, mean over windows and layers.

    Attributes:
        who: "current", the placement given; "engine", what engines plan by themselves: DeepSeek's
            EPLB for the sum of the windows; "plan", what is recommended; "contiguous", the layout
            that engines start with; "oracle", a plan that is shown the windows that come.
        seen: on the windows that the recommended plan is made from; None for the oracle.
        unseen: in a replay, each window scored before a plan has seen it, or held out in turn;
            None of one window.
        worst: of those windows the least.
        gain: of `unseen` above what runs now.
        engine_gain: the same above what engines plan by themselves.
        moved: share of slots that GPUs receive at a plan after the first.
    """

    who: Who
    seen: float | None
    seen_interval: Interval | None
    unseen: float | None
    unseen_interval: Interval | None
    worst: float | None
    gain: float | None
    gain_interval: Interval | None
    engine_gain: float | None
    engine_gain_interval: Interval | None
    moved: float | None


@dataclass(frozen=True)
class Heat:
    """Load of each GPU over the mean of its layer, in one window.

    Attributes:
        window: its name, of those not seen the most typical: its balancedness with the plan is
            nearest to the mean; seen: whether the plan was made from it.
        layers: [M] numbers of the layers that have load.
        before, after: [M][G] with what runs now, and with the plan.
    """

    window: str
    seen: bool
    layers: tuple[int, ...]
    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Hot:
    """The hottest experts of a layer, all windows alike.

    Attributes:
        experts: their numbers, the hottest first; shares: of the layer's load.
        copies: that the plan gives each.
        times_mean: load of the hottest over that of the mean expert.
    """

    layer: int
    experts: tuple[int, ...]
    shares: tuple[float, ...]
    copies: tuple[int, ...]
    times_mean: float


@dataclass(frozen=True)
class Splits:
    """Balancedness on unseen windows by the rule that splits tokens over the copies of an expert.

    Attributes:
        plans: made for each figure.
        engine: the engine's rule that is shown.
        even: placed for an even split, and split so; by_engine, best: the same placements.
        engine_placed, best_placed: placed for these rules, and split by them.
    """

    plans: int
    engine: str
    even: float
    by_engine: float
    best: float
    engine_placed: float
    best_placed: float


@dataclass(frozen=True)
class Spare(Sizing):
    """Balancedness against spare slots.

    Attributes:
        chosen: index of the point that is the cluster asked for.
    """

    chosen: int


@dataclass(frozen=True)
class Windows:
    """Balancedness on a window that was not planned for, against the windows planned for.

    Attributes:
        points: how many windows, and balancedness.
        plans: made for each point.
        in_order: whether plans are made from the windows before; else each is held out in turn.
    """

    points: tuple[tuple[int, float], ...]
    plans: int
    in_order: bool


@dataclass(frozen=True)
class Moved:
    """A placement so many moves away from the one that runs."""

    moves: int
    share: float
    seen: float
    unseen: float | None


@dataclass(frozen=True)
class MoveCurve:
    """Balancedness against moves.

    Attributes:
        points: from none to as many as gain; `unseen` of plans from the earlier half of the
            windows, on the later half.
        enough: index of the first point that has nine tenths of the most that any gains, on
            unseen windows where there are any; 0 where none gains.
        command: makes a plan with so many moves, as one types it.
    """

    points: tuple[Moved, ...]
    enough: int
    command: str


@dataclass(frozen=True)
class NodePoint:
    """A placement, by its name: balancedness, and other nodes that a token is sent to."""

    name: str
    balancedness: float
    other_nodes: float


@dataclass(frozen=True)
class NodeCurve:
    """Balancedness against the other nodes of a token, on the windows that plans are made from.

    Attributes:
        others: what runs, what the engine plans, and plans with groups on nodes, where there are
            any, and with experts anywhere.
        priced: plans at rising prices of a node; none where there can be none.
    """

    others: tuple[NodePoint, ...]
    priced: tuple[NodePoint, ...]


@dataclass(frozen=True)
class Moment:
    """A decision: whether to move now, by `eplb.decide`.

    Attributes:
        window: it was taken before.
        reason: in a sentence, with its figures.
    """

    window: int
    action: str
    gain: float
    moves: int
    total_bytes: int
    moving_seconds: float
    gained_seconds: float
    lost_seconds: float
    reason: str


@dataclass(frozen=True)
class Through:
    """What happens as time goes on.

    Attributes:
        windows: [B] first window of each point; per_point: windows that a point is the mean of.
        now, replanned: [B] balancedness; None without load.
        kept: [B] of a plan made from the earlier half and never changed; None before.
        kept_mean, replanned_mean, now_mean: over the later half.
        half: the window at which the later half begins.
        drift: windows apart, and the correlation of experts' shares.
        moments: decisions, or why there are none.
        decided: balancedness of what the decisions made run, and of planning once at the first.
        engine: whose own time for a rebalance they count; None for transfers alone.
    """

    windows: tuple[int, ...]
    per_point: int
    now: tuple[float | None, ...]
    replanned: tuple[float | None, ...]
    kept: tuple[float | None, ...]
    kept_mean: float
    replanned_mean: float
    now_mean: float
    half: int
    drift: tuple[tuple[int, float], ...]
    moments: tuple[Moment, ...] | Missing
    decided: tuple[float, float] | None
    engine: str | None = None


@dataclass(frozen=True)
class Estimated:
    """Estimated time, before and after; see `eplb.cost`.

    Attributes:
        seen: whether the plan was made from the windows that it is estimated on.
        windows: estimated on.
        layers: [M] numbers of the layers; before_us, after_us: [M] microseconds of each.
        step_before, step_after, step_engine: seconds of a step with what runs, with a plan and
            with what engines plan by themselves; tokens_before, tokens_after, tokens_engine: a
            second; tokens_even: with even loads.
        even: microseconds of a layer whose tokens are spread evenly.
        words: what is assumed, a sentence each.
    """

    gpu: str
    model: str
    tokens_per_gpu: float
    seen: bool
    windows: int
    layers: tuple[int, ...]
    before_us: tuple[float, ...]
    after_us: tuple[float, ...]
    even_us: float
    step_before: float
    step_after: float
    step_engine: float
    tokens_before: float
    tokens_after: float
    tokens_engine: float
    tokens_even: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Figures:
    """A report.

    Attributes:
        seen_windows: that the recommended plan is made from; unseen_windows: served in the replay.
        standings: the way that runs now first.
        unsure: why intervals are missing, where they are.
        verdict: what to do, by the last windows.
        nodes: None where it was not asked for.
    """

    setting: Setting
    choice: Choice
    verdict: Verdict
    seen_windows: int
    unseen_windows: int
    standings: tuple[Contender, ...]
    unsure: str | None
    heat: Heat
    hot: tuple[Hot, ...]
    splits: Splits | Missing
    spare: Spare
    windows: Windows | Missing
    moves: MoveCurve | Missing
    through: Through | Missing
    estimated: Estimated | Missing
    nodes: NodeCurve | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values; a part that could not be computed says `why`."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def standing(self, who: Who) -> Contender | None:
        """One of the standings, None where it was not asked for."""
        return next((each for each in self.standings if each.who == who), None)

    @property
    def now(self) -> Contender:
        """What runs now."""
        return self.standings[0]

    @property
    def engine(self) -> Contender:
        """What engines plan by themselves."""
        return next(each for each in self.standings if each.who == "engine")

    @property
    def plan(self) -> Contender:
        """What is recommended."""
        return next(each for each in self.standings if each.who == "plan")


def _plain(value: Any) -> Any:
    """What JSON can hold: arrays as lists, and no number where there is none."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
