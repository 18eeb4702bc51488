"""Tokens that cross nodes: how many other nodes one is sent to, and plans that weigh that.

A plan at a price of nodes starts from the one without it. Its GPUs are named anew, which costs no
balance; then replicas are traded between nodes under limits of a node's load that loosen rung by
rung (`solver.node_trades`). In each layer the rung is taken for which the peak and the price of the
other nodes together are least.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from eplb.checks import Immutable, counted, real_number, whole_number
from eplb.errors import ClusterError, LoadsError, OptionError
from eplb.loads import LoadTrace, as_array, check_values, check_windows
from eplb.placement import Placement, check_placement
from eplb.planning.passes import peaks_of, refine, solve
from eplb.planning.problem import Effort, Layers, Problem
from eplb.planning.relocate import Relocation
from eplb.solver.arrays import F64, I64
from eplb.solver.threads import run_kernel

if TYPE_CHECKING:  # numba is loaded when it is needed
    from eplb.solver.node_trades import Routes

_RUNGS = (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1)
"""What the load of a node may be above the mean, as a share of it, rung by rung: down from the plan
with groups on nodes to what packing a node leaves anyway, and up to where the busiest node is all
that counts (docs/experiments.md, nodes)."""
_LOOKS = {"fast": 1500, "default": 5000, "thorough": 25_000}
"""Looks at a change for each rung, in a layer of `_USUAL` slots; more or fewer as it has slots."""
_USUAL = 288
_MOST_CHANCES = 20_000_000
"""Most looks, times the pairs of nodes, for a rung: many nodes have fewer looks."""
_HEAT = 1e-4
"""Other nodes of a token that a change may add at first (docs/experiments.md, nodes)."""
_NEARLY_ALL = 0.999
"""Highest chance that a token chooses a group: loads may say more, of groups with many picks."""

_NO_PRICE = "leave out the price (--node-price), and other nodes are counted all the same"

_STEPS = {"fast": 30, "default": 100, "thorough": 500}
"""Steps of a walk on to fewer nodes from a placement that runs, at most."""

_AT_ONCE = (1, 1)
"""Layers that a thread takes at a time, least and most."""


@dataclass(frozen=True, eq=False)
class Traffic(Immutable):
    """How tokens are routed, for what they cost on their way between nodes.

    Example:
        >>> import eplb
        >>> deepseek_v3 = eplb.Traffic(top_k=8, topk_groups=4, price=0.05)

    Attributes:
        top_k: experts that a token is routed to in a layer.
        topk_groups: groups that these are chosen from, where the model routes by groups
            (`num_groups`); None where it chooses from all experts.
        price: what it may cost at most that a token is sent to one node fewer: a higher peak, as a
            share of the mean GPU load. 0 for what costs nothing; None only to count.
        sources: [N or R, L, E] tokens routed to each expert from each node, or from each of so many
            source ranks, equally many on each node and numbered node by node. None for as many from
            each node, or for what a `LoadTrace` that is planned for knows (`LoadTrace.sources`).
        copies: which copies of an expert its tokens go to. "near": to those on their own node as
            far as the part goes that an even split gives these, as tables of `eplb.dispatch` and
            SGLang's own do; "any": to all alike, as vLLM's hash does.

    Raises:
        OptionError: numbers below 1, a `top_k` that the groups do not divide, a price below 0, or
            other copies.
        LoadsError: sources that are not [N, L, E], or values that are no numbers of tokens.
    """

    top_k: int
    topk_groups: int | None = None
    price: float | None = None
    sources: Any = None
    copies: str = "near"

    def __post_init__(self) -> None:
        top_k = whole_number(self.top_k, "top_k of traffic")
        object.__setattr__(self, "top_k", top_k)
        if self.topk_groups is not None:
            groups = whole_number(self.topk_groups, "topk_groups", most=top_k)
            if top_k % groups:
                raise OptionError(
                    f"topk_groups is {groups}, which does not divide top_k, {top_k}: a token is "
                    "taken to choose as many experts in each group"
                )
            object.__setattr__(self, "topk_groups", groups)
        if self.price is not None:
            price = real_number(self.price, "the price of a node", above=False)
            object.__setattr__(self, "price", price)
        if self.copies not in ("near", "any"):
            raise OptionError(f"copies is {self.copies!r}: give 'near' or 'any'")
        if self.sources is not None:
            sources = np.array(as_array(self.sources, "sources"), np.float64)
            if sources.ndim != 3:
                raise LoadsError(
                    f"sources have shape {sources.shape}: give [nodes or ranks, layers, experts]"
                )
            check_values(sources)
            sources.flags.writeable = False
            object.__setattr__(self, "sources", sources)


def other_nodes(
    placement: Placement, loads: ArrayLike, traffic: Traffic, *, num_groups: int = 1
) -> F64:
    """Distinct other nodes that a token is sent to in each layer, as expected.

    Example:
        >>> import eplb
        >>> cluster = eplb.Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=1)
        >>> apart = eplb.Placement([[0, 1, 2, 3]], 4, cluster)
        >>> loads = [[10.0, 10.0, 10.0, 10.0]]
        >>> eplb.other_nodes(apart, loads, eplb.Traffic(top_k=2)).round(3).tolist()
        [0.75]
        >>> by_groups = eplb.Traffic(top_k=2, topk_groups=1)
        >>> eplb.other_nodes(apart, loads, by_groups, num_groups=2).tolist()
        [0.5]

    Args:
        placement: the experts of every slot.
        loads: [L, E] or [T, L, E] tokens routed to each logical expert; of several windows the mean
            counts.
        traffic: how tokens are routed, and from where.
        num_groups: groups that the model routes by.

    Returns:
        [L], 0 in layers with no load.

    Raises:
        EplbError: loads, sources, groups or experts that do not fit each other.
    """
    check_placement(placement)
    mean = check_windows(loads).mean(axis=0)
    if mean.shape != placement.logcnt.shape:
        raise LoadsError(
            f"loads have {counted(mean.shape[0], 'layer')} of {mean.shape[1]} experts, the "
            f"placement has {placement.num_layers} of {placement.num_experts}"
        )
    num_nodes = placement.cluster.num_nodes
    check_traffic(traffic, mean.shape[0], mean.shape[1], num_groups, num_nodes)
    return others_of(mean, placement.phy2log, traffic, num_groups, num_nodes)


def mean_other_nodes(
    placement: Placement, loads: ArrayLike, traffic: Traffic, *, num_groups: int = 1
) -> float:
    """The mean of `other_nodes` over the layers with load, 0 where none has any; arguments and
    errors are its own.
    """
    others = other_nodes(placement, loads, traffic, num_groups=num_groups)
    loaded = check_windows(loads).any(axis=(0, 2))
    return float(others[loaded].mean()) if loaded.any() else 0.0


def check_traffic(
    traffic: object, num_layers: int, num_experts: int, num_groups: int, num_nodes: int
) -> Traffic:
    """A `Traffic` that fits a model and a number of nodes.

    Raises:
        OptionError: anything else.
        LoadsError: sources of another model, or that the nodes do not divide.
    """
    if not isinstance(traffic, Traffic):
        raise OptionError(f"traffic is {traffic!r}: give an eplb.Traffic, or None")
    num_groups = whole_number(num_groups, "num_groups", error=ClusterError)
    if traffic.topk_groups is None and traffic.top_k > num_experts:
        raise OptionError(f"top_k is {traffic.top_k}: a layer has {num_experts} experts")
    if traffic.topk_groups is not None:
        if num_experts % num_groups:
            raise ClusterError(f"{num_experts} experts do not divide into {num_groups} groups")
        if traffic.topk_groups > num_groups:
            raise OptionError(
                f"topk_groups is {traffic.topk_groups}, and the model routes by "
                f"{num_groups} group{'' if num_groups == 1 else 's'}: give how many it has, as "
                "num_groups or --groups"
            )
        if traffic.top_k // traffic.topk_groups > num_experts // num_groups:
            raise OptionError(
                f"top_k is {traffic.top_k}: {traffic.topk_groups} groups have "
                f"{traffic.topk_groups * num_experts // num_groups} experts"
            )
    sources = traffic.sources
    if sources is not None and sources.shape[1:] != (num_layers, num_experts):
        raise LoadsError(
            f"sources have {counted(sources.shape[1], 'layer')} of {sources.shape[2]} experts, the "
            f"loads have {num_layers} of {num_experts}"
        )
    if sources is not None and sources.shape[0] % num_nodes:
        raise LoadsError(
            f"sources are of {sources.shape[0]} ranks, which do not divide over {num_nodes} nodes"
        )
    return traffic


def with_sources(traffic: Traffic, trace: LoadTrace, num_nodes: int) -> Traffic:
    """The same with the sources that a trace has, where it has none itself, and the nodes divide
    the ranks that counted.
    """
    known = trace.sources
    if traffic.sources is not None or known is None or len(known) % num_nodes:
        return traffic
    return replace(traffic, sources=known)


def others_of(loads: F64, phy2log: I64, traffic: Traffic, num_groups: int, num_nodes: int) -> F64:
    """[L] distinct other nodes of a token, of loads [L, E] and slots [L, P], checked before."""
    others = np.zeros(loads.shape[0])
    loaded = np.flatnonzero(loads.any(axis=1))
    if num_nodes == 1 or not loaded.size:
        return others
    routes = _routes(loads, loaded, traffic, num_groups, num_nodes)
    # A copy: kernels would be compiled once more for an array that is read-only.
    others[loaded] = _count(routes, phy2log[loaded].copy())
    return others


def _count(routes: Routes, phy2log: I64) -> F64:
    """[J] distinct other nodes of a token in each of some layers, of their slots [J, P]."""
    from eplb.solver.node_trades import _count_nodes

    others = np.zeros(len(phy2log))
    _count_nodes(routes, phy2log, others)
    return others


def _routes(loads: F64, layers: I64, traffic: Traffic, num_groups: int, num_nodes: int) -> Routes:
    """Where the tokens of some layers come from, and how they are routed."""
    from eplb.solver.node_trades import Routes, _fit_odds

    loads = loads[layers]
    loads = loads / loads.sum(axis=1, keepdims=True)
    num_layers, num_experts = loads.shape
    groups = traffic.topk_groups or 1
    num_groups = num_groups if traffic.topk_groups else 1
    origin = np.full((num_layers, num_nodes, num_experts), 1.0 / num_nodes)
    if traffic.sources is not None:
        counts = traffic.sources[:, layers].reshape(num_nodes, -1, num_layers, num_experts)
        origin = np.ascontiguousarray(counts.sum(axis=1).transpose(1, 0, 2))
        # Experts that no token is known of come from where the others do.
        all_of = origin.sum(axis=2, keepdims=True)
        missing = np.broadcast_to(all_of, origin.shape)
        empty = origin.sum(axis=1, keepdims=True) == 0.0
        missing = np.where(missing.sum(axis=1, keepdims=True) > 0.0, missing, 1.0)
        origin = np.where(empty, missing, origin)
        origin = origin / origin.sum(axis=1, keepdims=True)
    # Of alike nodes, one stands for all, unless copies take their own node's tokens first.
    alike = traffic.sources is None and traffic.copies == "any"
    of_kind = loads[:, None] * (origin[:, :1] * num_nodes if alike else origin)
    tokens = of_kind.sum(axis=2)
    by_group = of_kind.reshape(*of_kind.shape[:2], num_groups, -1)
    in_group = by_group.sum(axis=3)
    inside = by_group / np.where(in_group > 0.0, in_group, 1.0)[..., None]
    num_kinds = of_kind.shape[1]
    odds, sets = np.ones((num_layers, num_kinds, num_groups)), np.ones((num_layers, num_kinds))
    if groups < num_groups:
        share = in_group / np.where(tokens > 0.0, tokens, 1.0)[..., None]
        share[tokens == 0.0] = 1.0 / num_groups
        chances = _capped(share * groups).reshape(-1, num_groups)
        rows, sums = np.empty(chances.shape), np.empty(len(chances))
        _fit_odds(chances, groups, rows, sums)
        odds, sets = rows.reshape(odds.shape), sums.reshape(sets.shape)
    if alike:
        counted = np.full((num_layers, 1, num_nodes), 1.0 - 1.0 / num_nodes)
    else:
        counted = tokens[:, :, None] * (1.0 - np.eye(num_nodes))
    return Routes(
        loads,
        np.ascontiguousarray(inside.reshape(num_layers, num_kinds, num_experts)),
        np.ascontiguousarray(origin),
        odds,
        sets,
        np.ascontiguousarray(counted),
        groups,
        traffic.top_k // groups,
        traffic.copies == "near",
    )


def _capped(chances: F64) -> F64:
    """Chances [..., G] of the same sum, none above nearly 1: what is above goes to the others as
    they have.
    """
    most = np.zeros(chances.shape, np.bool_)
    total = chances.sum(axis=-1, keepdims=True)
    for _ in range(chances.shape[-1]):
        rest = np.where(most, 0.0, chances)
        left = total - _NEARLY_ALL * most.sum(axis=-1, keepdims=True)
        of_rest = rest.sum(axis=-1, keepdims=True)
        even = left / np.maximum((~most).sum(axis=-1, keepdims=True), 1)
        scale = left / np.where(of_rest > 0.0, of_rest, 1.0)
        scaled = np.where(of_rest > 0.0, rest * scale, even)
        capped: F64 = np.where(most, _NEARLY_ALL, scaled)
        if not (capped > _NEARLY_ALL).any():
            break
        most |= capped > _NEARLY_ALL
    return np.minimum(capped, _NEARLY_ALL)


def check_price(problem: Problem, dispatch: str) -> Problem:
    """A problem that can be planned for at a price of nodes.

    Raises:
        OptionError: a rule other than an even split.
        ClusterError: GPUs that differ or are dead.
    """
    if dispatch != "even":
        raise OptionError(
            f'dispatch is "{dispatch}" with a price of nodes: give "even", or {_NO_PRICE}'
        )
    if problem.pinned is not None:
        raise OptionError(f"a price of nodes does not go with pins: {_NO_PRICE}")
    if not (problem.whole.full and problem.whole.even):
        raise ClusterError(
            f"a price of nodes is for clusters whose GPUs are alike and alive: {_NO_PRICE}"
        )
    return problem


def solve_at_price(problem: Problem, layers: Layers, effort: Effort, traffic: Traffic) -> Layers:
    """Plans at a price of nodes, from those without it, for an even split."""
    from eplb.solver.node_trades import _name_layers, _trade_rungs

    num_nodes, num_groups = problem.whole.num_nodes, problem.num_groups
    num_gpus, num_slots = problem.cluster.num_gpus, problem.cluster.num_slots
    loaded = problem.loaded
    if num_nodes == 1 or not loaded.size:
        return layers
    routes = _routes(problem.loads, loaded, traffic, num_groups, num_nodes)
    of_loaded, rows = problem.of_layers(loaded), np.arange(loaded.size)
    found = [layers.phy2log[loaded]]
    run_kernel(_name_layers, rows, _AT_ONCE, problem.threads, routes, num_gpus, found[0])
    if traffic.price:
        start = found[0]
        if num_groups % num_nodes == 0 and num_groups > 1:
            strict = solve(replace(of_loaded, nodes=num_nodes), effort).phy2log
            start = strict.copy()
            found.append(strict)
        looks = 1 + min(
            _LOOKS[effort] * num_slots // _USUAL, _MOST_CHANCES // routes.counts[0].size
        )
        rungs = np.empty((len(_RUNGS), loaded.size, num_slots), np.int64)
        run_kernel(
            _trade_rungs, rows, _AT_ONCE, problem.threads, routes, num_gpus, 1.0 + np.array(_RUNGS),
            looks, _HEAT, start, rungs,
        )  # fmt: skip
        if problem.windows.shape[0] > 1:
            for rung in rungs:
                refine(replace(of_loaded, nodes=num_nodes), rung, layers.bounds[loaded], effort)
        found.extend(rungs)
    unit = problem.loads[loaded].sum(axis=1) / num_gpus
    best = np.full(loaded.size, np.inf)
    for phy2log in found:
        peaks = peaks_of(of_loaded, rows, phy2log)
        total = peaks / unit + (traffic.price or 0.0) * _count(routes, phy2log)
        better = np.flatnonzero(total < best)
        best[better] = total[better]
        layers.phy2log[loaded[better]] = phy2log[better]
        layers.peaks[loaded[better]] = peaks[better]
    return layers


def walk_at_price(
    relocation: Relocation,
    current: Placement,
    layers: Layers,
    effort: Effort,
    traffic: Traffic,
    budget: int | None,
) -> Relocation:
    """Walks from what runs at a price of nodes: those to lower peaks go on to fewer nodes, and
    what a budget or a price of moves picks from is peak and price of the other nodes together.

    Args:
        relocation: walks to lower peaks.
        current: the placement that runs.
        layers: plans made afresh at this price.
        effort: how far walks go on.
        traffic: with the price.
        budget: most moves in all that will be asked for, None for any.
    """
    from eplb.solver.curve import hulls
    from eplb.solver.match import name_gpus
    from eplb.solver.node_walk import _walk_nodes

    problem, steps = relocation.problem, relocation.steps
    loaded, num_nodes = problem.loaded, problem.whole.num_nodes
    num_layers, num_gpus = len(relocation.start), problem.cluster.num_gpus
    if not traffic.price or num_nodes == 1 or not loaded.size:
        return relocation
    routes = _routes(problem.loads, loaded, traffic, problem.num_groups, num_nodes)
    price = traffic.price * problem.loads.sum(axis=1) / num_gpus
    held = current.held_by(num_gpus)
    most = steps.moves[:, 0] + steps.slots.shape[1]
    if budget is not None:
        most = np.minimum(most, steps.moves[:, 0] + budget - int(steps.moves[:, 0].sum()))
    costs = steps.peaks.copy()
    run_kernel(
        _walk_nodes, np.arange(loaded.size), _AT_ONCE, problem.threads, loaded, routes,
        problem.task, held, price, most, _STEPS[effort], relocation.start, steps, costs,
    )  # fmt: skip
    # Nodes keep their places: what tokens come from one may be known.
    named = layers.phy2log.reshape(num_layers, num_nodes, -1).copy()
    hosts = held.reshape(num_layers, num_nodes, num_gpus // num_nodes, -1)
    named_moves, named_costs = np.full(num_layers, -1), np.zeros(num_layers)
    for layer in loaded:
        for node in range(num_nodes):
            named[layer, node] = name_gpus(named[layer, node], hosts[layer, node], 1)
    slots = named.reshape(num_layers, -1)
    made = Placement(slots, problem.loads.shape[1], replace(problem.whole, num_nodes=1))
    named_moves[loaded] = (made.held_by(num_gpus) & ~held).sum(axis=(1, 2))[loaded]
    named_costs[loaded] = layers.peaks[loaded] + price[loaded] * _count(routes, slots[loaded])
    costed = steps._replace(peaks=costs)
    pieces = hulls(costed, named_moves, named_costs)
    return replace(relocation, steps=costed, pieces=pieces, afresh=slots)
