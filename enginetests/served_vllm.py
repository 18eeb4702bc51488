"""vLLM's server on CPUs: `python served_vllm.py` and what `vllm serve` takes.

Each process of the server is spawned, and so imports this file before it does anything. Beside what
whole_vllm.py fills in, ranks of data parallelism need what they exchange tokens by.

Where VLLM_HELD names a folder, each rank writes there what it holds, at the start and whenever its
map changes, and the seconds of its longest step of EPLB.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from longest import timed
from torch import Tensor, distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.distributed.parallel_state import get_ep_group
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from whole_vllm import held, stand_in


def all_gatherv(self: Any, given: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
    """Rows of all ranks, each of which has another number of them."""
    if isinstance(given, list):
        return [all_gatherv(self, each, dim, sizes) for each in given]
    numbers = sizes or [len(given)] * self.world_size
    padded = given.new_zeros((max(numbers), *given.shape[1:]))
    padded[: len(given)] = given
    parts = [torch.empty_like(padded) for _ in numbers]
    distributed.all_gather(parts, padded, group=self.device_group)
    return torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])


def reduce_scatterv(self: Any, given: Tensor, dim: int = 0, sizes: list[int] | None = None) -> Any:
    """The sums over all ranks of this rank's rows."""
    total = given.clone()
    distributed.all_reduce(total, group=self.device_group)
    numbers = sizes or [len(total) // self.world_size] * self.world_size
    return torch.split(total, numbers)[self.rank_in_group].contiguous()


def writing_held(theirs: Any) -> Any:
    """A step of EPLB, after which is written what this rank holds, where its map has changed."""

    def eplb_step(runner: Any, *args: Any, **kwargs: Any) -> None:
        folder, rank = os.environ["VLLM_HELD"], get_ep_group().rank_in_group
        timed(folder, rank, lambda: theirs(runner, *args, **kwargs))
        (state,) = runner.eplb_state.model_states.values()
        if state.physical_to_logical_map.tolist() == getattr(runner, "held", None):
            return
        runner.held, digests = held(runner)
        with Path(folder, f"{rank}.jsonl").open("a") as file:
            file.write(json.dumps([runner.held, digests]) + "\n")

    return eplb_step


stand_in()
CpuCommunicator.all_gatherv = all_gatherv
CpuCommunicator.reduce_scatterv = reduce_scatterv
if "VLLM_HELD" in os.environ:
    CPUModelRunner.eplb_step = writing_held(CPUModelRunner.eplb_step)

if __name__ == "__main__":
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    ServeSubcommand.cmd(make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:]))
