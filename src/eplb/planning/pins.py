"""Pins: what an operator says of where experts are, which every plan keeps.

Each wish says which GPUs may hold an expert, how many copies it has, or which experts no GPU holds
together. They are constraints of the search: no change that breaks one is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import Immutable, in_few_words, ranges, whole_number
from eplb.cluster import Cluster
from eplb.errors import ClusterError, OptionError

if TYPE_CHECKING:
    from eplb.planning.passes import Problem

__all__ = ["Pinned", "Pins", "check_pins", "heed", "must_heed", "pinned_bounds"]

_MOST = 1_000_000
"""Numbers of GPUs and experts: far above those of any cluster and model."""
_MOST_APART = 1_000
"""Experts that one must be apart from: what the search counts by."""
_MOST_TRIED = 400
"""Wishes among which a smallest conflict is sought."""

_Lists = Mapping[int, Any] | Iterable[tuple[int, Any]]
_Numbers = int | Mapping[int, int] | Iterable[tuple[int, int]] | None


@dataclass(frozen=True)
class Pins:
    """What placements must keep to: experts on GPUs or nodes, pairs apart, numbers of copies.

    Example:
        >>> import eplb
        >>> pins = eplb.Pins(gpus={0: 3}, nodes={5: 1}, apart=[(2, 3)], hottest=1)
        >>> cluster = eplb.Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=3)
        >>> loads = [[9.0, 40.0, 7.0, 8.0, 6.0, 9.0, 8.0]]
        >>> made = eplb.plan(loads, cluster, pins=pins)
        >>> made.placement.logcnt[0, :2].tolist()
        [1, 4]

    Attributes:
        gpus: by expert, the GPU or GPUs on which it has a copy; it has no other copies.
        nodes: by expert, the node or nodes on which all its copies are.
        apart: pairs of experts that no GPU holds together.
        copies: by expert, how many copies it has.
        least_copies: by expert, the fewest that it has; one number for all of them.
        most_copies: by expert, the most that it has; one number for all of them.
        hottest: so many experts with the most load in a layer have a copy on every GPU.
        layers: by layer, further pins of that layer alone. Layers are rows of the loads, or their
            numbers where a `LoadTrace` has them.

    Raises:
        OptionError: what are no such numbers, or contradict each other by themselves.
    """

    gpus: tuple[tuple[int, tuple[int, ...]], ...] = ()
    nodes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    apart: tuple[tuple[int, int], ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    least_copies: int | tuple[tuple[int, int], ...] = ()
    most_copies: int | tuple[tuple[int, int], ...] = ()
    hottest: int = 0
    layers: tuple[tuple[int, Pins], ...] = ()

    if TYPE_CHECKING:  # maps and lists of any kind become tuples

        def __init__(
            self,
            gpus: _Lists = (),
            nodes: _Lists = (),
            apart: Iterable[Iterable[int]] = (),
            copies: _Lists = (),
            least_copies: _Numbers = None,
            most_copies: _Numbers = None,
            hottest: int = 0,
            layers: Mapping[int, Pins] | Iterable[tuple[int, Pins]] = (),
        ) -> None: ...

    def __post_init__(self) -> None:
        for name, what in (("gpus", "a GPU"), ("nodes", "a node")):
            lists = _by_number(getattr(self, name), f"pins: {name}", "expert")
            checked = tuple((each, _numbers(of, f"{what} of expert {each}")) for each, of in lists)
            object.__setattr__(self, name, checked)
        pairs = tuple(sorted({_pair(each) for each in _listed(self.apart, "pins: apart")}))
        object.__setattr__(self, "apart", pairs)
        for name in ("copies", "least_copies", "most_copies"):
            given: Any = getattr(self, name)
            if name != "copies" and isinstance(given, int):
                number = whole_number(given, f"pins: {name}", most=_MOST)
                object.__setattr__(self, name, number)
                continue
            lists = _by_number(() if given is None else given, f"pins: {name}", "expert")
            checked_ = tuple(
                (each, whole_number(of, f"pins: {name} of expert {each}", most=_MOST))
                for each, of in lists
            )
            object.__setattr__(self, name, checked_)
        hottest = whole_number(self.hottest, "pins: hottest", least=0, most=_MOST)
        object.__setattr__(self, "hottest", hottest)
        layers = _by_number(self.layers, "pins: layers", "layer")
        for layer, pins in layers:
            if not isinstance(pins, Pins) or pins.layers:
                raise OptionError(
                    f"pins of layer {layer} are {pins!r}: give eplb.Pins without layers of its own"
                )
        object.__setattr__(self, "layers", layers)

    @classmethod
    def from_json(cls, value: object) -> Pins:
        """Pins from what a JSON file holds: an object with the names of the attributes, in which
        experts and layers are keys.

        Example:
            >>> import eplb
            >>> eplb.Pins.from_json({"gpus": {"0": [3]}, "layers": {"7": {"hottest": 2}}}).gpus
            ((0, (3,)),)

        Raises:
            OptionError: anything else.
        """
        names = [each.name for each in fields(cls)]
        if not isinstance(value, dict):
            raise OptionError(
                f"pins are {in_few_words(repr(value))}: give an object of {', '.join(names)}"
            )
        unknown = [name for name in value if name not in names]
        if unknown:
            raise OptionError(f"pins have {unknown[0]!r}: give {', '.join(names)}")
        given: dict[str, Any] = {
            name: _with_numbers(of, f"pins: {name}") if isinstance(of, dict) else of
            for name, of in value.items()
        }
        layers = given.get("layers")
        if isinstance(layers, dict):
            given["layers"] = {layer: cls.from_json(pins) for layer, pins in layers.items()}
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """The same as `from_json` takes, without what is not asked for."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value: Any = getattr(self, each.name)
            if not value:
                continue
            if each.name == "layers":
                value = {str(layer): pins.to_json() for layer, pins in value}
            elif each.name == "apart":
                value = [list(pair) for pair in value]
            elif isinstance(value, tuple):
                value = {str(key): list(of) if isinstance(of, tuple) else of for key, of in value}
            found[each.name] = value
        return found

    def at_layers(self, numbers: tuple[int, ...] | None) -> Pins:
        """The same with rows for layers, which have these numbers.

        Raises:
            OptionError: pins of a layer that is not among them.
        """
        if numbers is None or not self.layers:
            return self
        row_of = {number: row for row, number in enumerate(numbers)}
        for layer, _ in self.layers:
            if layer not in row_of:
                raise OptionError(
                    f"pins have layer {layer}: the loads have layers {ranges(numbers)}"
                )
        return replace(self, layers=tuple((row_of[layer], pins) for layer, pins in self.layers))


