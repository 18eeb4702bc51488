"""Recorded loads of real models: exact peaks, no duplicates, small gaps, not worse than the seed.

"The seed" is the algorithm that the project started from; it lies beside the recorded loads.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from parts import place_groups
from recorded import DEEPSEEK_V3, GPT_OSS, QWEN3, load_recorded, load_windows

from eplb import Cluster, Placement, Plan, plan

# Slots, GPUs, nodes, groups: by the number of experts, so that few and many slots are on a GPU.
CELLS = {
    256: [(288, 32, 1, 1), (320, 64, 1, 1), (288, 144, 1, 1), (288, 32, 4, 8), (320, 64, 8, 8)],
    128: [(160, 32, 1, 1), (144, 16, 1, 1), (192, 64, 1, 1), (288, 144, 1, 1), (160, 32, 4, 8)],
    32: [(40, 8, 1, 1), (48, 16, 1, 1), (64, 32, 1, 1), (40, 4, 1, 1), (48, 8, 2, 4)],
}
NUM_EXPERTS = dict.fromkeys(DEEPSEEK_V3, 256) | dict.fromkeys(QWEN3, 128) | {GPT_OSS: 32}
# Above this, speed is worth more.
GOOD_ENOUGH = 0.9995

every_cell = pytest.mark.parametrize(
    ("name", "cell"),
    [(name, cell) for name, size in NUM_EXPERTS.items() for cell in CELLS[size]],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)


@pytest.fixture(scope="module")
def seed(seed_file: Path) -> Callable[..., Any]:
    """The seed's `rebalance_experts`."""
    pytest.importorskip("torch", reason="the seed is written in torch")
    spec = importlib.util.spec_from_file_location("seed_eplb", seed_file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rebalance_experts: Callable[..., Any] = module.rebalance_experts
    return rebalance_experts


def made_for(loads: NDArray[np.float64], cell: tuple[int, int, int, int]) -> Plan:
    num_slots, num_gpus, num_nodes, num_groups = cell
    return plan(loads, Cluster.with_slots(num_slots, num_gpus, num_nodes), num_groups=num_groups)


@every_cell
def test_recorded_loads(traces: Path, name: str, cell: tuple[int, int, int, int]) -> None:
    loads = load_recorded(traces, name)
    made = made_for(loads, cell)
    placement = made.placement
    assert placement == Placement(placement.phy2log, loads.shape[1], placement.cluster)
    assert placement.num_duplicates == 0
    assert np.array_equal(made.peak, placement.gpu_load(loads).max(axis=-1))
    assert (made.bound <= made.peak).all()
    idle = loads.sum(axis=1) == 0.0
    assert not made.peak[idle].any()
    assert not made.gap[idle].any()
    # Dense layers, which have no load, are spread evenly.
    counts = placement.logcnt[idle]
    assert not counts.size or np.ptp(counts) <= 1


@every_cell
def test_not_worse_than_the_seed(
    traces: Path, seed: Callable[..., Any], name: str, cell: tuple[int, int, int, int]
) -> None:
    import torch

    # The seed takes seconds for all layers.
    loads = load_recorded(traces, name)[::3]
    num_slots, num_gpus, num_nodes, num_groups = cell
    made = made_for(loads, cell)
    ours = made.placement.balancedness(loads)
    if ours < GOOD_ENOUGH:
        phy2log = seed(torch.tensor(loads), num_slots, num_groups, num_nodes, num_gpus)[0]
        theirs = Placement(phy2log, loads.shape[1], made.placement.cluster).balancedness(loads)
        assert ours >= theirs


@pytest.mark.parametrize("name", NUM_EXPERTS)
def test_gap_where_the_mean_is_the_bound(traces: Path, name: str) -> None:
    """With five slots on a GPU or more, and no groups that tie experts to a node."""
    loads = load_recorded(traces, name)
    cells = [
        (num_slots, num_gpus, num_nodes, num_groups)
        for num_slots, num_gpus, num_nodes, num_groups in CELLS[NUM_EXPERTS[name]]
        if num_slots // num_gpus >= 5 and num_nodes == 1
    ]
    gaps = []
    for cell in cells:
        made = made_for(loads, cell)
        mean = loads.sum(axis=1) / cell[1]
        gaps.append(made.gap[(mean > 0.0) & (made.bound <= mean * (1.0 + 1e-12))])
        assert gaps[-1].max(initial=0.0) <= 0.005
        assert not gaps[-1].size or gaps[-1].mean() <= 0.001
    assert sum(gap.size for gap in gaps) > loads.shape[0] / 2


@pytest.mark.parametrize("name", NUM_EXPERTS)
def test_groups_on_nodes_are_the_proven_best(traces: Path, name: str) -> None:
    loads = load_recorded(traces, name)
    num_layers, num_experts = loads.shape
    cluster = Cluster.with_slots(num_experts + 32, 16, 4)
    made = plan(loads, cluster, num_groups=8)
    group_loads = loads.reshape(num_layers, 8, -1).sum(axis=2)
    node_of_group, proven = place_groups(group_loads, 4)
    assert proven.all()
    best = np.zeros((num_layers, 4))
    np.add.at(best, (np.arange(num_layers)[:, None], node_of_group), group_loads)
    on_nodes = made.placement.gpu_load(loads).reshape(num_layers, 4, 4).sum(axis=2)
    assert on_nodes.max(axis=1) == pytest.approx(best.max(axis=1), rel=1e-9)


def test_windows_of_gpt_oss(traces: Path) -> None:
    """Small windows, with experts that no token chose and many ties."""
    for window in load_windows(traces, GPT_OSS)[::15]:
        for slots_per_gpu in (3, 5):
            made = plan(window, Cluster(16, 1, slots_per_gpu))
            assert made.placement.num_duplicates == 0
            assert (made.bound <= made.peak).all()
            assert np.array_equal(made.peak, made.placement.gpu_load(window).max(axis=-1))
