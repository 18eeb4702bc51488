"""`eplb migrate`: from one placement to another, in waves."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from eplb.checks import gpus_from, ranges
from eplb.cli.interrupts import working
from eplb.cli.options import AsJson, Dead
from eplb.cli.reading import LayerOptions
from eplb.cli.service import TransferOptions
from eplb.cli.terminal import print_json, print_migration, say
from eplb.errors import FormatError
from eplb.files import check_writable, write_text
from eplb.formats import load_placement
from eplb.moving.migrate import Migration, migrate
from eplb.placement import Placement

_ENDING = ".json"


def command(
    old: Annotated[Path, typer.Argument(metavar="OLD")],
    new: Annotated[Path, typer.Argument(metavar="NEW")],
    *,
    gpus: int | None = None,
    new_gpus: int | None = None,
    nodes: int | None = None,
    new_nodes: int | None = None,
    dead: Dead = None,
    leaving: Annotated[str | None, typer.Option(metavar="LIST")] = None,
    experts_at_once: int = 1,
    uplink_share: int | None = None,
    spare_slots: int | None = None,
    loads: Annotated[list[Path] | None, typer.Option(metavar="TRACE")] = None,
    transfers: TransferOptions,
    reading: LayerOptions,
    output: Annotated[Path | None, typer.Option("--output", "-o")] = None,
    as_json: AsJson = False,
) -> None:
    """Order the transfers from one placement to another, in waves; every expert stays available.

    Prints the number of transfers, their bytes and their time. Both files must have the same
    layers.

    Options:
        old: File of the placement that runs.
        new: File of the placement to reach.
        gpus: Number of GPUs of OLD and NEW. [default: what the files say]
        new_gpus: Number of GPUs of NEW. [default: what the file says, or --gpus]
        nodes: Number of nodes that hold the GPUs. [default: what the files say, or 1]
        new_nodes: Number of nodes of NEW. [default: as --nodes]
        leaving: Numbers of the GPUs, as 13,14, that NEW takes for dead because they are to go. They
            still run, and can send what they hold.
        experts_at_once: Maximum number of experts that a GPU sends, and receives, in a wave.
        uplink_share: Maximum number of experts that a node sends, and receives, in a wave.
        spare_slots: Number of buffers on each GPU, each for one expert's weights.
        loads: Loads; repeat the option for several files. Layers that gain the most per expert sent
            go first.
        output: Write every transfer and copy to this .json file.
    """
    if output is not None:
        if output.suffix.lower() != _ENDING:
            raise FormatError(f"{output}: transfers end with {_ENDING}")
        check_writable(output, old, new, *(loads or ()))
    after_gpus = gpus if new_gpus is None else new_gpus
    after_nodes = nodes if new_nodes is None else new_nodes
    trace = None
    if loads:
        trace = reading.loads(loads, to_stderr=as_json)
        before = reading.placement(old, trace, gpus, nodes)
        after = reading.placement(new, trace, after_gpus, after_nodes)
    else:
        before = load_placement(old, gpus, nodes)
        after = load_placement(new, after_gpus, after_nodes, num_experts=before.num_experts)
        _check_same_layers(before, after, new)
    if dead is not None:
        after = after.without(gpus_from(dead, "--dead"))
    model = None if trace is None else trace.model
    rates = transfers.rates(after.cluster, after.num_experts, model)
    with working("ordering transfers"):
        found = migrate(
            before,
            after,
            experts_at_once=experts_at_once,
            uplink_share=uplink_share,
            spare_slots=spare_slots,
            leaving=() if leaving is None else gpus_from(leaving, "--leaving"),
            loads=None if trace is None else trace.loads,
            bytes_per_expert=rates.expert_bytes,
            bandwidth_within=rates.bandwidth_within,
            bandwidth_between=rates.bandwidth_between,
        )
    figures = _figures(found)
    if as_json:
        print_json({**figures, "output": output})
    else:
        print_migration(Console(), f"{old} to {new}", found)
    if output is not None:
        write_text(output, json.dumps({**figures, **_rows_of(found)}) + "\n")
        if not as_json:
            say(f"The transfers are in {output}.")


def _check_same_layers(before: Placement, after: Placement, path: Path) -> None:
    if before.layers and after.layers and before.layers != after.layers:
        raise FormatError(
            f"{path}: has layers {ranges(after.layers)}, and OLD has {ranges(before.layers)}: "
            "give loads, whose layers are then taken from both (--loads)"
        )


def _figures(found: Migration) -> dict[str, Any]:
    names = (
        *("num_transfers", "num_lost", "num_between_nodes", "num_waves", "fewest_waves"),
        *("spare_slots", "total_bytes", "bytes_between_nodes", "seconds"),
    )
    return {name: getattr(found, name) for name in names} | {
        "spare_slots": found.spare_slots.tolist()
    }


def _rows_of(found: Migration) -> dict[str, Any]:
    """Transfers in the order of waves, and copies inside GPUs in the order in which they go."""
    names = ("wave", "layer", "expert", "source", "source_slot", "target", "buffer", "slot")
    copied = ("wave", "layer", "gpu", "expert", "origin", "slot")
    return {"transfers": _objects(found, names), "copies": _objects(found.copies, copied)}


def _objects(columns: object, names: tuple[str, ...]) -> list[dict[str, int]]:
    values: list[NDArray[np.int64]] = [getattr(columns, name) for name in names]
    rows = zip(*(value.tolist() for value in values), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]
