"""Options that several commands share, and what they mean."""

from pathlib import Path
from typing import Annotated

import typer

from eplb.cluster import Cluster

__all__ = [
    "AsJson",
    "FirstLayer",
    "Gpus",
    "Groups",
    "Merge",
    "Nodes",
    "Output",
    "Slots",
    "Threads",
    "TraceFile",
    "cluster_of",
]

Gpus = Annotated[int, typer.Option(help="GPUs (EP ranks) that share the experts of a layer.")]
Nodes = Annotated[int, typer.Option(help="Nodes that the GPUs stand on.")]
Slots = Annotated[
    int | None,
    typer.Option(
        help="Physical experts of a layer on all GPUs, a multiple of --gpus. "
        "[default: one spare slot on each GPU]",
        show_default=False,
    ),
]
Groups = Annotated[
    int, typer.Option(help="Groups that the model routes by; each stays on a node if nodes allow.")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write the placement here, as SGLang loads it (JSON)."),
]
Threads = Annotated[int | None, typer.Option(help="Most threads. [default: one a processor]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
TraceFile = Annotated[
    Path,
    typer.Argument(
        metavar="TRACE",
        help="Loads over time: a file that an engine or `eplb convert` wrote, or a folder of them.",
    ),
]
FirstLayer = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="The model's number of the first layer in the loads, where dense layers before it "
        "are left out of them.",
    ),
]
Merge = Annotated[
    int, typer.Option(metavar="N", help="Add up every N windows to one; a rest is left out.")
]


def cluster_of(
    num_experts: int, gpus: int, nodes: int, slots: int | None, *, spare: int = 1
) -> Cluster:
    """The cluster asked for: with `slots` in all, or with `spare` on each GPU more than the experts
    fill.
    """
    if slots is not None:
        return Cluster.with_slots(slots, gpus, nodes)
    bare = Cluster(gpus, nodes, 1)
    return Cluster(gpus, nodes, -(-num_experts // bare.num_gpus) + spare)
