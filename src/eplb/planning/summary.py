"""What a plan gains, as figures for `--json` and as text for a person, both from one object."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.balance import balancedness, ratios
from eplb.dispatching.rules import name_of
from eplb.placement import Placement
from eplb.planning.plan import Plan

__all__ = ["LayerSummary", "Summary", "summarize"]

_WORST = 5


@dataclass(frozen=True)
class LayerSummary:
    """One layer: balancedness of both layouts, and the plan's proven gap under its own rule."""

    layer: int
    contiguous: float
    plan: float
    gap: float


@dataclass(frozen=True)
class Summary:
    """The figures of a plan for windows [T, L, E]; layers with no load count for none of them.

    Attributes:
        gpus: G, dead ones too; dead: their numbers; slots: of a layer, on those alive.
        layers: L; dense_layers: those with no load.
        policy: "hierarchical" where groups stay on nodes, "global" otherwise.
        windows: T; planned_for: what they are, in words, where they are not loads as recorded.
        dispatch: name of the rule of dispatch that balancedness and loads are under.
        contiguous: balancedness of the layout that engines start with.
        plan: balancedness of the plan.
        planned_dispatch: name of the rule that the plan was made for; as_planned: balancedness of
            the plan under that rule.
        busiest_gpu_saves: share of its load that the busiest GPU is spared, mean over layers.
        gap_mean, gap_worst: peak / proven bound - 1, both under the rule planned for.
        duplicates: slots that hold an expert a second time on a GPU.
        worst_layers: the least balanced of the plan, the worst first.
        seconds: time of planning, kernels loaded before.
    """

    layers: int
    experts: int
    gpus: int
    dead: list[int]
    nodes: int
    slots: int
    groups: int
    policy: str
    dense_layers: list[int]
    windows: int
    planned_for: str | None
    dispatch: str
    contiguous: float
    plan: float
    planned_dispatch: str
    as_planned: float
    busiest_gpu_saves: float
    gap_mean: float
    gap_worst: float
    duplicates: int
    worst_layers: list[LayerSummary]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)


def summarize(
    loads: NDArray[np.float64],
    plan: Plan,
    num_groups: int,
    seconds: float,
    planned_for: str | None = None,
    dispatch: Any = "even",
) -> Summary:
    """Compare a plan with the contiguous layout on the windows [T, L, E] that it was made for,
    under a rule of dispatch as for `Placement.gpu_load`.
    """
    placement = plan.placement
    cluster = placement.cluster
    contiguous = Placement.contiguous(loads.shape[1], loads.shape[2], cluster)
    before, after = (each.gpu_load(loads, dispatch) for each in (contiguous, placement))
    loaded = np.flatnonzero(loads.any(axis=(0, 2)))
    ratio_before = np.nanmean(ratios(before, cluster.speeds)[:, loaded], axis=0)
    ratio_after = np.nanmean(ratios(after, cluster.speeds)[:, loaded], axis=0)
    peak_before, peak_after = before.max(axis=2), after.max(axis=2)
    busy = peak_before > 0.0
    gap = plan.gap[loaded]
    worst = np.argsort(ratio_after, kind="stable")[:_WORST]
    hierarchical = cluster.num_nodes > 1 and num_groups % cluster.num_nodes == 0
    return Summary(
        layers=placement.num_layers,
        experts=placement.num_experts,
        gpus=cluster.num_gpus,
        dead=list(cluster.dead),
        nodes=cluster.num_nodes,
        slots=cluster.num_held,
        groups=num_groups,
        policy="hierarchical" if hierarchical else "global",
        dense_layers=np.flatnonzero(~loads.any(axis=(0, 2))).tolist(),
        windows=loads.shape[0],
        planned_for=planned_for,
        dispatch=name_of(dispatch),
        contiguous=balancedness(before, speeds=cluster.speeds),
        plan=balancedness(after, speeds=cluster.speeds),
        planned_dispatch=plan.dispatch,
        as_planned=placement.balancedness(loads, plan.dispatch),
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
    )
