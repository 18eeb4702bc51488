"""From the placement that runs to a better one: what each layer gains by how many moves.

A walk through each layer starts from what GPUs hold; what it gains by how many moves, together with
the plan made afresh, whose GPUs are named so that they receive least, is a curve of all layers,
from which a budget or a price picks (`solver.curve`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from eplb.checks import counted, real_number, whole_number
from eplb.cluster import Cluster
from eplb.errors import OptionError, PlacementError
from eplb.placement import Placement, empty_slots
from eplb.planning.best_split import levelled_peaks
from eplb.planning.passes import looks, peaks_of, step_memory
from eplb.planning.pinned import must_heed
from eplb.planning.problem import Layers, Problem
from eplb.solver.arrays import F64, I64, B
from eplb.solver.threads import run_kernel

if TYPE_CHECKING:  # numba is loaded when it is needed
    from eplb.solver.curve import Pieces
    from eplb.solver.search import Steps

_AT_ONCE = (1, 4)
"""Layers that a thread takes at a time, least and most."""

_MOVES_OF_DEATHS = 1.5
"""Moves for each slot that died with its GPU: what it takes to be within .03 of even, while a plan
at the usual price would make twice as many where one GPU died (docs/experiments.md)."""

_OF_ALONE = 0.25
"""What part of a peak is of experts without another copy, where moves after a death are shared out:
then a plan for an even split is .001 to .002 better if batches are split best, and hardly worse
(docs/experiments.md, when GPUs die)."""

_MOST_STEPS = 2
"""Steps of a walk that are kept, in slots of a layer."""

_PATIENCE = 0.25
"""Share of its steps for which a walk goes on without a gain."""
_PATIENCE_AT_A_PRICE = 0.1
"""The same without a budget, where a plan is to take few times as long as one from scratch
(docs/experiments.md)."""

_SMALL = 20_000_000
"""Looks up to which layers are walked to the end whatever the budget, so that more is never worse;
a few hundredths of a second at most."""
_SHARE = 1.25
"""Larger ones walk up to so many times their even share of the budget, and more; those that go
`_FAR` of it walk on, twice as far each time."""
_SOME_MOVES = 8
_FAR = 0.95


class BudgetError(OptionError):
    """A budget of moves with which no plan can be made."""


@dataclass(frozen=True, eq=False)
class Relocation:
    """Walks through all layers, and the curve that they make.

    Attributes:
        problem: what was planned.
        before: [L, P] experts in the slots that the cluster has now, -1 where there was none.
        start: [L, P] the placement that the walks start from.
        steps: the walks.
        pieces: the curve.
        afresh: [L, P] the plan made afresh, its GPUs named so that they receive least.
        rule: the rule of dispatch that peaks are under, "even" or "best".
    """

    problem: Problem
    before: I64
    start: I64
    steps: Steps
    pieces: Pieces
    afresh: I64
    rule: str


def choose(relocation: Relocation, budget: int | None, price: F64) -> I64:
    """[L] the steps to make in each layer, or `AFRESH`, for a budget of moves and the price [L] of
    each.
    """
    from eplb.solver.curve import choose as choose_pieces

    return choose_pieces(relocation.pieces, budget, price, relocation.steps)


def eased(relocation: Relocation) -> Relocation:
    """The same with a curve on which peaks are in part what no split takes off a GPU: the load of
    its experts that have no other copy, where that is above the mean.
    """
    from eplb.solver.curve import _alone_layers, hulls

    problem, steps, pieces = relocation.problem, relocation.steps, relocation.pieces
    alone = np.empty(steps.peaks.shape)
    _alone_layers(problem.loads, relocation.start, problem.gpus, steps, alone)
    mean = problem.loads.sum(axis=1, keepdims=True) / problem.cluster.num_gpus
    peaks = (1.0 - _OF_ALONE) * steps.peaks + _OF_ALONE * np.maximum(alone, mean)
    weighed = steps._replace(peaks=peaks)
    pieces = hulls(weighed, pieces.afresh_moves, pieces.afresh_peaks)
    return replace(relocation, steps=weighed, pieces=pieces)


def moves(relocation: Relocation, chosen: I64) -> int:
    """Moves to what `settle` gives, in all layers."""
    from eplb.solver.curve import AFRESH

    walked = relocation.steps.moves[np.arange(chosen.size), np.maximum(chosen, 0)]
    return int(np.where(chosen == AFRESH, relocation.pieces.afresh_moves, walked).sum())


def settle(relocation: Relocation, chosen: I64) -> tuple[I64, F64]:
    """The slots [L, P] and peaks [L] after so many steps of each layer, `AFRESH` in their place for
    the plan made afresh.
    """
    from eplb.solver.curve import AFRESH
    from eplb.solver.match import _keep_slots
    from eplb.solver.search import _follow_layers

    problem = relocation.problem
    phy2log = np.where((chosen == AFRESH)[:, None], relocation.afresh, relocation.start)
    _follow_layers(relocation.steps, chosen, phy2log)
    _keep_slots(phy2log, relocation.before, problem.gpus.first)
    return phy2log, np.ldexp(_peaks(problem, phy2log, relocation.rule), problem.exponent)


def came_empty(problem: Problem, current: Placement) -> B | None:
    """[L, G] the GPUs that hold nothing, where some have come that hold nothing in any layer, and
    experts may go to any of them; else None.
    """
    came: B = np.logical_not(problem.held_by(current).any(axis=2))
    return came if problem.nodes == 1 and came.all(axis=0).any() else None


def check_current(current: object, num_layers: int, num_experts: int) -> Placement:
    """A placement of so many layers and experts.

    Raises:
        PlacementError: anything else.
    """
    if not isinstance(current, Placement):
        raise PlacementError(
            f"current is {type(current).__name__}: give a Placement, or None to plan afresh"
        )
    if (current.num_layers, current.num_experts) != (num_layers, num_experts):
        raise PlacementError(
            f"current has {counted(current.num_layers, 'layer')} of {current.num_experts} experts, "
            f"the loads have {num_layers} of {num_experts}: give the placement of this model"
        )
    return current


def budget_of_deaths(problem: Problem, current: Placement) -> int | None:
    """The moves that a plan may make where nothing is said and GPUs have died: so many times the
    slots that died with them. None where none has died, and where more has changed, which may take
    more: other GPUs or slots, GPUs alive again, groups that are to stay on nodes, or pins.
    """
    whole, had = problem.whole, current.cluster
    lost = had.num_held - whole.num_held
    died = len(whole.dead) - len(had.dead)
    only_deaths = replace(whole, num_nodes=1, dead=()) == replace(had, num_nodes=1, dead=())
    if problem.pinned is not None:
        return None
    if problem.nodes > 1 or died <= 0 or not only_deaths or not set(had.dead) <= set(whole.dead):
        return None
    return int(_MOVES_OF_DEATHS * lost * current.num_layers)


def check_moves(max_moves: int | None, move_cost: float | None) -> tuple[int | None, float | None]:
    """A budget of moves and a price of each, 0 or more where given.

    Raises:
        OptionError: anything else.
    """
    if max_moves is not None:
        max_moves = whole_number(max_moves, "max_moves", least=0)
    if move_cost is not None:
        move_cost = real_number(move_cost, "move_cost", above=False)
    return max_moves, move_cost


def relocate(
    problem: Problem,
    current: Placement,
    layers: Layers,
    *,
    afresh: bool,
    rule: str = "even",
    budget: int | None = None,
    price: F64 | None = None,
    near: float | None = None,
    filled: B | None = None,
) -> Relocation:
    """Walk from a placement through all layers, as far as may be chosen.

    Args:
        problem: what is planned.
        current: the placement that runs, of any cluster.
        layers: plans made afresh, with their peaks and bounds.
        afresh: whether they may be chosen; a layer then needs to go no further than to their peaks.
        rule: the rule of dispatch that peaks are under, "even" or "best".
        budget: most moves in all that will be asked for, None for any.
        price: [L] least that a move is to gain that will be asked for, None for any.
        near: peak over bound, less 1, at which a layer needs no further step, whatever the peaks of
            plans made afresh and however little is gained; None for what is near enough.
        filled: [L, G] GPUs that held nothing and that walks start with full, where the budget
            allows it; None for none.

    Raises:
        OptionError: a budget with which not every expert would have a slot.
    """
    from eplb.solver.curve import choose as choose_pieces
    from eplb.solver.curve import hulls
    from eplb.solver.layers import NEAR_ENOUGH
    from eplb.solver.level_walk import _walk_levelled
    from eplb.solver.match import fewest_received
    from eplb.solver.search import Drive, _search_layers

    patience = _PATIENCE if budget is not None else _PATIENCE_AT_A_PRICE
    drive = Drive(False, False, near or NEAR_ENOUGH, patience if near is None else 0.0)
    nearest = layers.bounds * (1.0 + drive.near)
    enough = np.maximum(nearest, layers.peaks) if afresh and near is None else nearest
    before = _before(current, problem.whole)
    held = problem.held_by(current)
    start = _start(problem, current, before, held)
    if problem.pinned is not None:
        loaded = problem.loads.any(axis=1)
        must_heed(problem, start, held, problem.nodes, np.flatnonzero(loaded))
        must_heed(problem, start, held, 1, np.flatnonzero(~loaded))
    least = _received(problem, start, held)
    if filled is not None:
        full = _filled(problem, start, filled)
        received = _received(problem, full, held)
        if budget is None or int(received.sum()) <= budget:
            start, least = full, received
    spare = None if budget is None else budget - int(least.sum())
    if spare is not None and spare < 0:
        # Groups come home with the fewest moves, but then may lack room.
        proven = "are the least that" if problem.nodes == 1 else "are enough to"
        what = "give every expert a slot on this cluster"
        if problem.pinned is not None:
            proven, what = "are enough to", "keep every pin"
        if problem.nodes > 1:
            what = "put each expert group on one node"
        raise BudgetError(f"max_moves is {budget}: {int(least.sum())} {proven} {what}")
    num_layers, num_slots = start.shape
    steps = step_memory(num_layers, _MOST_STEPS * num_slots)
    steps.moves[:, 0] = least
    steps.peaks[:, 0] = _peaks(problem, start, rule)
    named, named_moves = start, np.full(num_layers, -1)
    further = np.flatnonzero(steps.peaks[:, 0] > enough) if afresh else np.arange(0)
    # Naming takes long: without a budget, GPUs are named where that may be worth its price.
    later = budget is None and price is not None and _may_name(problem)
    if afresh and not later:
        named, named_moves = _named(problem, layers, held, further)
    limit = reach = num_slots if spare is None else min(spare, num_slots)
    going = problem.loaded
    most_looks = steps.slots.shape[1] * looks(problem) * problem.windows.shape[0] * going.size
    if spare is not None and most_looks > _SMALL:
        reach = min(limit, int(_SHARE * spare) // max(going.size, 1) + _SOME_MOVES)
    at_price = np.zeros(num_layers) if price is None else price
    ends = np.arange(num_layers), steps.length
    how: tuple[Any, ...] = drive, np.zeros(num_layers)
    if rule == "best":
        how = (drive.patience > 0.0,)
    while True:
        run_kernel(
            _walk_levelled if rule == "best" else _search_layers, going, _AT_ONCE, problem.threads,
            problem.task, start, held, *how, enough, least + reach, at_price, steps,
        )  # fmt: skip
        # Where a walk comes near enough, no move is spent on the rest.
        lowest = steps.peaks.min(axis=1)
        taken_to = steps.moves[np.arange(num_layers), steps.peaks.argmin(axis=1)]
        worse = np.where(lowest <= nearest, np.maximum(lowest, layers.peaks), layers.peaks)
        if afresh and later:
            cost = (steps.peaks + at_price[:, None] * steps.moves).min(axis=1)
            further = further[layers.peaks[further] < cost[further]]
            fewest = np.array(
                [fewest_received(layers.phy2log[each], held[each]) for each in further], np.int64
            )
            worse[further] = np.where(
                fewest <= taken_to[further], layers.peaks[further], worse[further]
            )
            worth = worse[further] + at_price[further] * fewest <= cost[further]
            named, named_moves = _named(problem, layers, held, further[worth])
        free = (named_moves >= 0) & (named_moves <= taken_to)
        worse[free] = layers.peaks[free]
        pieces = hulls(steps, named_moves, worse)
        if reach >= limit:
            return Relocation(problem, before, start, steps, pieces, named, rule)
        # A layer that goes far into its walk may want to go beyond it.
        chosen = choose_pieces(pieces, budget, at_price, steps)
        taken = steps.moves[np.arange(num_layers), np.maximum(chosen, 0)]
        held_back = (steps.moves[ends] >= least + reach) & (steps.peaks[ends] > enough)
        going = np.flatnonzero(held_back & (taken >= least + _FAR * reach))
        reach = min(limit, 2 * reach) if going.size else limit


def _before(current: Placement, cluster: Cluster) -> I64:
    """[L, P] the experts in the slots that GPUs alive have in the cluster, -1 for none."""
    num_layers = current.num_layers
    old = current.phy2log.reshape(num_layers, current.cluster.num_gpus, -1)
    num_gpus = min(current.cluster.num_gpus, cluster.num_gpus)
    slots = min(current.cluster.slots_per_gpu, cluster.slots_per_gpu)
    before = np.full((num_layers, cluster.num_gpus, cluster.slots_per_gpu), -1)
    before[:, :num_gpus, :slots] = old[:, :num_gpus, :slots]
    rows = before.reshape(num_layers, -1)
    return rows if cluster.full else np.ascontiguousarray(rows[:, ~empty_slots(cluster)])


def _start(problem: Problem, current: Placement, before: I64, held: B) -> I64:
    """[L, P] a placement on the cluster that is as near as can be to what its GPUs hold."""
    from eplb.solver.adopt import _adopt_layers, homes

    nodes = problem.nodes
    num_layers, _, num_experts = held.shape
    home = np.zeros((num_layers, num_experts), np.int64)
    # What needs no change stays as it is, groups or not where there is no load.
    now, had = (replace(each, num_nodes=1, speed=None) for each in (problem.whole, current.cluster))
    same = now == had
    stays = np.full(num_layers, same)
    loaded = problem.loads.any(axis=1)
    if nodes > 1:
        home = homes(held, problem.num_groups, nodes)
        on_node = held.reshape(num_layers, nodes, -1, num_experts).any(axis=2)
        here = np.arange(nodes)[:, None] == home[:, None, :]
        stays &= ~loaded | (on_node == here).all(axis=(1, 2))
        home[~loaded] = 0
    start: I64 = before.copy()
    for some, num_nodes in ((~stays & loaded, nodes), (~stays & ~loaded, 1)):
        which = np.flatnonzero(some)
        if which.size:
            adopted = start[which]
            of_them = problem.loads[which], held[which], before[which], home[which]
            _adopt_layers(*of_them, num_nodes, problem.gpus.first, adopted)
            start[which] = adopted
    return start


def _filled(problem: Problem, start: I64, came: B) -> I64:
    """[L, P] the same with GPUs [L, G] that held nothing full of experts that balance the others:
    where a budget is more than enough for that, walks end lower (docs/experiments.md, when GPUs
    come).
    """
    from eplb.solver.adopt import _fill_new

    layers = np.flatnonzero(came.any(axis=1) & problem.loads.any(axis=1))
    filled: I64 = start.copy()
    if layers.size:
        _fill_new(problem.loads, layers, came, problem.gpus, filled)
    return filled


def _received(problem: Problem, phy2log: I64, held: B) -> I64:
    """[L] experts that a GPU holds in `phy2log` [L, P] and did not hold."""
    holds = np.zeros(held.shape, np.bool_)
    gpu_of = np.repeat(np.arange(held.shape[1]), np.diff(problem.gpus.first))
    holds[np.arange(held.shape[0])[:, None], gpu_of, phy2log] = True
    received: I64 = (holds & ~held).sum(axis=(1, 2))
    return received


def _peaks(problem: Problem, phy2log: I64, rule: str) -> F64:
    """[L] the expected peak of slots [L, P] under a rule."""
    if rule == "best":
        return levelled_peaks(problem, phy2log)
    return peaks_of(problem, problem.loaded, phy2log)


def _may_name(problem: Problem) -> bool:
    """Whether GPUs may trade names: they are alike, and no pins are to GPUs of these names."""
    return problem.cluster.even and not problem.wishes.barred.shape[1]


def _named(problem: Problem, layers: Layers, held: B, which: I64) -> tuple[I64, I64]:
    """The plan made afresh with the GPUs of some layers named so that they receive least, if they
    may be, [L, P], and its moves, [L], -1 in others.
    """
    from eplb.solver.match import name_gpus

    named = layers.phy2log.copy()
    for layer in which if _may_name(problem) else ():
        named[layer] = name_gpus(layers.phy2log[layer], held[layer], problem.nodes)
    named_moves = np.full(len(named), -1)
    named_moves[which] = _received(problem, named[which], held[which])
    return named, named_moves
