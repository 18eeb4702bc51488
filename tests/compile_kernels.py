"""Compile every kernel that plans, splits and tests use, before processes that would each wait.

Two processes at a time, which share out what either can compile without the other's. What is kept
already costs a few seconds.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from parts import pack, replicate

import eplb
from eplb.planning.engine import engine_placement
from eplb.solver.engine_rules import SGLANG, expected_parts
from eplb.torch import BatchDispatch

LOADS = np.array([[600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0]])
WINDOWS = np.stack([LOADS, LOADS[:, ::-1]])
CLUSTER = eplb.Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=3)
PLACEMENT = eplb.Placement(np.array([[0, 1, 2, 0, 1, 3, 0, 4, 5, 1, 6, 7]]), 8, CLUSTER)
TRAFFIC = eplb.Traffic(top_k=2, topk_groups=2, price=0.05)


def plans() -> None:
    """For an even split."""
    eplb.warmup()


def tables_and_parts() -> None:
    """What needs no plan."""
    for windows in (LOADS, WINDOWS):
        eplb.dispatch(PLACEMENT, windows).table()
    expected_parts(PLACEMENT.phy2log, 8, 4, 2, SGLANG)
    engine_placement(WINDOWS, CLUSTER)
    pack(np.ones((1, 4)), np.ones((1, 4), np.int64), 2)
    replicate(LOADS, 12, 4)
    BatchDispatch(PLACEMENT, 0)(torch.arange(8).reshape(4, 2))


def rules_and_uneven() -> None:
    """For GPUs that differ, an engine's rule, and pins."""
    for dispatch in ("even", "best"):
        eplb.plan(LOADS, CLUSTER, dispatch=dispatch, pins=eplb.Pins(gpus={0: 1}, apart=[(1, 2)]))
    eplb.plan(LOADS, eplb.Cluster(4, 1, slots_per_gpu=(4, 3, 3, 2)))
    eplb.warmup("sglang")
    eplb.warmup("ascend")


def levels_and_nodes() -> None:
    """For the best split, and at a price of nodes."""
    eplb.warmup("best")
    for current in (None, PLACEMENT):
        eplb.plan(WINDOWS, CLUSTER, num_groups=4, traffic=TRAFFIC, current=current)


ROUNDS: tuple[tuple[Callable[[], None], ...], ...] = (
    (plans, tables_and_parts),
    (levels_and_nodes, rules_and_uneven),
)

if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        for work in ROUNDS:
            for done in [processes.submit(each) for each in work]:
                done.result()