@dataclass(frozen=True, eq=False)
class Pinned(Immutable):
    """Pins of a problem, as kernels take them (`solver.packing.Wishes`), of K layers or of all
    alike where K is 1, with the pins themselves, to name those that conflict.
    """

    barred: NDArray[np.bool_]
    least: NDArray[np.int64]
    most: NDArray[np.int64]
    apart: NDArray[np.int64]
    pins: Pins = field(default_factory=Pins)

    @classmethod
    def nothing(cls, num_experts: int, num_slots: int) -> Pinned:
        """No wishes."""
        return cls(
            np.zeros((1, 0, 0), np.bool_),
            np.ones((1, num_experts), np.int64),
            np.full((1, num_experts), num_slots, np.int64),
            np.empty((1, num_experts, 0), np.int64),
        )

    def of_layers(self, rows: NDArray[np.int64]) -> Pinned:
        """Those of some layers."""
        if len(self.least) == 1:
            return self
        # Writable copies: kernels would be compiled once more for arrays that are read-only.
        return replace(
            self,
            barred=self.barred[rows],
            least=self.least[rows],
            most=self.most[rows],
            apart=self.apart[rows],
        )


@dataclass(frozen=True)
class _Wish:
    """One of the pins, in words, and what it does to the arrays of a layer."""

    words: str
    layer: int | None
    write: Callable[[_Rows], None]


