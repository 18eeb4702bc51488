"""Ranks that level together, as processes of gloo: as one rank would that had all their tokens."""

from pathlib import Path

import pytest
import torch
from ranks_together import OBJECTIVES, PLACEMENT, RANKS, batches, one_rank
from torch.multiprocessing.spawn import spawn

from eplb.torch import BatchDispatch


@pytest.mark.filterwarnings("default")
def test_ranks_together_meet_what_one_rank_would(tmp_path: Path) -> None:
    spawn(one_rank, args=(str(tmp_path),), nprocs=RANKS)  # type: ignore[no-untyped-call]
    of_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    cases = [(objective, seed) for objective in OBJECTIVES for seed in range(6)]
    cases.append((OBJECTIVES[-1], 2))
    for (objective, seed), found in zip(cases, zip(*of_rank, strict=True), strict=True):
        alone = BatchDispatch(PLACEMENT, 0, objective=objective)
        # The queue of an expert is that of the first rank, then that of the next.
        assert torch.equal(torch.cat(found), alone(torch.cat(batches(seed))))
