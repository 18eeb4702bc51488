"""200 calls as vLLM makes them: `python vllm_calls.py TRACES` prints a digest of every answer.

Two models in turn, calls without load, and ranks that come and go, on the recorded windows of
gpt-oss.
"""

import hashlib
import logging
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from recorded import GPT_OSS, load_windows
from vllm.distributed.eplb.policy import EPLB_POLICIES

from eplb.engines.vllm import register

EXPERTS, SLOTS_PER_RANK = 32, 5
CALLS = 200


def digests(traces: Path) -> list[str]:
    """The digest of each answer; none is the engine's own policy's."""
    os.environ["EPLB_POLICY"] = "eplb"
    handler = logging.Handler()
    handler.emit = lambda record: _fail(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(lambda record: "own policy answers" in record.getMessage())
    logging.getLogger("vllm.eplb").addHandler(handler)
    register()
    found = []
    policy = EPLB_POLICIES["default"]
    loads = torch.from_numpy(load_windows(traces, GPT_OSS)).to(torch.int64)
    maps = [(torch.arange(40) % EXPERTS).repeat(layers, 1) for layers in (loads.shape[1], 1)]
    for call in range(CALLS):
        drafting = call % 5 == 4
        running = maps[drafting]
        window = loads[call % len(loads), : running.shape[0]]
        if call % 50 == 0:
            window = torch.zeros_like(window)
        # 8 ranks, then 10, then 8 again: the map of those that come is empty.
        num_ranks = 10 if 60 <= call < 120 else 8
        num_slots = num_ranks * SLOTS_PER_RANK
        if running.shape[1] < num_slots:
            empty = torch.full((running.shape[0], num_slots - running.shape[1]), -1)
            running = torch.cat([running, empty], dim=1)
        answer = policy.rebalance_experts(window, num_slots, 1, 1, num_ranks, running)
        assert int(answer.min()) >= 0
        maps[drafting] = answer
        found.append(hashlib.sha256(np.ascontiguousarray(answer.numpy()).tobytes()).hexdigest())
    return found


def _fail(said: str) -> None:
    raise AssertionError(said)


def send(answers: Connection, traces: Path) -> None:
    """Answer from another process."""
    answers.send(digests(traces))


if __name__ == "__main__":
    print(*digests(Path(sys.argv[1])), sep="\n")
