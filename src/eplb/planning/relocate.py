"""From the placement that runs to a better one: what each layer gains by how many moves.

A walk through each layer starts from what GPUs hold; what it gains by how many moves, together with
the plan made afresh, whose GPUs are named so that they receive least, is a curve of all layers,
from which a budget or a price picks (`solver.curve`).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster
from eplb.errors import OptionError, PlacementError
from eplb.placement import Placement
from eplb.solver.threads import run_kernel

if TYPE_CHECKING:  # numba is loaded when it is needed
    from eplb.solver.curve import Pieces
    from eplb.solver.walk import Steps

__all__ = ["Relocation", "Work", "check_current", "check_moves", "relocate"]

_AT_ONCE = (1, 4)
"""Layers that a thread takes at a time, least and most."""

_MOST_STEPS = 2
"""Steps of a walk that are kept, in slots of a layer."""

_SHARE = 1.25
"""Where there is a budget, layers walk up to so many times their even share of it, and more; those
that go `_FAR` of it walk on, twice as far each time."""
_SOME_MOVES = 8
_FAR = 0.95

_FEW_MOVES = 0.3
"""Share of the slots up to which a plan made afresh hardly ever moves less than a walk."""


@dataclass(frozen=True)
class Work:
    """What is to be relocated.

    Attributes:
        windows: [T, L, E] loads.
        weight: [T] what windows count; adds up to 1.
        layers: layers that have some load, of L.
        cluster: where to.
        nodes: nodes that groups are kept on, 1 if they go anywhere.
        num_groups: groups that the model routes by.
        threads: most threads to use.
        near: peak over least peak, less 1, up to which nothing is left to gain.
    """

    windows: NDArray[np.float64]
    weight: NDArray[np.float64]
    layers: NDArray[np.int64]
    cluster: Cluster
    nodes: int
    num_groups: int
    threads: int
    near: float


@dataclass(frozen=True)
class Relocation:
    """Walks through all layers, and the curve that they make.

    Attributes:
        work: what was relocated.
        before: [L, P] experts in the slots that the cluster has now, -1 where there was none.
        start: [L, P] the placement that the walks start from.
        steps: the walks.
        pieces: the curve.
        afresh: [L, P] the plan made afresh, its GPUs named so that they receive least.
        afresh_moves: [L] moves to it, -1 where it is not needed.
    """

    work: Work
    before: NDArray[np.int64]
    start: NDArray[np.int64]
    steps: Steps
    pieces: Pieces
    afresh: NDArray[np.int64]
    afresh_moves: NDArray[np.int64]

    def choose(self, budget: int | None, price: NDArray[np.float64]) -> NDArray[np.int64]:
        """[L] the steps to make in each layer, or `AFRESH`, for a budget of moves and the price
        [L] of each.
        """
        from eplb.solver.curve import choose

        return choose(self.pieces, budget, price, self.steps)

    def moves(self, chosen: NDArray[np.int64]) -> int:
        """Moves to what `settle` gives, in all layers."""
        from eplb.solver.curve import AFRESH

        walked = self.steps.moves[np.arange(chosen.size), np.maximum(chosen, 0)]
        return int(np.where(chosen == AFRESH, self.afresh_moves, walked).sum())

    def settle(self, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The slots [L, P] and peaks [L] after so many steps of each layer, `AFRESH` in their place
        for the plan made afresh.
        """
        from eplb.solver.curve import AFRESH
        from eplb.solver.match import _keep_slots
        from eplb.solver.walk import _follow_layers, _peak_layers

        phy2log = np.where((chosen == AFRESH)[:, None], self.afresh, self.start)
        _follow_layers(self.steps, chosen, phy2log)
        _keep_slots(phy2log, self.before, self.work.cluster.slots_per_gpu)
        peaks = np.zeros(chosen.shape)
        work = self.work
        slots_per_gpu = work.cluster.slots_per_gpu
        _peak_layers(work.windows, work.weight, work.layers, slots_per_gpu, phy2log, peaks)
        return phy2log, peaks


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
            f"current has {current.num_layers} layers of {current.num_experts} experts, the loads "
            f"have {num_layers} of {num_experts}: give the placement of this model"
        )
    return current


