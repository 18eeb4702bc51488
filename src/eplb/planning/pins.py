"""Pins: what an operator says of where experts are, which every plan keeps.

Each wish says which GPUs may hold an expert, how many copies it has, or which experts no GPU holds
together. They are constraints of the search: no change that breaks one is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eplb.checks import Immutable, in_few_words, ranges, whole_number
from eplb.errors import OptionError
from eplb.formats.safe import check_regular, naming, read_json_text, read_text
from eplb.solver.arrays import I64, Wishes

_MOST = 1_000_000
"""Numbers of GPUs and experts: far above those of any cluster and model."""

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


def pins_in(path: Path) -> Pins:
    """The pins in a JSON file.

    Raises:
        FormatError: a file that cannot be read as JSON.
        OptionError: what are no pins.
    """
    with naming(path):
        check_regular(path)
        content = read_json_text(read_text(path))
    try:
        return Pins.from_json(content)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from None


@dataclass(frozen=True, eq=False)
class Pinned(Immutable):
    """Pins of a problem, as kernels take them and by themselves, to name those that conflict."""

    wishes: Wishes
    pins: Pins

    def of_layers(self, rows: I64) -> Pinned:
        """Those of some layers."""
        if len(self.wishes.least) == 1:
            return self
        # Writable copies: kernels would be compiled once more for arrays that are read-only.
        barred, least, most, apart = self.wishes
        return replace(self, wishes=Wishes(barred[rows], least[rows], most[rows], apart[rows]))


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
