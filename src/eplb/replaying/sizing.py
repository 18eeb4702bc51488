"""How many spare slots to buy: balancedness on loads not seen, against the memory that they take.

A spare slot holds one more copy of one expert in every layer. Its memory would hold tokens of the
KV cache instead, and so more requests at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.balance import Interval, Served
from eplb.checks import whole_number
from eplb.cluster import Cluster, check_shape
from eplb.cost.models import MODELS, Model, expert_bytes_of, find_model
from eplb.dispatching.rules import check_named
from eplb.errors import ClusterError, LoadsError, OptionError
from eplb.loads import LoadTrace
from eplb.placement import Placement
from eplb.planning.backtest import HELD_OUT, Schedule
from eplb.planning.forecast import HISTORY, Forecast, in_no_order, named_forecast
from eplb.planning.plan import plan
from eplb.planning.problem import Effort, check_effort
from eplb.planning.solve import planned_rule
from eplb.replaying.policies import list_of

KNEE = 0.01
"""Balancedness that one more spare slot on each GPU is to gain."""
SPARE = tuple(range(5))
"""Spare slots that are tried, where nothing else is said."""

_PLANS = 8
"""Plans of each number of slots, at most, and windows that each is scored on: a long trace costs as
much as one of some tens of windows."""


@dataclass(frozen=True)
class Slots:
    """Plans with so many slots on each GPU beyond those that the experts fill.

    Attributes:
        spare: slots on each GPU; num_slots: in all.
        seen: balancedness on the windows that are planned for at the end of the trace.
        unseen: on windows that the plans had not seen; None of one window. interval: where that is
            with 95 % confidence, None of few windows.
        gain: of `unseen` over the point before, or of `seen` where there is one window; None of the
            first. gain_interval: where that is.
        bytes: memory of the spare slots on each GPU; None where an expert's is not known.
        kv_tokens: tokens of the KV cache that this memory would hold; None where a token's bytes
            are not known.
    """

    spare: int
    num_slots: int
    seen: float
    unseen: float | None
    interval: Interval | None
    gain: float | None
    gain_interval: Interval | None
    bytes: int | None
    kv_tokens: int | None

    @property
    def height(self) -> float:
        """Balancedness on windows not seen, or on the only one."""
        return self.seen if self.unseen is None else self.unseen


@dataclass(frozen=True)
class Sizing:
    """What spare slots give, and what they cost.

    Attributes:
        points: from few slots to many.
        knee: index after which no further slot gains as much as a point (0.01) of balancedness.
        layers: that have load; experts, gpus, nodes: E, G and N.
        windows: not seen, that each point is scored on, 0 of one window; plans: made for each.
        dispatch: name of the rule that plans are made for and figures are under.
        ordered: whether windows follow each other; else each was held out in turn.
        bytes_each: memory of one spare slot on each GPU, in all layers of the model.
        kv_bytes: of one token in the KV cache.
    """

    points: tuple[Slots, ...]
    knee: int
    layers: int
    experts: int
    gpus: int
    nodes: int
    windows: int
    plans: int
    dispatch: str
    ordered: bool
    bytes_each: int | None
    kv_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)


def size(
    trace: LoadTrace,
    cluster: Cluster,
    spare: int | Sequence[int] | None = None,
    *,
    num_groups: int = 1,
    dispatch: str = "even",
    forecast: str | Forecast = "recent",
    model: str | Model | None = None,
    expert_bytes: int | None = None,
    kv_bytes: int | None = None,
    effort: Effort = "default",
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Sizing:
    """Try numbers of spare slots on a trace, each window scored before a plan has seen it.

    At most 8 plans are made for each number, evenly apart, and each is scored on at most 8 of the
    windows that follow it. Windows in no order are held out in turn, and planned for from the
    others.

    Example:
        >>> import eplb
        >>> trace = eplb.synthetic.trace(
        ...     "gpt-oss-20b", num_windows=6, tokens_per_window=2048, num_layers=2
        ... )
        >>> found = eplb.size(trace, eplb.Cluster(num_gpus=8, slots_per_gpu=4), [0, 1])
        >>> [each.num_slots for each in found.points], found.points[1].kv_tokens
        ([32, 40], 12909)

    Args:
        trace: the windows, in the order in which they happened.
        cluster: the GPUs and nodes. Only how its slots differ from GPU to GPU counts, not how many
            there are.
        spare: slots on each GPU beyond the fewest with which every expert has one, or several such
            numbers; None for 0 to 4, as far as a GPU has no more slots than there are experts.
        num_groups: groups that the model routes by.
        dispatch: the rule by which tokens are split over copies, that plans are made for and scored
            under.
        forecast: what to plan for of the windows so far: a name in `eplb.forecast.FORECASTS`, or a
            rule.
        model: whose figures memory is told by, a name in `eplb.cost.MODELS` or figures; None for
            the trace's own.
        expert_bytes: of an expert's weights in one layer; by default the model's.
        kv_bytes: of a token in the KV cache of one GPU, all layers; by default the model's in BF16,
            each GPU keeping the whole cache of its own requests.
        effort: of each plan.
        threads: most threads of a plan, None for one a processor.
        progress: called after each number with how many are done, and how many there are.

    Raises:
        LoadsError: no layer has any load.
        ClusterError: GPUs or groups that fit nothing.
        OptionError: numbers of slots that are below 0 or given twice, an unknown rule, forecast,
            effort or model, a model of another number of experts, or bytes that are none.
    """
    check_named(dispatch)
    check_effort(effort)
    trace = trace.merged()
    whole_number(num_groups, "num_groups", error=ClusterError)
    rule = named_forecast(forecast) if isinstance(forecast, str) else forecast
    rule = rule if trace.ordered else in_no_order(rule)
    least = fewest_slots(trace.num_experts, cluster)
    clusters = [
        (number, _of_size(cluster, least + number))
        for number in _numbers(spare, trace.num_experts - least)
    ]
    for _, spared in clusters:
        check_shape(trace.num_experts, spared, num_groups)
    layers = int(np.count_nonzero(~trace.dense))
    if not layers:
        raise LoadsError("no layer has any load: there is nothing to size")
    each, token = _memory(trace, layers, model, expert_bytes, kv_bytes)

    def made(shown: NDArray[np.float64], spared: Cluster) -> Placement:
        expected = rule(shown)
        return plan(
            expected.loads,
            spared,
            num_groups=num_groups,
            weights=expected.weights,
            dispatch=planned_rule(dispatch),
            effort=effort,
            threads=threads,
        ).placement

    points: list[Slots] = []
    before: Served | None = None
    plans = 0
    for number, spared in clusters:
        parts = []
        for shown, after in _schedule(trace):
            some = trace.loads[after][evenly(after.stop - after.start, _PLANS)]
            parts.append(made(trace.loads[shown], spared).serve(some, dispatch))
        plans = len(parts)
        seen = made(trace.loads, spared).serve(trace.last(HISTORY), dispatch)
        unseen = Served.joined(parts) if parts else None
        served, run = unseen or seen, -(-len((unseen or seen).peak) // max(1, plans))
        gain, gain_interval = (None, None) if before is None else served.gain_over(before, run)
        memory = None if each is None else each * number
        points.append(
            Slots(
                spare=number,
                num_slots=spared.num_held,
                seen=seen.average(),
                unseen=None if unseen is None else unseen.average(),
                interval=None if unseen is None else unseen.interval(run),
                gain=gain,
                gain_interval=gain_interval,
                bytes=memory,
                kv_tokens=None if memory is None or token is None else memory // token,
            )
        )
        before = served
        if progress is not None:
            progress(len(points), len(clusters))
    return Sizing(
        tuple(points),
        knee_of([point.spare for point in points], [point.height for point in points]),
        layers,
        trace.num_experts,
        cluster.num_gpus,
        cluster.num_nodes,
        0 if not plans or before is None else len(before.peak),
        plans,
        dispatch,
        trace.ordered,
        each,
        token,
    )


def fewest_slots(num_experts: int, cluster: Cluster) -> int:
    """The fewest slots of a GPU, of the largest if they differ, with which every expert has one."""
    return next(size for size in count(1) if _of_size(cluster, size).num_held >= num_experts)


def knee_of(numbers: Sequence[int], heights: Sequence[float]) -> int:
    """The index after which no further point rises by `KNEE` for each slot more."""
    knee = 0
    for index in range(1, len(numbers)):
        rise = heights[index] - heights[knee]
        if rise >= KNEE * (numbers[index] - numbers[knee]):
            knee = index
    return knee


def _numbers(given: Any, room: int) -> list[int]:
    """Numbers of spare slots, rising."""
    if given is None:
        return [number for number in SPARE if number <= room] or [0]
    numbers = [
        whole_number(number, "spare", least=0)
        for number in ([given] if np.ndim(given) == 0 else list_of(given, int, "spare"))
    ]
    if not numbers or len(set(numbers)) < len(numbers):
        raise OptionError(f"spare (--spare) is {given!r}: give each number of slots once")
    return sorted(numbers)


def _of_size(cluster: Cluster, size: int) -> Cluster:
    """The same GPUs with other slots: so many on the largest, and as many more or fewer on each."""
    if cluster.slots is None:
        return replace(cluster, slots_per_gpu=size)
    more = size - cluster.slots_per_gpu
    return replace(cluster, slots=tuple(max(1, each + more) for each in cluster.slots))


def _schedule(trace: LoadTrace) -> list[tuple[slice | NDArray[np.intp], slice]]:
    """The windows that plans are made from and those that they serve. Of few windows each is served
    after the first; of many those after the history that a plan is made from.
    """
    num_windows = trace.num_windows
    if num_windows == 1:
        return []
    if not trace.ordered:
        return list(Schedule(-(-num_windows // HELD_OUT)).plans(trace))
    first = 1 if num_windows <= _PLANS + 1 else min(HISTORY, num_windows // 2)
    every = -(-(num_windows - first) // _PLANS)
    return list(Schedule(every, first=first).plans(trace))


def evenly(total: int, most: int) -> NDArray[np.int64]:
    """At most `most` numbers below `total`, evenly apart, the last one among them."""
    if total <= most:
        return np.arange(total)
    return total - 1 - (np.arange(most)[::-1] * total) // most


def _memory(
    trace: LoadTrace,
    layers: int,
    model: str | Model | None,
    expert_bytes: int | None,
    kv_bytes: int | None,
) -> tuple[int | None, int | None]:
    """Bytes of a slot on each GPU in all layers, and of a token in the KV cache."""
    known = find_model(model) if isinstance(model, str) else model
    if known is None:
        known = MODELS.get(trace.model or "")
        if known is not None and known.num_experts != trace.num_experts:
            known = None
    elif known.num_experts != trace.num_experts:
        raise OptionError(
            f"the loads have {trace.num_experts} experts in a layer, {known.name} has "
            f"{known.num_experts}: give another model, or only expert_bytes and kv_bytes "
            "(--expert-bytes, --kv-bytes)"
        )
    size = expert_bytes_of(None, expert_bytes)
    token = None if kv_bytes is None else whole_number(kv_bytes, "kv_bytes")
    if known is not None:
        size, token = size or known.expert_bytes, token or known.kv_bytes
        layers = known.num_moe_layers
    return None if size is None else size * layers, token
