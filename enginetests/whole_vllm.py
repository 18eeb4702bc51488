"""A rank of a whole vLLM engine on CPUs: its loop, scheduler, model, state, maps and transfers.

Ranks run as vLLM's `external_launcher` has them: an engine each, which step together. vLLM has no
EPLB on CPUs, so this fills in what is missing there, and nothing else:
- the check of the configuration that there is a GPU;
- `torch.Event` and streams (no_accelerator.py);
- the step from logical to physical experts, which vLLM has as a Triton kernel alone: the same in
  torch's operations (to_slots.py);
- experts of other ranks: vLLM's CPU kernel takes every id for one of its own;
- names of shared memory, which would be those of any engine that was killed on this machine;
- `EplbState` in the CPU's runner, made and started as the GPU's runner does.
"""

import hashlib
import logging
import os
from multiprocessing.connection import Connection
from typing import Any

import torch
from no_accelerator import without_accelerator
from tiny_model import SPARE
from to_slots import to_physical_and_record
from vllm import LLM, SamplingParams
from vllm.config import parallel
from vllm.distributed.device_communicators import cpu_communicator
from vllm.distributed.eplb import eplb_state
from vllm.model_executor.layers.fused_moe.experts import cpu_moe
from vllm.model_executor.layers.fused_moe.router import base_router
from vllm.model_executor.models.interfaces import get_mixture_of_experts_model
from vllm.v1.worker import cpu_model_runner

_MANY = 32
"""Tokens of a batch that is long enough to have shares of."""
_NEVER = torch.tensor(False)
"""Whether loads are counted."""


def stand_in() -> None:
    """Fill in what vLLM lacks on CPUs."""
    without_accelerator()
    shared = cpu_communicator._CPUSHMDistributed
    named = shared.make_group_name
    shared.make_group_name = lambda *of: (
        os.environ.get("MASTER_PORT", "") + named(of[-1]).strip("/")
    )
    platform = type(parallel.current_platform)
    allowing = type("Allowing", (platform,), {"is_cuda_alike": lambda _: True})
    parallel.current_platform = allowing()
    base_router.eplb_map_to_physical_and_record = to_physical_and_record
    kernel = cpu_moe.CPUUnquantizedExperts.apply
    load = cpu_model_runner.CPUModelRunner.load_model

    def apply(experts: Any, output: Any, hidden: Any, w1: Any, w2: Any, *rest: Any) -> None:
        weights, ids, activation, number, mine, *more = rest
        if mine is not None:
            here = mine[ids.long()]
            weights = torch.where(here < 0, 0.0, weights)
            ids = here.clamp(min=0).to(torch.int32)
        kernel(experts, output, hidden, w1, w2, weights, ids, activation, number, None, *more)

    def load_model(runner: Any, *args: Any, **kwargs: Any) -> None:
        load(runner, *args, **kwargs)
        if not runner.parallel_config.enable_eplb:
            return
        without_accelerator()  # the runner has put its own in place of events
        runner.eplb_state = eplb_state.EplbState(runner.parallel_config, runner.device)
        runner.eplb_state.device_index = 0
        model = runner._moe_model = get_mixture_of_experts_model(runner.model)
        runner.eplb_state.add_model(model, runner.model_config)
        if runner.eplb_state.is_async:
            runner.eplb_state.start_async_loop()
        runner.eplb_step(is_dummy=True, is_profile=True)

    def by_name(experts: Any, **given: Any) -> None:
        apply(experts, *given.values())

    cpu_moe.CPUUnquantizedExperts.apply = lambda self, *args, **kwargs: (
        apply(self, *args) if args else by_name(self, **kwargs)
    )
    cpu_model_runner.CPUModelRunner.load_model = load_model


