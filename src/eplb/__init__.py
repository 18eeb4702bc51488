"""Expert Parallelism Load Balancer for mixture-of-experts inference.

`import eplb` is light: every name is loaded when it is first used, and numba with the planner.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eplb.cluster import Cluster
    from eplb.drop_in import rebalance_experts
    from eplb.errors import (
        ClusterError,
        EplbError,
        FormatError,
        LoadsError,
        MissingExtraError,
        PlacementError,
        UnsolvedError,
    )
    from eplb.placement import Placement
    from eplb.planner import Plan, plan, warmup
    from eplb.trace import LoadTrace

__version__ = "0.1.0"

__all__ = [
    "Cluster",
    "ClusterError",
    "EplbError",
    "FormatError",
    "LoadTrace",
    "LoadsError",
    "MissingExtraError",
    "Placement",
    "PlacementError",
    "Plan",
    "UnsolvedError",
    "__version__",
    "plan",
    "rebalance_experts",
    "warmup",
]

_MODULE_OF = {
    "Cluster": "eplb.cluster",
    "LoadTrace": "eplb.trace",
    "Placement": "eplb.placement",
    "Plan": "eplb.planner",
    "plan": "eplb.planner",
    "rebalance_experts": "eplb.drop_in",
    "warmup": "eplb.planner",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'eplb' has no attribute {name!r}")
    value: object = getattr(import_module(_MODULE_OF.get(name, "eplb.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
