"""What a plan gains, as figures for `--json` and as text for a person, both from one object."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from eplb.balance import ratios
from eplb.placement import Placement
from eplb.planner import Plan

__all__ = ["LayerSummary", "Summary", "print_summary", "summarize"]

_WORST = 5


@dataclass(frozen=True)
class LayerSummary:
    """One layer: balancedness of both layouts, and the proven gap of the plan."""

    layer: int
    contiguous: float
    plan: float
    gap: float


@dataclass(frozen=True)
class Summary:
    """The figures of a plan for windows [T, L, E]; layers with no load count for none of them.

    Attributes:
        layers: L; dense_layers: those with no load.
        policy: "hierarchical" where groups stay on nodes, "global" otherwise.
        windows: T; planned_for: what they are, in words, where they are not loads as recorded.
        contiguous: balancedness of the layout that engines start with.
        plan: balancedness of the plan.
        busiest_gpu_saves: share of its load that the busiest GPU is spared, mean over layers.
        gap_mean, gap_worst: peak / proven bound - 1.
        duplicates: slots that hold an expert a second time on a GPU.
        worst_layers: the least balanced of the plan, the worst first.
        seconds: time of planning; first_seconds: of the first call, kernels loaded or compiled.
    """

    layers: int
    experts: int
    gpus: int
    nodes: int
    slots: int
    groups: int
    policy: str
    dense_layers: list[int]
    windows: int
    planned_for: str | None
    contiguous: float
    plan: float
    busiest_gpu_saves: float
    gap_mean: float
    gap_worst: float
    duplicates: int
    worst_layers: list[LayerSummary]
    seconds: float
    first_seconds: float

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)


def summarize(
    loads: NDArray[np.float64],
    plan: Plan,
    num_groups: int,
    seconds: float,
    first_seconds: float,
    planned_for: str | None = None,
) -> Summary:
    """Compare a plan with the contiguous layout on the windows [T, L, E] that it was made for."""
    placement = plan.placement
    cluster = placement.cluster
    contiguous = Placement.contiguous(loads.shape[1], loads.shape[2], cluster)
    before, after = contiguous.gpu_load(loads), placement.gpu_load(loads)
    loaded = np.flatnonzero(loads.any(axis=(0, 2)))
    ratio_before = np.nanmean(ratios(before)[:, loaded], axis=0)
    ratio_after = np.nanmean(ratios(after)[:, loaded], axis=0)
    peak_before, peak_after = before.max(axis=2), after.max(axis=2)
    busy = peak_before > 0.0
    gap = plan.gap[loaded]
    worst = np.argsort(ratio_after, kind="stable")[:_WORST]
    hierarchical = cluster.num_nodes > 1 and num_groups % cluster.num_nodes == 0
    return Summary(
        layers=placement.num_layers,
        experts=placement.num_experts,
        gpus=cluster.num_gpus,
        nodes=cluster.num_nodes,
        slots=cluster.num_slots,
        groups=num_groups,
        policy="hierarchical" if hierarchical else "global",
        dense_layers=np.flatnonzero(~loads.any(axis=(0, 2))).tolist(),
        windows=loads.shape[0],
        planned_for=planned_for,
        contiguous=contiguous.balancedness(loads),
        plan=placement.balancedness(loads),
        busiest_gpu_saves=float(np.mean(1.0 - peak_after[busy] / peak_before[busy]))
        if busy.any()
        else 0.0,
        gap_mean=float(gap.mean()) if loaded.size else 0.0,
        gap_worst=float(gap.max()) if loaded.size else 0.0,
        duplicates=placement.num_duplicates,
        worst_layers=[
            LayerSummary(
                int(loaded[i]), float(ratio_before[i]), float(ratio_after[i]), float(gap[i])
            )
            for i in worst
        ],
        seconds=seconds,
        first_seconds=first_seconds,
    )


def print_summary(console: Console, title: str, summary: Summary) -> None:
    """Print a plan's figures for a person."""
    console.print(Group(*_heading(title, summary), *_balance(summary), *_footing(summary)))


def _heading(title: str, summary: Summary) -> list[RenderableType]:
    dense = len(summary.dense_layers)
    layers = f"{summary.layers - dense} MoE layers"
    if dense:
        layers += f" (and {dense} with no load, spread evenly)"
    nodes = f" on {summary.nodes} nodes" if summary.nodes > 1 else ""
    lines: list[RenderableType] = [
        Text(title, style="bold"),
        Text(
            f"{layers} of {summary.experts} experts "
            f"in {summary.slots} slots on {summary.gpus} GPUs{nodes}"
        ),
    ]
    if summary.planned_for is not None:
        lines.append(Text(summary.planned_for))
    if summary.policy == "hierarchical":
        lines.append(Text(f"{summary.groups} expert groups, each kept on one node"))
    elif summary.groups > 1 and summary.nodes > 1:
        lines.append(
            Text(
                f"{summary.groups} expert groups do not divide over {summary.nodes} nodes: "
                "experts go anywhere"
            )
        )
    return lines


def _balance(summary: Summary) -> list[RenderableType]:
    if len(summary.dense_layers) == summary.layers:
        return [Text("No layer has any load: every expert is spread evenly.")]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("balancedness (mean / max GPU load)")
    table.add_column("contiguous", justify="right")
    table.add_column("plan", justify="right", style="bold")
    table.add_column("proven gap", justify="right")
    table.add_row(
        f"mean of {summary.layers - len(summary.dense_layers)} layers",
        f"{summary.contiguous:.4f}",
        f"{summary.plan:.4f}",
        f"{summary.gap_mean:.3%}",
    )
    for layer in summary.worst_layers:
        table.add_row(
            f"layer {layer.layer}",
            f"{layer.contiguous:.4f}",
            f"{layer.plan:.4f}",
            f"{layer.gap:.3%}",
            style="dim",
        )
    return [
        Text(),
        table,
        Text(),
        Text(
            f"The busiest GPU of a layer has {summary.busiest_gpu_saves:.0%} less to do. No plan "
            f"can better this one by more than {summary.gap_mean:.3%} on average, "
            f"{summary.gap_worst:.3%} in any layer."
        ),
    ]


def _footing(summary: Summary) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if summary.duplicates:
        lines.append(
            Text(
                f"{summary.duplicates} slots hold an expert a second time on a GPU: "
                "GPUs have more slots than there are experts."
            )
        )
    lines.append(
        Text(
            f"Planned in {_duration(summary.seconds)} "
            f"({_duration(summary.first_seconds)} the first time, which compiles or loads kernels)."
        )
    )
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1.0 else f"{seconds:.1f} s"
