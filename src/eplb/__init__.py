"""Expert Parallelism Load Balancer for mixture-of-experts inference.

`import eplb` is light: every name is loaded when it is first used, and numba with the planner.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from eplb import _moved

if TYPE_CHECKING:
    from eplb import cost, synthetic
    from eplb import torch as torch
    from eplb.cluster import Cluster
    from eplb.dispatching.dispatch import Dispatch, dispatch
    from eplb.engines.balancer import Balancer, Rebalance
    from eplb.errors import (
        ClusterError,
        EplbError,
        FormatError,
        LoadsError,
        MissingExtraError,
        OptionError,
        PlacementError,
        PolicyError,
        UnsolvedError,
    )
    from eplb.formats import load_placement, load_trace, save_placement, save_trace
    from eplb.loads import LoadTrace
    from eplb.moving.decide import Decision, decide
    from eplb.moving.frontier import Frontier, frontier
    from eplb.moving.migrate import Migration, migrate
    from eplb.moving.service import Service
    from eplb.placement import Placement
    from eplb.planning import forecast
    from eplb.planning.backtest import backtest
    from eplb.planning.batches import Batch
    from eplb.planning.drop_in import rebalance_experts
    from eplb.planning.pins import Pins
    from eplb.planning.plan import Plan, plan, warmup
    from eplb.planning.traffic import Traffic, other_nodes
    from eplb.replaying.compare import compare
    from eplb.replaying.replay import Replay, replay
    from eplb.replaying.sizing import size
    from eplb.replaying.sweep import sweep

_moved.install()

__version__ = "0.1.0"

__all__ = [
    "Balancer",
    "Batch",
    "Cluster",
    "ClusterError",
    "Decision",
    "Dispatch",
    "EplbError",
    "FormatError",
    "Frontier",
    "LoadTrace",
    "LoadsError",
    "Migration",
    "MissingExtraError",
    "OptionError",
    "Pins",
    "Placement",
    "PlacementError",
    "Plan",
    "PolicyError",
    "Rebalance",
    "Replay",
    "Service",
    "Traffic",
    "UnsolvedError",
    "__version__",
    "backtest",
    "compare",
    "cost",
    "decide",
    "dispatch",
    "forecast",
    "frontier",
    "load_placement",
    "load_trace",
    "migrate",
    "other_nodes",
    "plan",
    "rebalance_experts",
    "replay",
    "save_placement",
    "save_trace",
    "size",
    "sweep",
    "synthetic",
    "warmup",
]

_MODULE_OF = {
    "Balancer": "eplb.engines.balancer",
    "Rebalance": "eplb.engines.balancer",
    "Batch": "eplb.planning.batches",
    "Cluster": "eplb.cluster",
    "Decision": "eplb.moving.decide",
    "Dispatch": "eplb.dispatching.dispatch",
    "Frontier": "eplb.moving.frontier",
    "LoadTrace": "eplb.loads",
    "Migration": "eplb.moving.migrate",
    "Pins": "eplb.planning.pins",
    "Placement": "eplb.placement",
    "Plan": "eplb.planning.plan",
    "Replay": "eplb.replaying.replay",
    "Service": "eplb.moving.service",
    "Traffic": "eplb.planning.traffic",
    "backtest": "eplb.planning.backtest",
    "compare": "eplb.replaying.compare",
    "decide": "eplb.moving.decide",
    "dispatch": "eplb.dispatching.dispatch",
    "frontier": "eplb.moving.frontier",
    "load_placement": "eplb.formats",
    "load_trace": "eplb.formats",
    "migrate": "eplb.moving.migrate",
    "other_nodes": "eplb.planning.traffic",
    "plan": "eplb.planning.plan",
    "rebalance_experts": "eplb.planning.drop_in",
    "replay": "eplb.replaying.replay",
    "save_placement": "eplb.formats",
    "save_trace": "eplb.formats",
    "size": "eplb.replaying.sizing",
    "sweep": "eplb.replaying.sweep",
    "warmup": "eplb.planning.plan",
}


_PACKAGE_OF = {
    "cost": "eplb.cost",
    "forecast": "eplb.planning.forecast",
    "synthetic": "eplb.synthetic",
    "torch": "eplb.torch",
}


def __getattr__(name: str) -> object:
    if name in _PACKAGE_OF:  # eplb.torch too, in no list of names: it needs an extra
        return import_module(_PACKAGE_OF[name])
    if name not in __all__:
        raise AttributeError(f"module 'eplb' has no attribute {name!r}")
    value: object = getattr(import_module(_MODULE_OF.get(name, "eplb.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
