"""Pins in a problem: checked against it, kept by its plans, and what they make of its bounds.

A wish that no placement keeps is refused, with a smallest conflict where that is soon found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eplb.checks import whole_number
from eplb.errors import ClusterError, OptionError
from eplb.placement import Placement
from eplb.planning.pins import Pinned, Pins
from eplb.planning.problem import Problem
from eplb.solver.arrays import F64, I64, B, Wishes

_MOST_APART = 1_000
"""Experts that one must be apart from: what the search counts by."""
_MOST_TRIED = 400
"""Wishes among which a smallest conflict is sought."""


@dataclass(frozen=True)
class _Wish:
    """One of the pins, in words, and what it asks of a layer, or of all of them.

    Attributes:
        experts: whose copies it is of; hottest: or so many experts with the most load.
        least, most: copies of each.
        gpus: those that alone may hold them, None for any.
        pair: two experts that no GPU holds together.
    """

    words: str
    layer: int | None
    experts: Sequence[int] = ()
    hottest: int = 0
    least: int = 1
    most: int = sys.maxsize
    gpus: Sequence[int] | None = None
    pair: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Rows:
    """What one layer must keep to: of `Wishes`, with pairs in a set."""

    barred: B
    least: I64
    most: I64
    pairs: set[tuple[int, int]]


def check_pins(problem: Problem, pins: object, rule: str) -> Problem:
    """A problem of which plans keep pins, or what pins are for a problem of as many layers, experts
    and GPUs.

    Raises:
        OptionError: no `Pins`; experts, layers, GPUs or nodes that there are none of, or that are
            dead; pins under a rule of dispatch, or with groups on nodes, that do not go with them;
            or those that no placement keeps.
        ClusterError: a GPU with more slots than there are experts.
    """
    if isinstance(pins, Pinned):
        return replace(problem, pinned=pins)
    if not isinstance(pins, Pins):
        raise OptionError(f"pins are {pins!r}: give eplb.Pins, or None")
    if rule not in ("even", "best"):
        raise OptionError(
            f'dispatch is "{rule}" with pins: give "even" or "best", plans for the rule of an '
            "engine do not keep pins"
        )
    num_layers, num_experts = problem.loads.shape
    if max(problem.cluster.capacity) > num_experts:
        raise ClusterError(
            f"a GPU has {max(problem.cluster.capacity)} slots for {num_experts} experts: with "
            f"pins, give each GPU {num_experts} at most"
        )
    wishes = [*_wishes_of(problem, pins, None)]
    for layer, further in pins.layers:
        row = whole_number(layer, "a layer of pins", least=0, most=num_layers - 1)
        wishes += _wishes_of(problem, further, row)
    if problem.nodes > 1 and any(each.gpus or each.nodes for each in _all_of(pins)):
        raise OptionError(
            "pins to GPUs or nodes do not go with groups that stay on their nodes: leave out the "
            "groups (--groups), or pin every group by its experts"
        )
    return replace(problem, pinned=_compiled(problem, wishes, pins, range(num_layers)))


def keeps(problem: Problem, placement: Placement) -> bool:
    """Whether a placement on the cluster of a problem with pins keeps them."""
    wishes = problem.wishes
    held = problem.held_by(placement)
    copies = held.sum(axis=1)
    kept = (copies >= wishes.least).all() and (copies <= wishes.most).all()
    if wishes.barred.shape[1]:
        kept = kept and not (held & wishes.barred).any()
    apart = np.broadcast_to(wishes.apart, (*copies.shape, wishes.apart.shape[2]))
    for layer, one, number in np.argwhere(apart >= 0).tolist() if kept else ():
        kept = kept and not (held[layer, :, one] & held[layer, :, apart[layer, one, number]]).any()
    return bool(kept)


def must_heed(
    problem: Problem,
    phy2log: I64,
    held: B | None = None,
    num_nodes: int | None = None,
    layers: I64 | None = None,
) -> None:
    """Change slots [L, P] so that they keep the pins, as `heed` does.

    Raises:
        OptionError: no placement keeps them; it names the smallest conflict that is soon found.
    """
    failed = np.flatnonzero(~heed(problem, phy2log, held, num_nodes, layers))
    if failed.size:
        raise OptionError(_conflict(problem, int(failed[0]), phy2log))


def heed(
    problem: Problem,
    phy2log: I64,
    held: B | None = None,
    num_nodes: int | None = None,
    layers: I64 | None = None,
) -> B:
    """Change slots [L, P], of some layers or all, so that they keep the pins: as evenly loaded as
    can be soon found, or with few experts that GPUs must receive beside those that they `held`
    [L, G, E]. Return whether they keep them, [L].
    """
    from eplb.solver.heed import _heed_layers

    layers = np.arange(len(phy2log)) if layers is None else layers
    wishes, nodes = problem.wishes, num_nodes or problem.nodes
    kept = np.ones(len(phy2log), np.bool_)
    possible = (wishes.least <= wishes.most).all(axis=1)
    kept[layers] = np.broadcast_to(possible, kept.shape)[layers]
    before = held
    if before is None:
        before = np.zeros((1, problem.cluster.num_gpus, problem.loads.shape[1]), np.bool_)
    _heed_layers(
        problem.loads, layers[kept[layers]], nodes, problem.gpus, wishes, before, held is not None,
        phy2log, kept,
    )  # fmt: skip
    return kept


def pinned_bounds(problem: Problem) -> F64:
    """[L] proven: no plan that keeps the pins has a lower expected peak, however tokens are split.

    Some GPU takes what the fastest that an expert may have copies on leave it; and experts that may
    be on a few GPUs alone load these.
    """
    bounds = np.zeros(problem.loads.shape[0])
    if problem.pinned is None:
        return bounds
    pinned = problem.wishes
    pace = problem.gpus.pace
    falling = np.concatenate([[0.0], np.cumsum(np.sort(pace)[::-1])])
    confined: list[tuple[B, float]] = []
    for layer in range(bounds.size):
        row = layer % len(pinned.least)
        room = falling[np.minimum(pinned.most[row], pace.size)]
        if pinned.barred.shape[1] and layer == row:
            sets = np.unique(pinned.barred[row].T, axis=0)
            sets = sets[sets.any(axis=1)]
            insides = [(pinned.barred[row] >= away[:, None]).all(axis=0) for away in sets]
            confined = [
                (inside, float(pace[~away].sum()))
                for inside, away in zip(insides, sets, strict=True)
            ]
        for weight, loads in zip(problem.weight[:, layer], problem.windows[:, layer], strict=True):
            least = float((loads / room).max())
            for inside, paces in confined:
                least = max(least, float(loads[inside].sum()) / paces)
            bounds[layer] += weight * least
    return bounds


def _conflict(problem: Problem, layer: int, phy2log: I64) -> str:
    """Which pins of a layer cannot be kept together: as few as leaving out one after the other
    finds.
    """
    pins = Pins() if problem.pinned is None else problem.pinned.pins
    wishes = [*_wishes_of(problem, pins, None)]
    for row, further in pins.layers:
        if row == layer:
            wishes += _wishes_of(problem, further, row)
    alone = replace(problem.of_layers(np.array([layer])), pinned=None)
    slots = phy2log[[layer]]

    def fails(some: list[_Wish]) -> bool:
        trial = replace(alone, pinned=_compiled(alone, some, pins, [layer]))
        return not heed(trial, slots.copy())[0]

    if len(wishes) <= _MOST_TRIED:
        for wish in tuple(wishes):
            fewer = [each for each in wishes if each is not wish]
            if fails(fewer):
                wishes = fewer
    rows = _rows_of(alone, wishes, layer)
    cluster = problem.cluster
    why = f"{cluster.num_gpus} GPUs alive have {cluster.num_held} slots"
    most = np.minimum(rows.most, (~rows.barred).sum(axis=0))
    if rows.least.sum() > cluster.num_held:
        why = f"they need {rows.least.sum()} slots, and {why}"
    elif (rows.least <= most).all() and most.sum() < cluster.num_held:
        why = f"they fill {most.sum()} slots at most, and {why}"
    sure = "no placement keeps" if not rows.pairs else "no placement was found that keeps"
    where = f" of layer {layer}" * (problem.loads.shape[0] > 1)
    shown = [wish.words for wish in wishes[:20]]
    more = f" and {len(wishes) - 20} more" * (len(wishes) > 20)
    return f"{sure} these pins{where} together: {'; '.join(shown)}{more} ({why})"


def _compiled(problem: Problem, wishes: list[_Wish], pins: Pins, layers: Iterable[int]) -> Pinned:
    """Pins as kernels take them: of each of some layers, or of all alike."""
    differ = any(wish.layer is not None for wish in wishes) or any(
        each.hottest for each in _all_of(pins)
    )
    numbers = list(layers)
    all_rows = [_rows_of(problem, wishes, layer) for layer in (numbers if differ else numbers[:1])]
    num_experts = problem.loads.shape[1]
    partners: list[dict[int, list[int]]] = []
    for rows in all_rows:
        of: dict[int, list[int]] = {}
        for one, two in sorted(rows.pairs):
            of.setdefault(one, []).append(two)
            of.setdefault(two, []).append(one)
        partners.append(of)
    width = max((len(each) for of in partners for each in of.values()), default=0)
    if width > _MOST_APART:
        raise OptionError(
            f"pins keep an expert apart from {width} others: give {_MOST_APART:,} at most"
        )
    apart = np.full((len(all_rows), num_experts, width), -1)
    for row, of in enumerate(partners):
        for expert, others in of.items():
            apart[row, expert, : len(others)] = others
    barred = np.stack([rows.barred for rows in all_rows])
    wishes_of_all = Wishes(
        barred if barred.any() else np.zeros((len(all_rows), 0, 0), np.bool_),
        np.stack([rows.least for rows in all_rows]),
        np.stack([rows.most for rows in all_rows]),
        apart,
    )
    return Pinned(wishes_of_all, pins)


def _rows_of(problem: Problem, wishes: list[_Wish], layer: int) -> _Rows:
    """What a layer must keep to; a problem of one layer is of the one that is asked for."""
    num_layers, num_experts = problem.loads.shape
    loads = problem.loads[layer if num_layers > 1 else 0]
    rows = _Rows(
        np.zeros((problem.cluster.num_gpus, num_experts), np.bool_),
        np.ones(num_experts, np.int64),
        np.full(num_experts, problem.cluster.num_held, np.int64),
        set(),
    )
    for wish in wishes:
        if wish.layer not in (None, layer):
            continue
        experts = np.array(wish.experts, np.int64)
        if wish.hottest and loads.any():
            experts = np.argsort(-loads, kind="stable")[: wish.hottest]
        rows.least[experts] = np.maximum(rows.least[experts], wish.least)
        rows.most[experts] = np.minimum(rows.most[experts], wish.most)
        if wish.gpus is not None:
            others = np.isin(problem.whole.alive, wish.gpus, invert=True)
            rows.barred[np.ix_(others, experts)] = True
        if wish.pair is not None:
            rows.pairs.add(wish.pair)
    return rows


def _all_of(pins: Pins) -> list[Pins]:
    """The pins of all layers, and those of each."""
    return [pins, *(each for _, each in pins.layers)]


def _wishes_of(problem: Problem, pins: Pins, layer: int | None) -> Iterable[_Wish]:
    """Pins one by one, checked against the cluster and the experts.

    Raises:
        OptionError: experts, GPUs or nodes that there are none of, or that are dead.
    """
    whole, num_experts = problem.whole, problem.loads.shape[1]
    alive = set(whole.alive)
    node_gpus = whole.num_gpus // whole.num_nodes

    def expert_of(value: int) -> int:
        return whole_number(value, "an expert of pins", least=0, most=num_experts - 1)

    def number_of(value: int, what: str) -> int:
        if value > len(alive):
            raise OptionError(
                f"pins ask for {value} copies of {what}: {len(alive)} GPUs are alive, and hold one "
                "each at most"
            )
        return value

    for expert, gpus in pins.gpus:
        expert_of(expert)
        for gpu in gpus:
            whole_number(gpu, f"the GPU of expert {expert}", least=0, most=whole.num_gpus - 1)
            if gpu not in alive:
                raise OptionError(
                    f"pins put expert {expert} on GPU {gpu}, which is dead: give one that is alive"
                )
        words, number = f"expert {expert} on {_some('GPU', gpus)} alone", len(gpus)
        yield _Wish(words, layer, (expert,), least=number, most=number, gpus=gpus)
    for expert, nodes in pins.nodes:
        expert_of(expert)
        there: list[int] = []
        for node in nodes:
            whole_number(node, f"the node of expert {expert}", least=0, most=whole.num_nodes - 1)
            there += range(node * node_gpus, (node + 1) * node_gpus)
        there = [gpu for gpu in there if gpu in alive]
        if not there:
            raise OptionError(
                f"pins put expert {expert} on {_some('node', nodes)}, where every GPU is dead: "
                "give one with a GPU alive"
            )
        words = f"expert {expert} on {_some('node', nodes)} alone"
        yield _Wish(words, layer, (expert,), gpus=there)
    for pair in pins.apart:
        one, two = map(expert_of, pair)
        yield _Wish(f"experts {one} and {two} apart", layer, pair=pair)
    for name, how in (("copies", ""), ("least_copies", " at least"), ("most_copies", " at most")):
        given: Any = getattr(pins, name)
        all_alike = isinstance(given, int)
        for expert, number in [(-1, given)] if all_alike else given:
            what = "every expert" if all_alike else f"expert {expert_of(expert)}"
            least = 1 if name == "most_copies" else number_of(number, what)
            most = whole.num_slots if name == "least_copies" else number
            words = f"{number} {'copy' if number == 1 else 'copies'} of {what}{how}"
            experts = range(num_experts) if all_alike else (expert,)
            yield _Wish(words, layer, experts, least=least, most=most)
    if pins.hottest:
        hottest = whole_number(pins.hottest, "pins: hottest", least=0, most=num_experts)
        which = "hottest expert" if hottest == 1 else f"{hottest} hottest experts"
        words, number = f"the {which} on every GPU", len(alive)
        yield _Wish(words, layer, hottest=hottest, least=number, most=number)


def _some(what: str, numbers: tuple[int, ...]) -> str:
    return f"{what}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