@dataclass
class _Rows:
    """What one layer must keep to: of `Pinned`, with pairs in a set."""

    cluster: Cluster
    loads: NDArray[np.float64]
    barred: NDArray[np.bool_]
    least: NDArray[np.int64]
    most: NDArray[np.int64]
    pairs: set[tuple[int, int]]

    def only(self, expert: int, gpus: Iterable[int]) -> None:
        """Let only GPUs, by their numbers in the whole cluster, hold an expert."""
        alive = self.cluster.alive
        allowed = [alive.index(gpu) for gpu in gpus]
        others = np.ones(len(alive), np.bool_)
        others[allowed] = False
        self.barred[others, expert] = True

    def limit(self, expert: int, least: int, most: int) -> None:
        self.least[expert] = max(self.least[expert], least)
        self.most[expert] = min(self.most[expert], most)


def check_pins(problem: Problem, pins: object, rule: str) -> Problem:
    """A problem of which plans keep pins.

    Raises:
        OptionError: no `Pins`; experts, layers, GPUs or nodes that there are none of, or that are
            dead; pins under a rule of dispatch, or with groups on nodes, that do not go with them;
            or those that no placement keeps.
        ClusterError: a GPU with more slots than there are experts.
    """
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
            "pins to GPUs or nodes do not go with groups that stay on their nodes: plan with "
            "num_groups=1, or pin every group by its experts"
        )
    return replace(problem, pinned=_compiled(problem, wishes, pins, range(num_layers)))


