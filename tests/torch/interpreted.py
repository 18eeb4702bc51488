"""Triton's kernels in its interpreter, against the torch operations: a process of its own, because
the interpreter is chosen when kernels are read.

    TRITON_INTERPRET=1 python tests/torch/interpreted.py NUMBER
"""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import eplb
from eplb.torch import batch, kernels


def layer(rng: np.random.Generator, num_gpus: int, size: int, num_experts: int) -> Any:
    """A layer whose copies may share a GPU and whose slots may be empty."""
    spare = num_gpus * size - num_experts
    row = np.r_[np.arange(num_experts), rng.integers(-1, num_experts, spare)]
    cluster = eplb.Cluster(num_gpus=num_gpus, slots_per_gpu=size)
    return SimpleNamespace(
        phy2log=rng.permutation(row)[None], num_experts=num_experts, cluster=cluster
    )


def ids_of(
    rng: np.random.Generator, tokens: int, k: int, num_experts: int, dtype: torch.dtype
) -> torch.Tensor:
    share = rng.dirichlet(np.full(num_experts + 1, 0.5))
    ids = rng.choice(np.arange(-1, num_experts), (tokens, k), p=share)
    return torch.from_numpy(ids).to(dtype)


def main() -> None:
    """Compare as many cases as asked for; the first ones have what is hardest."""
    torch.set_num_threads(1)
    shapes = (
        (8, 6, 32, 150, 4, torch.int64),  # several blocks of ids
        (3, 4, 7, 20, 2, torch.int32),
        (4, 2, 8, 30, 1, torch.int64),  # no expert has two copies
        (1, 5, 3, 9, 2, torch.int16),  # all copies share the GPU
        (6, 5, 11, 600, 3, torch.int32),
        (16, 3, 33, 64, 4, torch.int64),
        (5, 3, 4, 0, 2, torch.int64),
    )
    for number in range(int(sys.argv[1])):
        rng = np.random.default_rng(number)
        num_gpus, size, num_experts, tokens, k, dtype = shapes[number % len(shapes)]
        placed = layer(rng, num_gpus, size, num_experts)
        activated = number % 3 == 1
        lasting = number % 4 == 0
        first = layer(rng, num_gpus, size, num_experts) if lasting else placed
        dispatch = batch.BatchDispatch(
            first, 0, objective="activated" if activated else "tokens", lasting=lasting
        )
        if lasting:
            dispatch.update(placed)
        dispatch._kernels = kernels
        ids = ids_of(rng, tokens, k, num_experts, dtype)
        limit = (None, torch.tensor(tokens * 2 // 3), tokens // 2)[number % 3]
        if number % 2:
            # Ranks that level together: this one is the second of three.
            dispatch._group, dispatch._rank, dispatch._num_ranks = object(), 1, 3
            others = torch.from_numpy(rng.integers(0, 40, (3, num_experts)))

            def gathered(counts: torch.Tensor, *_: Any, others: Any = others) -> torch.Tensor:
                return torch.cat((others[:1], counts[None], others[2:])).to(torch.int64)

            vars(batch)["_gathered"] = gathered
        expected = dispatch(ids, limit)
        found = dispatch._by_kernels(ids, limit)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), f"case {number}"
        if number == 4:
            whole = torch.compile(dispatch._by_kernels, fullgraph=True, backend="aot_eager")
            assert torch.equal(whole(ids, limit), expected)


if __name__ == "__main__":
    main()
