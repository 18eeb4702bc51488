"""Splits: which part of its expert's load each slot takes, by a rule or the best there is."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np

from eplb.balance import mean_and_peak
from eplb.checks import Immutable, counted, number_of_threads, whole_number
from eplb.cluster import Cluster
from eplb.dispatching.rules import RULES, TABLES, check_rule, split_of_table
from eplb.errors import LoadsError, OptionError, PlacementError
from eplb.loads import as_array, check_values
from eplb.solver.arrays import F64, I64, Gpus

_WINDOWS_AT_ONCE = 64
"""Windows that are levelled together: more would only take memory."""
_LAYERS_AT_ONCE = 1, 8
"""Fewest and most layers that a thread takes at a time."""
_ROUNDING = 1e-6
"""By how much the parts of an expert may miss 1 in a split that is given."""


class Placed(Protocol):
    """What a split needs to know of a placement."""

    def __hash__(self) -> int:
        """Alike for placements that are alike."""

    @property
    def phy2log(self) -> I64:
        """[L, P] expert in each slot, -1 where a slot holds none."""

    @property
    def log2phy(self) -> I64:
        """[L, E, X] slots of each expert in rising order, padded with -1."""

    @property
    def logcnt(self) -> I64:
        """[L, E] slots of each expert."""

    @property
    def num_experts(self) -> int:
        """E."""

    @property
    def cluster(self) -> Cluster:
        """The GPUs, and the nodes that they are on."""


@dataclass(frozen=True, eq=False)
class Dispatch(Immutable):
    """A split of each expert's tokens over its slots, and what it makes of the loads it was for.

    Attributes:
        placement: the placement whose slots share the tokens.
        rule: the rule that made the split.
        split: [L, P] the part of its expert's tokens that each slot takes; over the slots of an
            expert it sums to 1.
        peak: [L] load of the busiest GPU, over its speed where GPUs differ, the mean over windows.
        bound: [L] proven: no split of this placement, the same in all these windows, has a lower
            mean peak.
    """

    placement: Placed
    rule: str
    split: F64
    peak: F64
    bound: F64
    _windows: F64 = field(repr=False)
    _sources: F64 = field(repr=False)
    _threads: int = field(repr=False)

    def gpu_load(self, loads: Any) -> F64:
        """Load of each GPU [..., L, G] that the split makes of loads [..., L, E].

        Raises:
            LoadsError: loads of another shape, or values that are no numbers of tokens.
        """
        return _shared(self.placement, _loads_for(self.placement, loads), self.split)

    def table(
        self,
        num_sources: int | None = None,
        *,
        keep_local: bool = False,
        effort: Literal["fast", "default"] = "default",
    ) -> I64:
        """The slot that each source rank sends an expert's tokens to, for engines that dispatch by
        a table: whole entries, as balanced on the loads of this dispatch as a seeded search finds,
        and as near as that leaves room for. No layer is less balanced than by SGLang's own table.

        From each source come as many tokens as the dispatch was told, the same from each if it was
        not. `split_of_table` and `near_share` in `eplb.dispatching.rules` say what a table makes of
        a placement.

        Args:
            num_sources: R, ranks that tokens come from, in the order of GPUs; None for one a GPU.
            keep_local: whether every token that SGLang's own rule keeps on its GPU or its node is
                to stay there. Otherwise a few leave, where that balances GPUs.
            effort: of the search; "fast" takes a third of the time, for servers that wait for it.

        Returns:
            [L, R, E] slots.

        Raises:
            OptionError: sources that neither divide the GPUs nor are divided by them, or that do
                not divide over the nodes; an effort that is none; GPUs of different speed.
        """
        if self.placement.cluster.speed is not None:
            raise OptionError(
                "the GPUs differ in speed, and tables are for GPUs that are as fast: give the split"
            )
        from eplb.solver.table import _STEPS, _table_layers
        from eplb.solver.threads import run_kernel

        phy2log, cluster = np.array(self.placement.phy2log), self.placement.cluster
        num_gpus, num_nodes = cluster.num_gpus, cluster.num_nodes
        sources = num_gpus if num_sources is None else whole_number(num_sources, "num_sources")
        divides = num_gpus % sources == 0 or sources % num_gpus == 0
        if not divides or sources % num_nodes:
            raise OptionError(
                f"{sources} sources do not divide over {num_gpus} GPUs on {num_nodes} nodes: "
                f"{num_gpus} would"
            )
        if effort not in _STEPS:
            raise OptionError(f"effort is {effort!r}: give {' or '.join(_STEPS)}")
        steps, cooling = _STEPS[effort]
        table = np.empty((phy2log.shape[0], sources, self.placement.num_experts), np.int64)
        shares = self._sources
        if sources < num_gpus:
            shares = shares.reshape(sources, -1).sum(axis=1)
        elif sources > num_gpus:
            shares = np.repeat(shares / (sources // num_gpus), sources // num_gpus)
        run_kernel(
            _table_layers, np.arange(phy2log.shape[0]), _LAYERS_AT_ONCE, self._threads,
            self._windows, phy2log, num_gpus, num_nodes, shares, keep_local, steps, cooling, table,
        )  # fmt: skip
        if sources == num_gpus:
            theirs = TABLES["sglang"](self.placement.log2phy, cluster)
            worse = self._peaks_of(theirs) < self._peaks_of(table)
            table[worse] = theirs[worse]
        return table

    def _peaks_of(self, table: I64) -> F64:
        """[L] highest GPU load over that of a mean GPU, the mean over windows, by a table."""
        split = split_of_table(table, self.split.shape[1], self._sources)
        load = _shared(self.placement, self._windows, split)
        mean = load.mean(axis=2)
        peaks: F64 = (load.max(axis=2) / np.where(mean > 0.0, mean, 1.0)).mean(axis=0)
        return peaks


def dispatch(
    placement: Placed,
    loads: Any,
    *,
    rule: str = "best",
    sources: Any = None,
    threads: int | None = None,
) -> Dispatch:
    """Split each expert's tokens over its copies, by an engine's rule or as well as can be.

    The best split of one window makes the loads of GPUs as even as the placement allows, so it is
    the optimum of the linear programme that minimises the peak; it is found by water-filling and
    augmenting paths, which prove it. Where GPUs differ in speed, loads count by the time that they
    take. For several windows there is one split for all of them, of the
    least mean peak that a smoothed descent finds, with a bound from its dual.

    Example:
        >>> import eplb
        >>> cluster = eplb.Cluster(num_gpus=2, slots_per_gpu=2)
        >>> placement = eplb.Placement([[0, 1, 0, 2]], 3, cluster)
        >>> made = eplb.dispatch(placement, [[60.0, 40.0, 20.0]])
        >>> made.split
        array([[0.33333333, 1.        , 0.66666667, 1.        ]])
        >>> made.peak
        array([60.])

    Args:
        placement: an `eplb.Placement`. Copies of an expert on one GPU count as one there and take
            the same.
        loads: tokens routed to each logical expert, of one window [L, E] or several [T, L, E]. An
            expert without any is split evenly.
        rule: "best"; or how an engine dispatches: "even" (vLLM), "sglang" (static), "ascend".
        sources: [G] the part of all tokens that comes from each GPU, for rules by which that
            matters; None for the same from each that is alive.
        threads: most threads to use, None for one a processor.

    Raises:
        LoadsError: loads of another shape, or values that are no numbers of tokens.
        OptionError: a rule that is not known, or sources that are no parts of a whole.
        PlacementError: what is no placement.

    Source: S. Fujishige, "Lexicographically optimal base of a polymatroid with respect to a weight
    vector", 1980; Y. Nesterov, "Smooth minimization of non-smooth functions", 2005.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise OptionError(f"rule is {rule!r}: give one of {', '.join(RULES)}")
    if not hasattr(placement, "log2phy"):
        raise PlacementError(f"placement is {placement!r}: give an eplb.Placement")
    shares = _parts_of(sources, placement.cluster)
    array = _loads_for(placement, loads)
    if array.ndim not in {2, 3}:
        raise LoadsError(f"loads have shape {array.shape}: give [L, E] or [T, L, E]")
    threads = number_of_threads(threads)
    # A copy: a table is made of them later.
    windows = array.reshape(-1, *array.shape[-2:]).copy()
    _, split, bounds = _level(placement, windows, threads, only_peak=rule != "best")
    bound = bounds.mean(axis=0)
    if rule != "best":
        split = _split_of(placement, rule, shares)
    elif windows.shape[0] > 1:
        split, proven = _share(placement, windows, threads)
        bound = np.maximum(bound, proven)
    else:
        split = split[0]
    load = _shared(placement, windows, split)
    peak = mean_and_peak(load, placement.cluster.speeds)[1].mean(axis=0)
    made = Dispatch(placement, rule, split, peak, np.minimum(bound, peak), windows, shares, threads)
    for values in (made.split, made.peak, made.bound):
        values.flags.writeable = False
    return made


