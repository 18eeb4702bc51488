"""The loads that the study plans for: recorded ones, and those of the synthetic presets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import eplb
from eplb import Cluster, LoadTrace, synthetic

__all__ = [
    "FULL",
    "GPT_OSS",
    "MOST_PLANNED",
    "QUICK",
    "SIX",
    "Loads",
    "Six",
    "Size",
    "Steps",
    "read_loads",
]

SIX, GPT_OSS = "DeepSeek-V3, recorded", "gpt-oss-20b, recorded"
_TOKENS = 2048
"""Of a recorded gpt-oss window."""
_LONGEST_RECORDED = 64
MOST_PLANNED = 32
"""Windows that a plan is made from, but in the study of history."""
_PRESETS = (
    ("deepseek-v3", 100_000, 32),
    ("deepseek-v3-mix", 100_000, 32),
    ("gpt-oss-20b", 2048, 8),
)
"""Name, tokens of a window, GPUs."""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        served: windows of a preset that plans are scored on, and the windows from one to the next.
        layers: of the DeepSeek presets.
        history: most windows of a preset that a plan is made from.
        most: recorded windows served at most.
    """

    served: int
    stride: int
    layers: int
    history: int
    most: int | None


FULL = Size(served=40, stride=8, layers=16, history=128, most=None)
QUICK = Size(served=2, stride=1, layers=2, history=32, most=2)


@dataclass(frozen=True, eq=False)
class Six:
    """Workloads without an order: [W, L, E] loads."""

    name: str
    loads: NDArray[np.float64]
    cluster: Cluster


@dataclass(frozen=True, eq=False)
class Steps:
    """Windows in order.

    Attributes:
        name: what figures call them.
        loads: [T, L, E].
        cluster: one spare slot on each GPU.
        tokens: of a window.
        served: numbers of the windows that plans from 32 windows or fewer are scored on.
        history: most windows that a plan is made from.
        served_late: numbers of the windows that come after as many.
        spare_stride: of how many served windows the study of spare slots takes one.
    """

    name: str
    loads: NDArray[np.float64]
    cluster: Cluster
    tokens: int
    served: Sequence[int]
    history: int
    served_late: Sequence[int]
    spare_stride: int


@dataclass(frozen=True, eq=False)
class Loads:
    """All that the study looks at."""

    sixes: list[Six]
    steps: list[Steps]


def read_loads(traces: Path, size: Size) -> Loads:
    """The recorded loads of a folder, and made ones.

    Raises:
        EplbError: a folder without the loads, or with too few windows.
    """
    six = _moe_layers(eplb.load_trace(traces / "deepseek_v3"))
    if len(six) < 2:
        raise eplb.LoadsError(f"{traces / 'deepseek_v3'} has 1 workload: to hold one out takes 2")
    paths = sorted(traces.glob("gptoss*.npz"))
    if not paths:
        raise eplb.FormatError(f"{traces}: there is no gptoss*.npz of counts [T, L, E]")
    ordered = _moe_layers(eplb.load_trace(paths[0]))
    first = _LONGEST_RECORDED
    if len(ordered) <= first:
        raise eplb.LoadsError(
            f"{paths[0]} has {len(ordered)} windows: to plan from {first} and score the next takes "
            f"{first + 1}"
        )
    served, late = (range(start, len(ordered))[: size.most] for start in (MOST_PLANNED, first))
    cluster = _one_spare(ordered, 8)
    steps = [Steps(GPT_OSS, ordered, cluster, _TOKENS, served, first, late, 1)]
    steps += [_preset(*preset, size) for preset in _PRESETS]
    return Loads([Six(SIX, six, _one_spare(six, 32))], steps)


def _preset(name: str, tokens: int, gpus: int, size: Size) -> Steps:
    fewer = {"num_layers": size.layers, "num_dense_layers": 0} if "deepseek" in name else {}
    end = size.history + size.served * size.stride
    made = synthetic.trace(name, num_windows=end, tokens_per_window=tokens, **fewer)
    served = range(size.history, end, size.stride)
    cluster = _one_spare(made.loads, gpus)
    return Steps(f"{name}, synthetic", made.loads, cluster, tokens, served, size.history, served, 2)


def _moe_layers(trace: LoadTrace) -> NDArray[np.float64]:
    return np.ascontiguousarray(trace.loads[:, ~trace.dense])


def _one_spare(loads: NDArray[np.float64], num_gpus: int) -> Cluster:
    return Cluster(num_gpus=num_gpus, slots_per_gpu=-(-loads.shape[2] // num_gpus) + 1)