def must_heed(
    problem: Problem,
    phy2log: NDArray[np.int64],
    held: NDArray[np.bool_] | None = None,
    num_nodes: int | None = None,
    layers: NDArray[np.int64] | None = None,
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
    phy2log: NDArray[np.int64],
    held: NDArray[np.bool_] | None = None,
    num_nodes: int | None = None,
    layers: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
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
    some = layers[kept[layers]]
    before = held
    if before is None:
        before = np.zeros((1, problem.cluster.num_gpus, problem.loads.shape[1]), np.bool_)
    frugal = held is not None
    loads = problem.loads
    _heed_layers(loads, some, nodes, problem.gpus, wishes, before, frugal, phy2log, kept)
    return kept


def pinned_bounds(problem: Problem) -> NDArray[np.float64]:
    """[L] proven: no plan that keeps the pins has a lower expected peak, however tokens are split.

    Some GPU takes what the fastest that an expert may have copies on leave it; and experts that may
    be on a few GPUs alone load these.
    """
    bounds = np.zeros(problem.loads.shape[0])
    pinned = problem.pinned
    if pinned is None:
        return bounds
    pace = problem.gpus.pace
    falling = np.concatenate([[0.0], np.cumsum(np.sort(pace)[::-1])])
    confined: list[tuple[NDArray[np.bool_], float]] = []
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


def _conflict(problem: Problem, layer: int, phy2log: NDArray[np.int64]) -> str:
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
    return Pinned(
        barred if barred.any() else np.zeros((len(all_rows), 0, 0), np.bool_),
        np.stack([rows.least for rows in all_rows]),
        np.stack([rows.most for rows in all_rows]),
        apart,
        pins,
    )


def _rows_of(problem: Problem, wishes: list[_Wish], layer: int) -> _Rows:
    """What a layer must keep to; a problem of one layer is of the one that is asked for."""
    num_layers, num_experts = problem.loads.shape
    cluster = problem.cluster
    rows = _Rows(
        problem.whole,
        problem.loads[layer if num_layers > 1 else 0],
        np.zeros((cluster.num_gpus, num_experts), np.bool_),
        np.ones(num_experts, np.int64),
        np.full(num_experts, cluster.num_held, np.int64),
        set(),
    )
    for wish in wishes:
        if wish.layer in (None, layer):
            wish.write(rows)
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

        def on_gpus(rows: _Rows, expert: int = expert, gpus: tuple[int, ...] = gpus) -> None:
            rows.only(expert, gpus)
            rows.limit(expert, len(gpus), len(gpus))

        yield _Wish(f"expert {expert} on {_some('GPU', gpus)} alone", layer, on_gpus)
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

        def on_nodes(rows: _Rows, expert: int = expert, gpus: list[int] = there) -> None:
            rows.only(expert, gpus)

        yield _Wish(f"expert {expert} on {_some('node', nodes)} alone", layer, on_nodes)
    for pair in pins.apart:
        one, two = map(expert_of, pair)

        def apart(rows: _Rows, pair: tuple[int, int] = pair) -> None:
            rows.pairs.add(pair)

        yield _Wish(f"experts {one} and {two} apart", layer, apart)
    for name, words in (("copies", ""), ("least_copies", " at least"), ("most_copies", " at most")):
        given: Any = getattr(pins, name)
        all_alike = isinstance(given, int)
        for expert, number in [(-1, given)] if all_alike else given:
            what = "every expert" if all_alike else f"expert {expert_of(expert)}"
            least = 1 if name == "most_copies" else number_of(number, what)
            most = whole.num_slots if name == "least_copies" else number

            def counted(
                rows: _Rows, expert: int = expert, least: int = least, most: int = most
            ) -> None:
                for each in range(rows.least.size) if expert < 0 else (expert,):
                    rows.limit(each, least, most)

            copies = "copy" if number == 1 else "copies"
            yield _Wish(f"{number} {copies} of {what}{words}", layer, counted)
    if pins.hottest:
        hottest = whole_number(pins.hottest, "pins: hottest", most=num_experts)

        def everywhere(rows: _Rows, number: int = hottest) -> None:
            if rows.loads.any():
                for each in np.argsort(-rows.loads, kind="stable")[:number]:
                    rows.limit(int(each), len(alive), len(alive))

        which = "hottest expert" if hottest == 1 else f"{hottest} hottest experts"
        yield _Wish(f"the {which} on every GPU", layer, everywhere)


def _some(what: str, numbers: tuple[int, ...]) -> str:
    return f"{what}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _listed(value: Any, what: str) -> list[Any]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise OptionError(f"{what} is {value!r}: give a list")
    return list(value)


def _by_number(value: Any, what: str, of: str) -> tuple[tuple[int, Any], ...]:
    """What is given by the number of an expert or a layer, in their order, each once.

    Raises:
        OptionError: no map or pairs, or a number twice.
    """
    items = list(value.items()) if isinstance(value, Mapping) else _listed(value, what)
    found: dict[int, Any] = {}
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise OptionError(f"{what} has {item!r}: give them by {of}, as {{{of}: ...}}")
        number = whole_number(item[0], f"{what}: {of}", least=0, most=_MOST)
        if number in found:
            raise OptionError(f"{what} has {of} {number} twice: give each once")
        found[number] = item[1]
    return tuple(sorted(found.items(), key=lambda item: item[0]))


def _numbers(value: Any, what: str) -> tuple[int, ...]:
    """One number or several, each once, in rising order."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    values = list(value) if several else [value]
    if not values:
        raise OptionError(f"{what}: none is given, give at least one")
    return tuple(sorted({whole_number(each, what, least=0, most=_MOST) for each in values}))


def _pair(value: Any) -> tuple[int, int]:
    numbers = _listed(value, "a pair of pins")
    if len(numbers) != 2:
        raise OptionError(f"pins: apart has {value!r}: give pairs of two experts")
    one, two = (whole_number(each, "an expert of a pair", least=0, most=_MOST) for each in numbers)
    if one == two:
        raise OptionError(f"pins keep expert {one} apart from itself: give two experts")
    return min(one, two), max(one, two)


def _with_numbers(value: dict[Any, Any], what: str) -> dict[int, Any]:
    """The same with numbers for keys, which are strings in JSON."""
    found = {}
    for key, of in value.items():
        text = str(key)
        if not text.isdecimal():
            raise OptionError(f"{what} has {key!r}: give a number")
        found[int(text)] = of
    return found
