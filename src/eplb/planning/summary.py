"""What a plan gains, as figures for `--json` and as text for a person, both from one object."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eplb.balance import balancedness, mean_and_peak, ratios
from eplb.cluster import check_shape
from eplb.dispatching.rules import name_of
from eplb.placement import Placement
from eplb.planning.engine import engine_placement
from eplb.planning.plan import Plan, plan
from eplb.planning.traffic import Traffic, mean_other_nodes
from eplb.solver.arrays import F64

_WORST = 5
_COSTS = 0.02
"""Balancedness that groups on nodes may cost before it is said."""


@dataclass(frozen=True)
class LayerSummary:
    """One layer: balancedness as in `Summary`, and the plan's proven gap under its own rule."""

    layer: int
    running: float | None
    engine: float
    contiguous: float
    plan: float
    gap: float


@dataclass(frozen=True)
class Summary:
    """The figures of a plan for windows [T, L, E]; layers with no load count for none of them.

    Attributes:
        gpus: G, dead ones too; dead: their numbers; slots: of a layer, on those alive.
        layers: L; dense_layers: numbers of those with no load.
        policy: "hierarchical" where groups stay on nodes, "global" otherwise.
        windows: T; planned_for: what they are, in words, where they are not loads as recorded.
        dispatch: name of the rule of dispatch that balancedness and loads are under.
        running: balancedness of what runs, None where that is not known.
        engine: balancedness of what engines plan by themselves.
        contiguous: balancedness of the layout that engines start with.
        plan: balancedness of the plan.
        planned_dispatch: name of the rule that the plan was made for; as_planned: balancedness of
            the plan under that rule.
        busiest_gpu_saves: share of its load that the busiest GPU is spared, mean over layers, from
            what runs, or from the contiguous layout where that is not known; engine_saves: the same
            from what engines plan by themselves.
        gap_mean, gap_worst: peak / proven bound - 1, both under the rule planned for.
        objective: what the plan keeps low on the busiest GPU; peak_mean, bound_mean: that and its
            proven bound, mean over layers.
        duplicates: slots that hold an expert a second time on a GPU.
        worst_layers: the least balanced of the plan, the worst first.
        seconds: time of planning, kernels loaded before.
        other_nodes: distinct other nodes that a token is sent to, mean over layers, by the names of
            the placements above; None where the traffic is not known.
        node_price: what it may cost at most that a token is sent to one node fewer, None without a
            price.
        anywhere: balancedness, under the rule planned for, of a fast plan with experts anywhere,
            where groups stay on nodes; else None.
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
    running: float | None
    engine: float
    contiguous: float
    plan: float
    planned_dispatch: str
    as_planned: float
    busiest_gpu_saves: float
    engine_saves: float
    gap_mean: float
    gap_worst: float
    objective: str
    peak_mean: float
    bound_mean: float
    duplicates: int
    worst_layers: list[LayerSummary]
    seconds: float
    other_nodes: dict[str, float] | None = None
    node_price: float | None = None
    anywhere: float | None = None

    def of_nodes(self) -> list[str]:
        """What nodes do in the plan, in sentences."""
        groups = f"{self.groups} expert groups"
        if self.nodes == 1:
            return []
        if self.policy == "hierarchical":
            lines = [f"Each of the {groups} stays on one node."]
            if self.anywhere is not None and self.anywhere - self.as_planned > _COSTS:
                lines.append(
                    f"That costs {self.anywhere - self.as_planned:.4f} of balancedness: plans with "
                    f"experts anywhere have {self.anywhere:.4f}, this one {self.as_planned:.4f}. "
                    "--node-price weighs balance against the nodes that tokens are sent to."
                )
            return lines
        if self.node_price is not None:
            return [
                f"Experts may go to any node. That a token is sent to one node fewer may cost "
                f"{self.node_price:g} of a GPU's mean load."
            ]
        if self.groups > 1:
            why = f"{groups} do not divide over {self.nodes} nodes"
            if self.groups % self.nodes == 0:
                why = f"The GPUs differ, or do not divide over {self.nodes} nodes as {groups} do"
            return [f"{why}, so experts may go to any node."]
        if self.other_nodes is None and self.planned_dispatch in ("even", "best"):
            return [
                f"The {self.nodes} nodes change nothing in this plan: --groups keeps each expert "
                "group on one, and --traffic with --node-price has tokens sent to fewer."
            ]
        return []

    def of_objective(self, split: str) -> str:
        """How far the plan is from what no plan can improve on, `split` in words, in a sentence."""
        peak, bound = self.peak_mean, self.bound_mean
        if self.objective == "activated":
            return (
                f"In a step, the busiest GPU touches {peak:.2f} experts of a layer on average, and "
                f"no less than {bound:.2f} with any plan."
            )
        if self.objective == "time":
            return (
                f"In a step, a layer is estimated to take {peak * 1e6:,.1f} us on average, and no "
                f"less than {bound * 1e6:,.1f} us with any plan."
            )
        return (
            f"No plan can improve on this one{split} by more than {self.gap_mean:.3%} on average, "
            f"or {self.gap_worst:.3%} in any layer."
        )

    def of_tokens(self) -> list[str]:
        """How many nodes tokens are sent to, in a sentence, where that is known."""
        nodes = self.other_nodes
        if nodes is None:
            return []
        now = f", and {nodes['running']:.2f} now" if "running" in nodes else ""
        return [
            f"A token is sent to {nodes['plan']:.2f} other nodes, for {nodes['engine']:.2f} by the "
            f"engine's own planner{now}, if copies take the tokens of their own node first."
        ]

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)


def summarize(
    loads: F64,
    made: Plan,
    num_groups: int,
    seconds: float,
    planned_for: str | None = None,
    dispatch: Any = "even",
    running: Placement | None = None,
    traffic: Traffic | None = None,
) -> Summary:
    """Compare a plan with what runs, with what engines plan by themselves, and with the contiguous
    layout, on the windows [T, L, E] that it was made for, under a rule of dispatch as for
    `Placement.gpu_load`.
    """
    placement = made.placement
    cluster = placement.cluster
    others = {
        "engine": engine_placement(loads, cluster, num_groups),
        "contiguous": Placement.contiguous(loads.shape[1], loads.shape[2], cluster),
        "plan": placement,
    }
    if running is not None:
        others["running"] = running
    load = {name: each.gpu_load(loads, dispatch) for name, each in others.items()}
    loaded = np.flatnonzero(loads.any(axis=(0, 2)))
    ratio = {
        name: np.nanmean(ratios(each, cluster.speeds)[:, loaded], axis=0)
        for name, each in load.items()
    }
    score = {name: balancedness(each, speeds=cluster.speeds) for name, each in load.items()}
    peak = {name: mean_and_peak(each, cluster.speeds)[1] for name, each in load.items()}
    gap = made.gap[loaded]
    worst = np.argsort(ratio["plan"], kind="stable")[:_WORST]
    numbers = placement.layers or range(placement.num_layers)
    price = None if traffic is None else traffic.price
    on_nodes = check_shape(loads.shape[2], cluster, num_groups)
    hierarchical = on_nodes > 1 and cluster.survivors.even and price is None
    anywhere = None
    if hierarchical and loaded.size:
        apart = plan(loads, cluster, dispatch=made.dispatch, effort="fast").placement
        anywhere = apart.balancedness(loads, made.dispatch)
    nodes = None
    if traffic is not None and loaded.size:
        nodes = {
            name: mean_other_nodes(each, loads, traffic, num_groups=num_groups)
            for name, each in others.items()
        }
    return Summary(
        layers=placement.num_layers,
        experts=placement.num_experts,
        gpus=cluster.num_gpus,
        dead=list(cluster.dead),
        nodes=cluster.num_nodes,
        slots=cluster.num_held,
        groups=num_groups,
        policy="hierarchical" if hierarchical else "global",
        dense_layers=[numbers[layer] for layer in np.flatnonzero(~loads.any(axis=(0, 2)))],
        windows=loads.shape[0],
        planned_for=planned_for,
        dispatch=name_of(dispatch),
        running=score.get("running"),
        engine=score["engine"],
        contiguous=score["contiguous"],
        plan=score["plan"],
        planned_dispatch=made.dispatch,
        as_planned=placement.balancedness(loads, made.dispatch),
        busiest_gpu_saves=_spared(peak.get("running", peak["contiguous"]), peak["plan"]),
        engine_saves=_spared(peak["engine"], peak["plan"]),
        gap_mean=float(gap.mean()) if loaded.size else 0.0,
        gap_worst=float(gap.max()) if loaded.size else 0.0,
        objective=made.objective,
        peak_mean=float(made.peak[loaded].mean()) if loaded.size else 0.0,
        bound_mean=float(made.bound[loaded].mean()) if loaded.size else 0.0,
        duplicates=placement.num_duplicates,
        worst_layers=[
            LayerSummary(
                numbers[loaded[i]],
                float(ratio["running"][i]) if "running" in ratio else None,
                float(ratio["engine"][i]),
                float(ratio["contiguous"][i]),
                float(ratio["plan"][i]),
                float(gap[i]),
            )
            for i in worst
        ],
        seconds=seconds,
        other_nodes=nodes,
        node_price=price,
        anywhere=anywhere,
    )


def _spared(before: F64, after: F64) -> float:
    """Share of its load [T, L] that the busiest GPU is spared, mean over windows and layers."""
    busy = before > 0.0
    return float(np.mean(1.0 - after[busy] / before[busy])) if busy.any() else 0.0