class Chosen:
    """The slots that vLLM's router has given tokens, in batches of some size.

    Args:
        ranks: that the slots are on.

    Attributes:
        sums: `wrong`, slots of another expert than the token's; `longest`, entries of the longest
            row of slots; `peak`, tokens of the busier rank, and `own`, what they would be by
            vLLM's own choice; `by_rows` and `evenly`, squares of how far each slot's tokens are
            from its part of the row, and from an even part.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.sums = dict.fromkeys(("wrong", "longest", "peak", "own", "by_rows", "evenly"), 0.0)
        theirs = base_router.BaseRouter._apply_eplb_mapping

        def to_slots(router: Any, experts: torch.Tensor) -> torch.Tensor:
            slots: torch.Tensor = theirs(router, experts)
            if router.eplb_state is not None and len(experts) >= _MANY:
                self.see(router.eplb_state, experts.long(), slots.long())
            return slots

        base_router.BaseRouter._apply_eplb_mapping = to_slots

    def see(self, state: Any, experts: torch.Tensor, slots: torch.Tensor) -> None:
        """Add the experts and slots [tokens, k] of a batch in a layer."""
        rows, counts = state.logical_to_physical_map, state.logical_replica_count
        number, sums = len(state.expert_load_view), self.sums
        own = to_physical_and_record(experts, slots.new_zeros(number), rows, counts, _NEVER)
        sums["wrong"] += int((rows[experts] != slots[..., None]).all(dim=-1).sum())
        sums["longest"] = max(sums["longest"], int(counts.max()))
        for name, each in (("peak", slots), ("own", own)):
            of_rank = torch.bincount(each.flatten() * self.ranks // number, minlength=self.ranks)
            sums[name] += int(of_rank.max())
        taken = torch.bincount(slots.flatten(), minlength=number)
        for expert, count in enumerate(counts.tolist()):
            copies, entries = rows[expert, :count].unique(return_counts=True)
            mine = taken[copies].double()
            for name, part in (("by_rows", entries / count), ("evenly", 1.0 / len(copies))):
                sums[name] += float(((mine - mine.sum() * part) ** 2).sum())


def held(runner: Any) -> tuple[list[Any], list[list[str]]]:
    """The map [L, P] that is in force, and a digest of the weights in each slot of this rank."""
    (state,) = runner.eplb_state.model_states.values()
    digests = []
    for layer in state.model.expert_weights:
        slots = [
            b"".join(each.numpy().tobytes() for each in slot) for slot in zip(*layer, strict=True)
        ]
        digests.append([hashlib.blake2b(slot, digest_size=8).hexdigest() for slot in slots])
    return state.physical_to_logical_map.tolist(), digests


def serve(answers: Connection, rank: int, ranks: int, port: int, case: dict[str, Any]) -> None:
    """Generate for prompts in several rounds, while experts move; send what came of it.

    Args:
        answers: to send by.
        rank: of the engine's.
        ranks: how many there are.
        port: that they meet at.
        case: `environment`, variables; the folder of the `model`; whether there is `eplb`, with
            `balancing` beside what it has here; the `prompts` of each round.
    """
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **case["environment"],
        }
    )
    stand_in()
    chosen = Chosen(ranks)
    lines: list[str] = []
    # The engine takes away handlers when it configures its logs.
    for name in ("vllm.eplb", eplb_state.__name__):
        logging.getLogger(name).addFilter(lambda each: not lines.append(each.getMessage()))  # type: ignore[func-returns-value]
    balancing = {
        "num_redundant_experts": SPARE,
        "window_size": 8,
        "step_interval": 12,
        "communicator": "torch_gloo",
        **case["balancing"],
    }
    engine = LLM(
        case["model"],
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=len(case["prompts"][0]),
        kv_cache_memory_bytes=1 << 26,
        enable_prefix_caching=False,
        tensor_parallel_size=ranks,
        enable_expert_parallel=True,
        distributed_executor_backend="external_launcher",
        **({"enable_eplb": True, "eplb_config": balancing} if case["eplb"] else {}),
    )
    runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
    asked = SamplingParams(temperature=0.0, max_tokens=12, detokenize=False, ignore_eos=True)
    said: dict[str, Any] = {"tokens": [], "held": []}
    for prompts in case["prompts"]:
        if case["eplb"]:
            said["held"].append(held(runner))
        given = [{"prompt_token_ids": each} for each in prompts]
        done = engine.generate(given, asked, use_tqdm=False)
        said["tokens"].append([list(each.outputs[0].token_ids) for each in done])
    if case["eplb"]:
        said["held"].append(held(runner))
        said["policy"] = runner.eplb_state.policy.__name__
        said["chosen"] = chosen.sums
    answers.send(said | {"lines": lines})
