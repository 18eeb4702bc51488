"""The baselines: DeepSeek's algorithm against a plain oracle, the start's against its own file."""

import importlib.util
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import torch
from hypothesis import given
from recorded import load_recorded
from strategies import Cell, cells, grouped_cells

from eplb import Cluster, LoadsError, Placement
from eplb.solver.greedy import greedy

pytestmark = pytest.mark.oracle


def packed(loads: list[float], num_packs: int) -> list[list[int]]:
    """Heaviest first onto the lightest pack with room."""
    size = len(loads) // num_packs
    if size == 1:
        return [[item] for item in range(len(loads))]
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    weight = [0.0] * num_packs
    for item in naive.falling(loads):
        room = [pack for pack in range(num_packs) if len(packs[pack]) < size]
        lightest = min(room, key=lambda pack: (weight[pack], pack))
        packs[lightest].append(item)
        weight[lightest] += loads[item]
    return packs


def planned(loads: list[float], num_groups: int, cluster: Cluster) -> list[int]:
    """One layer's slots, as DeepSeek's EPLB fills them."""
    num_nodes = cluster.num_nodes if num_groups % cluster.num_nodes == 0 else 1
    num_groups = num_groups if num_nodes > 1 else 1
    size = len(loads) // num_groups
    groups = [sum(loads[group * size : (group + 1) * size]) for group in range(num_groups)]
    slots = []
    for of_node in packed(groups, num_nodes):
        experts = [group * size + i for group in of_node for i in range(size)]
        weights = [loads[expert] for expert in experts]
        num_slots = cluster.num_slots // num_nodes
        counts = naive.adams(weights, num_slots, num_slots)
        replicas = [i for i, count in enumerate(counts) for _ in range(count)]
        shares = [weights[i] / counts[i] for i in replicas]
        for gpu in packed(shares, cluster.num_gpus // num_nodes):
            slots += [experts[replicas[item]] for item in gpu]
    return slots


@given(cells())
def test_flat_as_the_oracle(cell: Cell) -> None:
    phy2log = greedy(cell.loads, cell.cluster, 1, swaps=False)
    for row, loads in zip(phy2log.tolist(), cell.loads.tolist(), strict=True):
        assert row == planned(loads, 1, cell.cluster)


@given(grouped_cells())
def test_grouped_as_the_oracle(cell: Cell) -> None:
    phy2log = greedy(cell.loads, cell.cluster, cell.num_groups, swaps=False)
    for row, loads in zip(phy2log.tolist(), cell.loads.tolist(), strict=True):
        assert row == planned(loads, cell.num_groups, cell.cluster)


@given(cells())
def test_swaps_never_hurt(cell: Cell) -> None:
    num_experts = cell.loads.shape[1]
    plain, swapped = (
        Placement(greedy(cell.loads, cell.cluster, 1, swaps=swaps), num_experts, cell.cluster)
        for swaps in (False, True)
    )
    peak, lower = (each.gpu_load(cell.loads).max(axis=1) for each in (plain, swapped))
    assert (lower <= peak * (1.0 + 1e-12)).all()
    assert np.array_equal(plain.logcnt, swapped.logcnt)


@pytest.fixture(scope="module")
def start(seed_file: Path) -> Any:
    """The file that the project started from."""
    spec = importlib.util.spec_from_file_location("start_eplb", seed_file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.jit
@pytest.mark.parametrize(
    ("name", "slots", "gpus", "groups", "nodes"),
    [
        ("prefill_in512", 288, 32, 1, 1),
        ("prefill_in512", 320, 64, 8, 4),
        ("qwen3_235b", 160, 32, 1, 1),
        ("gptoss20b_domains_2048", 40, 8, 1, 1),
        ("gptoss20b_domains_2048", 64, 64, 1, 1),
    ],
)
def test_the_start_s_way_is_that_of_its_file(
    traces: Path, start: Any, name: str, slots: int, gpus: int, groups: int, nodes: int
) -> None:
    loads = load_recorded(traces, name)
    loads = loads[loads.any(axis=1)]
    cluster = Cluster.with_slots(slots, gpus, nodes)
    mine = Placement(greedy(loads, cluster, groups, swaps=True), loads.shape[1], cluster)
    answer = start.rebalance_experts(torch.from_numpy(loads), slots, groups, nodes, gpus)
    theirs = Placement(answer[0], loads.shape[1], cluster)
    assert np.array_equal(mine.logcnt, theirs.logcnt)
    # It adds in float32, so a tie may fall otherwise.
    assert mine.balancedness(loads) == pytest.approx(theirs.balancedness(loads), abs=1e-4)


def test_wrong_loads() -> None:
    with pytest.raises(LoadsError, match="loads have shape"):
        greedy([1.0, 2.0], Cluster(1, 1, 2), 1, swaps=True)
