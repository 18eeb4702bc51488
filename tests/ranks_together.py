"""What ranks bring that level together, and what the process of each does."""

from datetime import timedelta
from typing import Literal

import numpy as np
import torch
from torch import distributed

import eplb
from eplb.torch import BatchDispatch

__all__ = ["OBJECTIVES", "PLACEMENT", "RANKS", "batches", "one_rank"]

CLUSTER = eplb.Cluster(num_gpus=4, slots_per_gpu=4)
PLACEMENT = eplb.Placement(np.array([[0, 1, 2, 3, 0, 4, 5, 3, 0, 6, 7, 1, 2, 4, 8, 0]]), 9, CLUSTER)
RANKS = 3
OBJECTIVES: tuple[Literal["tokens", "activated"], ...] = ("tokens", "activated")


def batches(seed: int) -> list[torch.Tensor]:
    """What each rank brings: of different sizes, padded, and one nothing at all."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(10, 0.5))
    sizes = [(20, 7, 0), (1, 1, 2), (64, 64, 64)][seed % 3]
    return [torch.from_numpy(rng.choice(np.arange(-1, 9), (size, 2), p=share)) for size in sizes]


def one_rank(rank: int, folder: str) -> None:
    """What a process does: level its tokens with the others', and write its slots."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(minutes=2),
    )
    slots = []
    for objective in OBJECTIVES:
        dispatch = BatchDispatch(PLACEMENT, 0, group=distributed.group.WORLD, objective=objective)
        slots += [dispatch(batches(seed)[rank]) for seed in range(6)]
    if rank == 0:  # compiled, beside others that are not
        dispatch.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    slots.append(dispatch(batches(2)[rank]))
    torch.save(slots, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
