"""Options about pins, and what they mean."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from eplb.errors import OptionError
from eplb.planning.pins import Pins, pins_in


@dataclass(frozen=True)
class PinOptions:
    """What placements must keep to.

    Attributes:
        pins: File of what placements must keep to, as {"gpus": {"3": [0, 1]}, "nodes": {"5": 0},
            "apart": [[1, 2]], "copies": {"4": 2}, "most_copies": 8, "hottest": 1, "layers": {"7":
            {...}}}.
        pin: GPUs on which an expert has its copies, as 3=0,1; may be given several times.
        apart: Two experts that no GPU may hold together; may be given several times.
        most_copies: Most copies that an expert may have.
        hottest: Number of experts, those with the most load in each layer, that have a copy on
            every GPU.
    """

    pins: Annotated[Path | None, typer.Option(metavar="JSON")] = None
    pin: Annotated[list[str] | None, typer.Option(metavar="EXPERT=GPUS")] = None
    apart: Annotated[list[str] | None, typer.Option(metavar="A,B")] = None
    most_copies: int | None = None
    hottest: int | None = None

    def wished(self) -> Pins | None:
        """The pins of the file and of the options, which add to the file or stand in its place;
        None without any.

        Raises:
            FormatError: a file that cannot be read as JSON.
            OptionError: what are no pins.
        """
        if all(each is None for each in vars(self).values()):
            return None
        pins = Pins() if self.pins is None else pins_in(self.pins)
        gpus = dict(pins.gpus)
        for text in self.pin or ():
            expert, _, of = text.partition("=")
            gpus[_numbers(expert, "--pin", "3=0,1", text)[0]] = _numbers(of, "--pin", "3=0,1", text)
        changes: dict[str, Any] = {
            "gpus": gpus,
            "apart": [*pins.apart, *map(_pair, self.apart or ())],
            "most_copies": self.most_copies,
            "hottest": self.hottest,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(pins, **given)


def _pair(text: str) -> tuple[int, ...]:
    pair = _numbers(text, "--apart", "1,2", text)
    if len(pair) != 2:
        raise OptionError(f"--apart is {text!r}: give two experts as 1,2")
    return pair


def _numbers(part: str, name: str, example: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them, in the value `text` of an option."""
    words = [word.strip() for word in part.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise OptionError(f"{name} is {text!r}: give numbers as {example}")
    return tuple(map(int, words))