def _split_of(placement: Placed, rule: str, shares: F64) -> F64:
    """[L, P] split by a rule of an engine, [G] shares of all tokens coming from each GPU.

    Raises:
        OptionError: a rule that is not known.
    """
    phy2log = placement.phy2log
    if rule == "even":
        even: F64 = 1.0 / np.take_along_axis(placement.logcnt, phy2log, axis=1)
        if not placement.cluster.full:
            even[phy2log < 0] = 0.0
        return even
    table = TABLES[check_rule(rule)](placement.log2phy, placement.cluster)
    return split_of_table(table, phy2log.shape[1], shares)


@lru_cache(maxsize=4)
def _split_by(placement: Placed, rule: str) -> F64:
    """[L, P] split by an engine's rule, as many tokens coming from each GPU. It is kept, as windows
    are served one by one and a table takes a hundred times as long as serving one.
    """
    split = _split_of(placement, rule, _parts_of(None, placement.cluster))
    split.flags.writeable = False
    return split


def slot_load(placement: Placed, loads: Any, rule: Any) -> F64:
    """Load of each slot [..., L, P] under a rule or a split; "best" splits each window anew.

    Raises:
        LoadsError: loads of another shape, or values that are no numbers of tokens.
        OptionError: neither a rule that is known nor a split of this placement.
    """
    array = _loads_for(placement, loads)
    layers = np.arange(placement.phy2log.shape[0])[:, None]
    if not isinstance(rule, str):
        split = _given(placement, rule)
    elif rule != "best":
        split = _split_by(placement, rule)
    else:
        windows = array.reshape(-1, *array.shape[-2:])
        split = _level(placement, windows, number_of_threads(None))[1]
        split = split.reshape(*array.shape[:-1], -1)
    load: F64 = array[..., layers, placement.phy2log] * split
    return load


