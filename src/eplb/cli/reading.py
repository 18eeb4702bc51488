"""What commands read: loads and placements, and the options that say what is in them."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from eplb.checks import LAYERS, layers_from, rising_layers
from eplb.cli.terminal import say
from eplb.errors import FormatError, LoadsError, OptionError
from eplb.formats import load_placement, load_trace
from eplb.loads import LoadTrace
from eplb.merging import check_merge
from eplb.placement import Placement

_SHOWN = 6
"""Sources whose order is told in full."""


@dataclass(frozen=True)
class ReadingOptions:
    """How loads are read.

    Attributes:
        axes: What the axes of a plain array are, such as layers,ranks,local (experts numbered
            within their rank), ranks,layers,experts or tokens,layers,choices. [default: (windows,)
            layers, experts]
        counters: The loads count from the engine's start. A window is what it adds to the one
            before.
        merge: Windows to add up into one: every N (windows left over at the end are dropped), all,
            none, or auto, which adds up neighbours until windows differ by more than chance.
    """

    axes: Annotated[str | None, typer.Option(metavar="LIST")] = None
    counters: Annotated[bool, typer.Option("--counters")] = False
    merge: Annotated[str, typer.Option(metavar="auto|none|all|N")] = "auto"

    def loads(self, paths: list[Path], *, to_stderr: bool = False) -> LoadTrace:
        """The loads in files and folders, one after another, or on standard input where a path is
        `-`.

        The order of several, and what the rule merged, are told, on standard error where that is
        asked for.

        Raises:
            EplbError: as for `eplb.load_trace`, and options that do not fit.
        """
        how = check_merge(self.merge, "--merge")
        if [str(path) for path in paths].count("-") > 1:
            raise OptionError("standard input can be read once: give - once")
        with ExitStack() as open_:
            sources = [open_.enter_context(_there(path)) for path in paths]
            loads = load_trace(sources, axes=self.axes, counters=self.counters, merge=how)
        if len(paths) > 1:
            shown = paths if len(paths) <= _SHOWN else [*paths[: _SHOWN - 1], "...", paths[-1]]
            order = ", ".join(map(str, shown))
            say(f"{len(paths)} sources follow each other as given: {order}.", to_stderr=to_stderr)
        if loads.merging is not None and loads.merging.words is not None:
            say(f"{loads.merging.words}.", to_stderr=to_stderr)
        return loads


@dataclass(frozen=True)
class LayerOptions(ReadingOptions):
    """The same, and which layers of the model the rows of loads and placements are.

    Attributes:
        first_layer: The model's number of the first layer in the loads. Give it if the loads leave
            out the dense layers before it.
        layers: The model's numbers of all layers in the loads, as 3-60 or 1,3,5,7. Give it in place
            of --first-layer if they do not follow each other.
        placement_layers: The model's numbers of all layers in the placement's file, as 3-61. Give
            it if the file does not number them and has others than the loads.
    """

    first_layer: Annotated[int | None, typer.Option(metavar="N")] = None
    layers: Annotated[str | None, typer.Option(metavar="LIST")] = None
    placement_layers: Annotated[str | None, typer.Option(metavar="LIST")] = None

    def loads(self, paths: list[Path], *, to_stderr: bool = False) -> LoadTrace:
        """The same, with the numbers that options give their layers."""
        loads = super().loads(paths, to_stderr=to_stderr)
        numbers = _numbers_of(self.first_layer, self.layers, loads.num_layers)
        return loads if numbers is None else replace(loads, layers=numbers)

    def placement(
        self, path: Path, trace: LoadTrace, gpus: int | None, nodes: int | None
    ) -> Placement:
        """The placement in a file, its rows at the layers of the loads.

        Raises:
            EplbError: as for `eplb.load_placement`.
        """
        numbers = None
        if self.placement_layers is not None:
            numbers = layers_from(self.placement_layers, "--placement-layers")
        return load_placement(
            path,
            gpus,
            nodes,
            num_experts=trace.num_experts,
            dense=trace.dense,
            layers=trace.layers,
            placement_layers=numbers,
        )


_MAGIC = {b"\x1f\x8b": ".json.gz", b"\x93NUMPY": ".npy", b"PK": ".npz", b"PAR1": ".parquet"}
"""How files begin whose format standard input does not tell by an ending."""


@contextmanager
def _there(path: Path) -> Iterator[Path]:
    """The path, or a file with what standard input has: its first bytes tell the format."""
    if str(path) != "-":
        yield path
        return
    stream = sys.stdin.buffer
    begin = stream.read(8)
    if not begin:
        raise FormatError("standard input has nothing to read")
    known = (ending for magic, ending in _MAGIC.items() if begin.startswith(magic))
    text = ".json" if begin.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in {b"{", b"["} else ".csv"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"stdin{next(known, text)}"
        with source.open("wb") as file:
            file.write(begin)
            shutil.copyfileobj(stream, file)
        try:
            yield source
        except (FormatError, LoadsError, OptionError) as error:
            raise type(error)(str(error).replace(str(source), "standard input")) from None


def _numbers_of(
    first_layer: int | None, layers: str | None, num_layers: int
) -> tuple[int, ...] | None:
    if layers is not None:
        if first_layer is not None:
            raise OptionError("--first-layer and --layers say the same: give one of them")
        return rising_layers(layers_from(layers, "--layers"), num_layers, "--layers")
    if first_layer is None:
        return None
    if not 0 <= first_layer < LAYERS:
        raise OptionError(f"--first-layer is {first_layer}: give 0 to {LAYERS - 1}")
    return tuple(range(first_layer, first_layer + num_layers))
