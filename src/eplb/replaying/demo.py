"""The question of a newcomer, answered on made-up loads: what does balancing like this gain?

Three ways to serve the same mixed traffic are replayed: what vLLM and SGLang do today, this planner
where an expert's tokens are split evenly over its copies, and this planner where they are split
best. Each re-plans before every window from what came before, and is scored on that window.
"""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from eplb.checks import Budget, number_of_threads
from eplb.cluster import Cluster
from eplb.cost import estimate
from eplb.cost.gpus import GPUS
from eplb.cost.models import MODELS
from eplb.loads import LoadTrace
from eplb.placement import Placement
from eplb.planning.forecast import Recent
from eplb.replaying.compare import score
from eplb.replaying.policies import POLICIES, Moving, warm_up
from eplb.replaying.replay import replay
from eplb.synthetic import trace as made_up

PRESET = "deepseek-v3-mix"
WINDOWS = 16
TOKENS = 3_000_000
"""Tokens of a window: vLLM plans for its last 1,000 steps, here with about 94 tokens on each of 32
GPUs."""
GPU, MODEL = "H200", "DeepSeek-V3"
_TOKENS_PER_GPU = 128.0
"""What the report's estimate takes where nothing else is said."""
_HISTORY = 16
_BUDGET = Budget(share=0.05)
"""Windows planned for and most moves of a re-plan, as the plug-ins have them."""


@dataclass(frozen=True)
class Way:
    """What one way to serve the loads gave.

    Attributes:
        name: of it, as a stranger would call it.
        dispatch: the rule by which tokens were split over the copies of their expert.
        balancedness: mean GPU load / max GPU load, mean over windows and layers, none seen before.
        moved: share of the slots of layers with load that received an expert at a re-plan, mean.
        bytes_moved: the same as weights, in bytes.
        tokens_per_second: estimated, through all GPUs; expert weights that move take no time in it.
    """

    name: str
    dispatch: str
    balancedness: float
    moved: float
    bytes_moved: float
    tokens_per_second: float


@dataclass(frozen=True)
class Demo:
    """The ways side by side, the engines' own first.

    Attributes:
        ways: what each gave.
        windows: windows that were scored.
        layers: MoE layers; experts: of each.
        gpus, nodes, slots: the cluster.
        last: the last placement of the last way.
        trace: the loads.
    """

    ways: tuple[Way, ...]
    windows: int
    layers: int
    experts: int
    gpus: int
    nodes: int
    slots: int
    last: Placement
    trace: LoadTrace

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        left_out = {"ways", "last", "trace"}
        figures = {name: value for name, value in vars(self).items() if name not in left_out}
        return {
            **figures,
            "ways": [asdict(way) for way in self.ways],
            "gpu": GPU,
            "model": MODEL,
            "tokens_per_gpu": _TOKENS_PER_GPU,
        }


def warm_up_demo() -> None:
    """Compile the kernels that the demo needs, or load them.

    What only the best split needs is compiled by a second process meanwhile, where nothing is kept
    yet; if that fails, this one compiles it after all.
    """
    from eplb.solver.jit import is_kept
    from eplb.solver.level_search import _place_layers

    beside = None
    if not is_kept(_place_layers) and number_of_threads(None) > 1:
        with suppress(OSError):
            beside = subprocess.Popen(
                [sys.executable, "-c", "import eplb.replaying.policies as p; p.compile_bending()"],
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
    warm_up(POLICIES["deepseek"])
    warm_up(Moving(Recent(), dispatch="even"))
    if beside is not None:
        beside.wait()
    warm_up(Moving(Recent(), dispatch="best"))


def demo(
    cluster: Cluster, *, num_groups: int = 1, seed: int = 0, threads: int | None = None
) -> Demo:
    """Replay the three ways on loads that behave like DeepSeek-V3's where kinds of requests mix.

    Args:
        cluster: the GPUs and their slots.
        num_groups: groups that the model routes by.
        seed: of the loads.
        threads: most threads of this planner.

    Raises:
        EplbError: a cluster that does not hold 256 experts, or a seed that is none.
    """
    trace = made_up(PRESET, num_windows=WINDOWS, tokens_per_window=TOKENS, seed=seed)
    ours = Moving(Recent(), effort="fast", threads=threads, budget=_BUDGET)
    # Engines plan for their last window alone.
    asked = (
        ("what vLLM and SGLang do today", POLICIES["deepseek"], 1, "even"),
        ("eplb, tokens split evenly", ours, _HISTORY, "even"),
        ("eplb, tokens split best", ours, _HISTORY, "best"),
    )
    ways = []
    for name, policy, history, rule in asked:
        found = replay(
            trace,
            cluster,
            policy,
            num_groups=num_groups,
            history=history,
            expert_bytes=MODELS[MODEL].expert_bytes,
            dispatch=rule,
        )
        scored = score(found)
        step = sum(
            estimate(
                placement,
                trace.loads[window],
                GPUS[GPU],
                MODELS[MODEL],
                tokens_per_gpu=_TOKENS_PER_GPU,
                dispatch=rule,
            ).step_seconds
            for window, placement in zip(found.windows, found.placements, strict=True)
        )
        ways.append(
            Way(
                name=name,
                dispatch=rule,
                balancedness=scored.balancedness,
                moved=scored.moved or 0.0,
                bytes_moved=scored.bytes_per_plan or 0.0,
                tokens_per_second=_TOKENS_PER_GPU * cluster.num_gpus * found.num_steps / step,
            )
        )
    return Demo(
        ways=tuple(ways),
        windows=found.num_steps,
        layers=int((~trace.dense).sum()),
        experts=trace.num_experts,
        gpus=cluster.num_gpus,
        nodes=cluster.num_nodes,
        slots=cluster.num_slots,
        last=found.placements[-1],
        trace=trace,
    )