def gpu_load(placement: Placed, loads: Any, rule: Any) -> F64:
    """Load of each GPU [..., L, G], as `slot_load`."""
    if not isinstance(rule, str) or rule != "best":
        return of_gpus(slot_load(placement, loads, rule), placement.cluster.num_gpus)
    array = _loads_for(placement, loads)
    windows = array.reshape(-1, *array.shape[-2:])
    threads = number_of_threads(None)
    parts = [
        _level(placement, windows[begin : begin + _WINDOWS_AT_ONCE], threads, with_split=False)[0]
        for begin in range(0, windows.shape[0], _WINDOWS_AT_ONCE)
    ]
    return np.concatenate(parts).reshape(*array.shape[:-1], placement.cluster.num_gpus)


def of_gpus(of_slot: F64, num_gpus: int) -> F64:
    """Loads of GPUs [..., G] from those of their slots [..., P], added slot after slot, as the
    planner adds, so that its peaks are these to the last bit.
    """
    by_gpu = of_slot.reshape(*of_slot.shape[:-1], num_gpus, -1)
    load: F64 = by_gpu[..., 0].copy()
    for slot in range(1, by_gpu.shape[-1]):
        load += by_gpu[..., slot]
    return load


def _loads_for(placement: Placed, loads: Any) -> F64:
    """Loads [..., L, E] of the placement's shape, checked."""
    array = as_array(loads)
    num_layers = placement.phy2log.shape[0]
    if array.shape[-2:] != (num_layers, placement.num_experts):
        raise LoadsError(
            f"loads have shape {array.shape}: the placement has "
            f"{counted(num_layers, 'layer')} of {placement.num_experts} experts"
        )
    check_values(array)
    return array


def _shared(placement: Placed, loads: F64, split: F64) -> F64:
    """[..., L, G] loads of GPUs by a split [L, P]."""
    phy2log = placement.phy2log
    layers = np.arange(phy2log.shape[0])[:, None]
    return of_gpus(loads[..., layers, phy2log] * split, placement.cluster.num_gpus)


