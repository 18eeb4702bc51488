"""What plans for several windows are compared on: loads that they see, others that score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import eplb
from eplb import Cluster, LoadTrace, synthetic

__all__ = [
    "HISTORY", "PARTS", "RULES", "Case", "Cell", "Loads", "all_seen", "from_one", "growing",
    "held_out", "in_order", "make_cells",
]  # fmt: skip

Loads = NDArray[np.float64]

PARTS = ("held-out", "all-six", "from-one", "in-order", "growth")
RULES = {
    "even": ("held-out", "all-six", "in-order", "growth"),
    "best": ("held-out", "from-one", "in-order"),
}
"""Rules of dispatch that plans are made for and scored under, and the parts of each."""

HISTORY = 32
"""Windows that a plan is made from where they come in order."""
_ORDERED_WINDOWS, _ORDERED_TOKENS = 105, 2048
"""Of the made windows in order."""
_GROWTH = (1, 2, 4, 8, 16, 32, 64)
_GROWTH_SHAPE = (94, 512)
_SPREAD, _NOISE = 0.7, 0.4
"""Standard deviations of the log of loads: of experts, and of an expert between windows."""


@dataclass(frozen=True, eq=False)
class Case:
    """What one plan is made from and what it is scored on: [T, L, E] and [K, L, E] loads."""

    seen: Loads
    scored: Loads


@dataclass(frozen=True, eq=False)
class Cell:
    """Cases on one cluster, that make up one figure.

    Attributes:
        part: one of `PARTS`.
        name: what tables call it.
        cluster: what is planned for.
        cases: one plan each.
        recorded: whether the loads are a model's, for which the bars of balance are.
        dispatch: the rule that is planned for and scored.
    """

    part: str
    name: str
    cluster: Cluster
    cases: list[Case]
    recorded: bool
    dispatch: str = "even"


def make_cells(traces: Path | None, parts: Sequence[str], dispatch: str = "even") -> list[Cell]:
    """The cells of some parts under a rule of dispatch, from recorded loads, or from made ones
    where there is no folder.

    Raises:
        EplbError: a folder without the loads, or with too few windows.
    """
    recorded = traces is not None
    best = dispatch == "best"
    parts = [part for part in parts if part in RULES[dispatch]]
    cells: list[Cell] = []
    if {"held-out", "all-six", "from-one"} & set(parts):
        six = _six(traces)
        if "held-out" in parts:
            cells += [held_out(six, gpus, recorded=recorded) for gpus in (32, 64)]
            if best:
                cells.append(held_out(six, 32, recorded=recorded, spare=2))
        if "all-six" in parts:
            cells.append(all_seen(six, 32, recorded=recorded))
        if "from-one" in parts:
            cells += [from_one(six, 32, recorded=recorded, spare=spare) for spare in (1, 2)]
    if "in-order" in parts:
        ordered = _ordered(traces)
        cells += [in_order(ordered, gpus, HISTORY, recorded=recorded) for gpus in (8, 16)]
        if best:
            cells.append(in_order(ordered, 8, HISTORY, recorded=recorded, spare=2))
    if "growth" in parts:
        cells += growing(_GROWTH, *_GROWTH_SHAPE, 64)
    return [replace(cell, dispatch=dispatch) for cell in cells]


def _six(traces: Path | None) -> Loads:
    if traces is None:
        return _moe_layers(synthetic.workloads("deepseek-v3"))
    loads = _moe_layers(eplb.load_trace(traces / "deepseek_v3"))
    if len(loads) < 2:
        raise eplb.LoadsError(f"{traces / 'deepseek_v3'} has 1 workload: to hold one out takes 2")
    return loads


def _ordered(traces: Path | None) -> Loads:
    if traces is None:
        size = {"num_windows": _ORDERED_WINDOWS, "tokens_per_window": _ORDERED_TOKENS}
        return _moe_layers(synthetic.trace("gpt-oss-20b", **size))
    paths = sorted(traces.glob("gptoss*.npz"))
    if not paths:
        raise eplb.FormatError(f"{traces}: there is no gptoss*.npz of counts [T, L, E]")
    loads = _moe_layers(eplb.load_trace(paths[0]))
    if len(loads) <= HISTORY:
        raise eplb.LoadsError(
            f"{paths[0]} has {len(loads)} windows: to plan from {HISTORY} and score the next takes "
            f"{HISTORY + 1}"
        )
    return loads


def _moe_layers(trace: LoadTrace) -> Loads:
    return np.ascontiguousarray(trace.loads[:, ~trace.dense])


def _with_spare(num_experts: int, num_gpus: int, spare: int = 1) -> Cluster:
    """A cluster whose GPUs have so many slots more than the experts need."""
    return Cluster(num_gpus=num_gpus, slots_per_gpu=-(-num_experts // num_gpus) + spare)


def _titled(what: str, cluster: Cluster) -> str:
    return f"{what}, {cluster.num_slots} slots on {cluster.num_gpus} GPUs"


def held_out(loads: Loads, num_gpus: int, *, recorded: bool, spare: int = 1) -> Cell:
    """Each window left out once, and scored by the plan from all others."""
    cluster = _with_spare(loads.shape[2], num_gpus, spare)
    cases = [Case(np.delete(loads, t, axis=0), loads[t : t + 1]) for t in range(len(loads))]
    name = _titled(f"DeepSeek-V3, 1 of {len(loads)} workloads held out", cluster)
    return Cell("held-out", name, cluster, cases, recorded)


def from_one(loads: Loads, num_gpus: int, *, recorded: bool, spare: int = 1) -> Cell:
    """All windows but one, scored by the plan from that one."""
    cluster = _with_spare(loads.shape[2], num_gpus, spare)
    cases = [Case(loads[t : t + 1], np.delete(loads, t, axis=0)) for t in range(len(loads))]
    name = _titled(f"DeepSeek-V3, from 1 of {len(loads)} workloads to the others", cluster)
    return Cell("from-one", name, cluster, cases, recorded)


def all_seen(loads: Loads, num_gpus: int, *, recorded: bool) -> Cell:
    """One plan from all windows, scored on each of them."""
    cluster = _with_spare(loads.shape[2], num_gpus)
    name = _titled(f"DeepSeek-V3, all {len(loads)} workloads seen", cluster)
    return Cell("all-six", name, cluster, [Case(loads, loads)], recorded)


def in_order(loads: Loads, num_gpus: int, history: int, *, recorded: bool, spare: int = 1) -> Cell:
    """Each window from number `history` on, scored by the plan from the `history` before it."""
    cluster = _with_spare(loads.shape[2], num_gpus, spare)
    ends = range(history, len(loads))
    cases = [Case(loads[t - history : t], loads[t : t + 1]) for t in ends]
    name = _titled(f"gpt-oss, next window after {history}", cluster)
    return Cell("in-order", name, cluster, cases, recorded)


def growing(
    numbers: Sequence[int], num_layers: int, num_experts: int, num_gpus: int
) -> Iterator[Cell]:
    """More and more windows of log-normal loads, scored on one more."""
    generator = np.random.default_rng(0)
    base = generator.normal(0.0, _SPREAD, (num_layers, num_experts))
    noise = generator.normal(0.0, _NOISE, (max(numbers) + 1, num_layers, num_experts))
    loads = np.exp(base + noise) * 1000.0
    # 640 slots for 512 experts on 64 GPUs: two to spare on each.
    cluster = Cluster(num_gpus=num_gpus, slots_per_gpu=-(-num_experts // num_gpus) + 2)
    for number in numbers:
        name = f"{num_layers}x{num_experts}:{cluster.num_slots}/{num_gpus}, T = {number}"
        case = Case(loads[:number], loads[-1:])
        yield Cell("growth", name, cluster, [case], recorded=False)