def check_moves(max_moves: int | None, move_cost: float | None) -> tuple[int | None, float | None]:
    """A budget of moves and a price of each, 0 or more where given.

    Raises:
        OptionError: anything else.
    """
    if max_moves is not None:
        try:
            max_moves = operator.index(max_moves)
        except TypeError:
            raise OptionError(f"max_moves is {max_moves!r}: give a whole number") from None
        if max_moves < 0:
            raise OptionError(f"max_moves is {max_moves}: give 0 or more")
    if move_cost is not None:
        try:
            move_cost = float(move_cost)
        except (TypeError, ValueError, OverflowError):
            raise OptionError(f"move_cost is {move_cost!r}: give a number") from None
        if not 0.0 <= move_cost < float("inf"):
            raise OptionError(f"move_cost is {move_cost}: give 0 or more")
    return max_moves, move_cost


def relocate(
    work: Work,
    current: Placement,
    afresh: NDArray[np.int64] | None,
    peaks: NDArray[np.float64],
    enough: NDArray[np.float64],
    budget: int | None = None,
    price: NDArray[np.float64] | None = None,
) -> Relocation:
    """Walk from a placement through all layers, as far as may be chosen.

    Args:
        work: what is to be relocated.
        current: the placement that runs, of any cluster.
        afresh: [L, P] the plan made afresh, None for none.
        peaks: [L] its peaks.
        enough: [L] peaks at which a layer needs no further step.
        budget: most moves in all that will be asked for, None for any.
        price: [L] least that a move is to gain that will be asked for, None for any.

    Raises:
        OptionError: a budget with which not every expert would have a slot.
    """
    from eplb.solver.curve import choose

    before = _before(current, work.cluster)
    held = current.held_by(work.cluster.num_gpus)
    start = _start(work, current, before, held)
    least = _received(start, held)
    spare = None if budget is None else budget - int(least.sum())
    if spare is not None and spare < 0:
        raise OptionError(
            f"max_moves is {budget}: {int(least.sum())} are the least that give every expert a "
            "slot on this cluster"
        )
    num_layers, num_slots = start.shape
    steps = _memory(num_layers, _MOST_STEPS * num_slots)
    steps.moves[:, 0] = least
    limit = num_slots if spare is None else min(spare, num_slots)
    reach = limit
    if spare is not None:
        reach = min(limit, int(_SHARE * spare) // num_layers + _SOME_MOVES)
    at_price = np.zeros(num_layers) if price is None else price
    ends = np.arange(num_layers), steps.length
    going = work.layers
    named, named_moves = start, np.full(num_layers, -1)
    while True:
        _walk(work, going, start, held, enough, least + reach, steps)
        held_back = (steps.moves[ends] >= least + reach) & (steps.peaks[ends] > enough)
        if afresh is not None:
            named, named_moves = _named(work, afresh, held, steps, enough, held_back)
        pieces = _drawn(steps, named_moves, peaks, budget)
        # A layer that goes far into its walk may want to go beyond it.
        chosen = choose(pieces, budget, at_price, steps)
        taken = steps.moves[np.arange(num_layers), np.maximum(chosen, 0)]
        going = np.flatnonzero(held_back & (taken >= least + _FAR * reach))
        if reach >= limit or not going.size:
            return Relocation(work, before, start, steps, pieces, named, named_moves)
        reach = min(limit, 2 * reach)


def _before(current: Placement, cluster: Cluster) -> NDArray[np.int64]:
    """[L, P] the experts in slots of the cluster, -1 where there was none."""
    num_layers = current.num_layers
    old = current.phy2log.reshape(num_layers, current.cluster.num_gpus, -1)
    num_gpus = min(current.cluster.num_gpus, cluster.num_gpus)
    slots = min(current.cluster.slots_per_gpu, cluster.slots_per_gpu)
    before = np.full((num_layers, cluster.num_gpus, cluster.slots_per_gpu), -1)
    before[:, :num_gpus, :slots] = old[:, :num_gpus, :slots]
    return before.reshape(num_layers, -1)


def _start(
    work: Work, current: Placement, before: NDArray[np.int64], held: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """[L, P] a placement on the cluster that is as near as can be to what its GPUs hold."""
    cluster = work.cluster
    same = (cluster.num_gpus, cluster.slots_per_gpu) == (
        current.cluster.num_gpus,
        current.cluster.slots_per_gpu,
    )
    num_layers, _, num_experts = held.shape
    home = np.zeros((num_layers, num_experts), np.int64)
    if work.nodes > 1:
        from eplb.solver.adopt import homes

        home = homes(held, work.num_groups, work.nodes)
        on_node = held.reshape(num_layers, work.nodes, -1, num_experts).any(axis=2)
        here = np.arange(work.nodes)[:, None] == home[:, None, :]
        same = same and bool((on_node == here).all())
    if same:
        return before
    from eplb.solver.adopt import _adopt_layers

    start = np.empty(before.shape, np.int64)
    loads = np.ascontiguousarray(work.windows.mean(axis=0))
    _adopt_layers(loads, held, before, home, work.nodes, cluster.slots_per_gpu, start)
    return start


def _received(phy2log: NDArray[np.int64], held: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[L] experts that a GPU holds in `phy2log` [L, P] and did not hold."""
    num_layers, num_gpus, _ = held.shape
    holds = np.zeros(held.shape, np.bool_)
    hosts = phy2log.reshape(num_layers, num_gpus, phy2log.shape[1] // num_gpus)
    holds[np.arange(num_layers)[:, None, None], np.arange(num_gpus)[:, None], hosts] = True
    received: NDArray[np.int64] = (holds & ~held).sum(axis=(1, 2))
    return received


def _memory(num_layers: int, most_steps: int) -> Steps:
    from eplb.solver.walk import Steps

    return Steps(
        np.zeros(num_layers, np.int64),
        np.zeros(num_layers, np.int64),
        np.zeros((num_layers, most_steps + 1), np.int64),
        np.zeros((num_layers, most_steps + 1)),
        np.empty((num_layers, most_steps, 2), np.int64),
        np.empty((num_layers, most_steps, 2), np.int64),
    )


def _walk(
    work: Work,
    layers: NDArray[np.int64],
    start: NDArray[np.int64],
    held: NDArray[np.bool_],
    enough: NDArray[np.float64],
    most_moves: NDArray[np.int64],
    steps: Steps,
) -> None:
    from eplb.solver.walk import _walk_layers

    shape = (work.nodes, work.cluster.num_gpus, start, held, work.near)

    def walk(begin: int, end: int) -> None:
        some = layers[begin:end]
        _walk_layers(work.windows, work.weight, some, *shape, enough, most_moves, steps)

    run_kernel(_walk_layers, walk, layers.size, _AT_ONCE, work.threads)


def _named(
    work: Work,
    afresh: NDArray[np.int64],
    held: NDArray[np.bool_],
    steps: Steps,
    enough: NDArray[np.float64],
    held_back: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The plan made afresh with its GPUs named so that they receive least, [L, P], and its moves,
    [L], -1 where a walk has come as far by few moves, or is held back and may come so far.
    """
    from eplb.solver.match import name_gpus

    ends = np.arange(steps.length.size), steps.length
    moves = steps.moves[ends]
    far = (steps.peaks[ends] > enough) & ~held_back
    long = moves > _FEW_MOVES * afresh.shape[1]
    named = afresh.copy()
    which = np.flatnonzero(far | long)
    for layer in which:
        named[layer] = name_gpus(afresh[layer], held[layer], work.nodes)
    named_moves = np.full(moves.size, -1)
    named_moves[which] = _received(named[which], held[which])
    return named, named_moves


def _drawn(
    steps: Steps, named_moves: NDArray[np.int64], peaks: NDArray[np.float64], budget: int | None
) -> Pieces:
    """The curve; second copies on a GPU go first, where the budget is enough for all of them."""
    from eplb.solver.curve import hulls

    tidied = steps.moves[np.arange(steps.tidy.size), steps.tidy]
    tidy = budget is None or budget >= tidied.sum()
    return hulls(steps, steps.tidy if tidy else np.zeros_like(steps.tidy), named_moves, peaks)