def _level(
    placement: Placed,
    windows: F64,
    threads: int,
    *,
    only_peak: bool = False,
    with_split: bool = True,
) -> tuple[F64, F64, F64]:
    """The most even loads of GPUs [T, L, G], the splits [T, L, P] and the bounds [T, L] of the
    peak, load over speed.
    """
    from eplb.solver.level import _level_layers
    from eplb.solver.threads import run_kernel

    # A copy: kernels would be compiled once more for an array that is read-only.
    phy2log, (gpus, speed) = np.array(placement.phy2log), _gpus_of(placement.cluster)
    num_windows, num_layers, _ = windows.shape
    load = np.empty((num_windows, num_layers, placement.cluster.num_gpus))
    split = np.empty((num_windows if with_split else 0, *phy2log.shape))
    bounds = np.empty((num_windows, num_layers))
    run_kernel(
        _level_layers, np.arange(num_layers), _LAYERS_AT_ONCE, threads, windows, phy2log, gpus,
        only_peak, load, split, bounds,
    )  # fmt: skip
    if placement.cluster.speed is not None:
        load *= gpus.pace
        bounds /= speed
    return load, split, bounds


def _gpus_of(cluster: Cluster) -> tuple[Gpus, float]:
    """The GPUs, for kernels that read whole rows: their slots, and their pace, 1 on average and 1
    for dead ones, which take part in nothing; and the speed that is a pace of 1.
    """
    alive = list(cluster.alive)
    pace, speed = np.ones(cluster.num_gpus), 1.0
    if cluster.speed is not None:
        pace[alive] = np.array(cluster.speed)[alive]
        speed = float(np.mean(pace[alive]))
        pace[alive] /= speed
    return Gpus(np.arange(cluster.num_gpus + 1) * cluster.slots_per_gpu, pace), speed


def _share(placement: Placed, windows: F64, threads: int) -> tuple[F64, F64]:
    """One split [L, P] for all windows, and the bounds [L] of its mean peak."""
    from eplb.solver.share import _share_layers
    from eplb.solver.threads import run_kernel

    phy2log, (gpus, speed) = np.array(placement.phy2log), _gpus_of(placement.cluster)
    split = np.empty(phy2log.shape)
    peaks, bounds = np.empty((2, phy2log.shape[0]))
    run_kernel(
        _share_layers, np.arange(phy2log.shape[0]), _LAYERS_AT_ONCE, threads, windows, phy2log,
        gpus, split, peaks, bounds,
    )  # fmt: skip
    return split, bounds / speed


def _given(placement: Placed, split: Any) -> F64:
    """A split that a user gives, checked."""
    phy2log = placement.phy2log
    if isinstance(split, Dispatch):
        split = split.split
    try:
        array = as_array(split)
        check_values(array)
    except LoadsError as error:
        raise OptionError(f"dispatch is no split [L, P] of parts: {error}") from None
    if array.shape != phy2log.shape:
        raise OptionError(
            f"dispatch is a split of shape {array.shape}: the placement has "
            f"{counted(phy2log.shape[0], 'layer')} of {phy2log.shape[1]} slots"
        )
    if not placement.cluster.full:
        array = np.where(phy2log < 0, 0.0, array)
    layers = np.arange(phy2log.shape[0])[:, None]
    whole = np.zeros((phy2log.shape[0], placement.num_experts))
    np.add.at(whole, (layers, phy2log), array)
    wrong = np.abs(whole - 1.0) > _ROUNDING
    if wrong.any():
        layer, expert = np.argwhere(wrong)[0]
        raise OptionError(
            f"dispatch is a split by which the slots of expert {expert} in layer {layer} take "
            f"{whole[layer, expert]:.6g} of its tokens: their parts are to sum to 1"
        )
    return array


def _parts_of(sources: Any, cluster: Cluster) -> F64:
    """[G] shares of the tokens that come from each GPU, in sum 1; none from dead ones."""
    num_gpus, dead = cluster.num_gpus, list(cluster.dead)
    if sources is None:
        even = np.full(num_gpus, 1.0 / (num_gpus - len(dead)))
        even[dead] = 0.0
        return even
    try:
        array = as_array(sources)
        check_values(array)
    except LoadsError as error:
        raise OptionError(f"sources are no numbers of tokens: {error}") from None
    if array.shape != (num_gpus,) or not array.sum() > 0.0:
        raise OptionError(
            f"sources have shape {array.shape} and sum to {array.sum():g}: give a number above 0 "
            f"in all for {num_gpus} GPUs"
        )
    if array[dead].any():
        gpu = next(gpu for gpu in dead if array[gpu])
        raise OptionError(f"sources[{gpu}] is {array[gpu]:g}, and GPU {gpu} is dead: give 0")
    shares: F64 = array / array.sum()
    return shares
