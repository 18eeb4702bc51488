"""Processes that run vLLM's own `EplbState` on CPUs, with weights that move.

They are forked from one that has imported the engine (vllm_loaded.py), which takes longer than
cases do. A case is a rank's variables, whether the engine rebalances in the background (`async`),
and what goes wrong at the second plan (`fault`). The engine itself loads the plug-in where the case
says so (`loaded`), and a rank gives up waiting for others after so many seconds (`patience`).
Stand-ins, and why:
- the model: a real one needs its weights and GPUs. This one's are the number of the expert that
  each slot holds, so that a slot with another expert's weights is seen.
- the parallel configuration: vLLM's own checks for GPUs when it is made. Only what `EplbState`
  reads of it is here.
- `PIN_MEMORY`: vLLM pins memory unless it knows that it cannot, and without a GPU nothing can.
- `torch.Event` and the accelerator's streams: vLLM times its rebalances by the one and waits for
  the others, and without a GPU there is neither.
- what chooses experts (`routed`): drawn, and handed to the router's own step from experts to slots,
  whose Triton kernel is run in Triton's interpreter; vLLM has none for CPUs.
"""

import functools
import logging
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import vllm.distributed.eplb.eplb_state
from no_accelerator import without_accelerator
from to_slots import to_physical_and_record
from vllm.distributed import parallel_state
from vllm.distributed.eplb import eplb_communicator
from vllm.distributed.eplb.policy import EPLB_POLICIES, DefaultEplbPolicy

from eplb.engines import batches, live, log
from eplb.engines import ranks as compared
from eplb.engines.vllm import register

LAYERS, EXPERTS, SPARE = 4, 16, 8
STEPS = 9
TOKENS = 64


class Model:
    """What `MixtureOfExperts` asks for: layers of weights [slots of this rank, 3]."""

    num_moe_layers = LAYERS
    num_expert_groups = 1
    num_logical_experts = num_routed_experts = EXPERTS
    num_physical_experts = EXPERTS + SPARE
    num_redundant_experts = SPARE
    num_shared_experts = 0

    def __init__(self, rank: int, num_ranks: int) -> None:
        self.num_local_physical_experts = self.num_physical_experts // num_ranks
        mine = np.arange(self.num_local_physical_experts) + rank * self.num_local_physical_experts
        experts = torch.tensor(mine % EXPERTS, dtype=torch.float32)
        self.expert_weights = [
            [(experts + 100 * layer)[:, None].repeat(1, 3)] for layer in range(LAYERS)
        ]

        routed = os.environ.get("TRITON_INTERPRET")
        self.moe_layers: tuple[Any, ...] = tuple(layers()) if routed else ()

    def set_eplb_state(self, load: Any, log2phy: Any, logcnt: Any) -> None:
        """Keep what vLLM's layers would keep."""
        self.load, self.log2phy, self.logcnt = load, log2phy, logcnt
        for number, layer in enumerate(self.moe_layers):
            layer.eplb_state.set_layer_state(number, load, log2phy, logcnt)


def layers() -> Iterator[Any]:
    """Layers with vLLM's own router, of which the step from experts to slots is called."""
    from vllm.distributed.eplb.eplb_state import EplbLayerState
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    for _ in range(LAYERS):
        state = EplbLayerState()
        router = SimpleNamespace(eplb_state=state)
        to_slots = functools.partial(BaseRouter._apply_eplb_mapping, router)
        yield SimpleNamespace(eplb_state=state, to_slots=to_slots)


def route(state: Any, model: Any, named: Any, ids: Any, real: int) -> tuple[Any, int]:
    """Slots [L, tokens, k] of experts that tokens chose, by the engine's router, and how many
    loads of slots it counted wrongly. Where vLLM's own kernel chooses, what stands in for it in
    whole engines must choose the same.
    """
    state.prepare_forward(named, real)
    before, again = model.load.clone(), model.load.clone()
    slots = torch.stack(
        [layer.to_slots(mine) for layer, mine in zip(model.moe_layers, ids, strict=True)]
    )
    counted = np.stack(
        [np.bincount(each.ravel(), minlength=before.shape[1]) for each in slots[:, :real].numpy()]
    )
    counted *= bool(state.should_record_tensor)
    wrong = int(((model.load - before).numpy() != counted).sum())
    if os.environ.get("EPLB_DISPATCH") != "batch":
        for layer, rows in enumerate(zip(again, model.log2phy, model.logcnt, strict=True)):
            record = state.should_record_tensor
            same = to_physical_and_record(ids[layer], *rows, record, torch.tensor(real))
            wrong += int((same != slots[layer]).sum())
        wrong += int((again != model.load).sum())
    return slots, wrong


def parts_of(model: Model, phy2log: Any) -> tuple[Any, Any]:
    """How often each slot stands in its expert's row, and how long each row is."""
    slots, counts = model.log2phy.numpy(), model.logcnt.numpy()
    parts = np.zeros_like(phy2log)
    for layer, expert in np.ndindex(counts.shape):
        number = counts[layer, expert]
        row = slots[layer, expert, :number]
        assert (phy2log[layer, row] == expert).all()
        assert (slots[layer, expert, number:] == -1).all()
        parts[layer] += np.bincount(row, minlength=phy2log.shape[1])
    return parts, counts


_TO_SLOTS = "eplb_map_to_physical_and_record"


def _with_slots() -> list[Any]:
    """Modules of vLLM that have the step from experts to slots."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("vllm.") and _TO_SLOTS in vars(module)
    ]


def fails_at_the_second(fault: str, *_: Any, seen: list[int], theirs: Any) -> Any:
    """`next_placement` on a rank that lacks memory, or what others remember."""
    seen.append(1)
    if len(seen) == 2 and fault == "raises":
        raise MemoryError("none is left")
    windows, *rest = _
    return theirs(windows[-1:] if len(seen) == 2 and fault == "history" else windows, *rest)


def none_is_left(_: Any) -> Any:
    """A trial of a dispatcher on a rank that lacks memory."""
    raise MemoryError("none is left")


def run(rank: int, num_ranks: int, store: Path, case: dict[str, Any]) -> dict[str, Any]:
    for name in [name for name in os.environ if name.startswith("EPLB_")]:
        del os.environ[name]
    os.environ.update(case["environment"])
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vllm.eplb").addHandler(handler)
    # As the engine sets it, where it serves.
    logging.getLogger("vllm.eplb").setLevel(logging.INFO)
    log._told.clear()
    compared._SECONDS = case.get("patience", 20.0)
    EPLB_POLICIES["default"] = DefaultEplbPolicy
    if case.get("loaded"):
        load_plugins()
    from vllm.distributed.eplb import eplb_state

    own = {name: getattr(eplb_state.EplbState, name) for name in ("add_model", "step")}
    commits = {name: getattr(eplb_state, name) for name in vars(eplb_state) if "_commit" in name}
    if not case.get("loaded"):
        register()
    theirs = live.next_placement
    if case["fault"]:
        live.next_placement = functools.partial(
            fails_at_the_second, case["fault"], seen=[], theirs=theirs
        )
    tried = batches._tried
    if case["fault"] == "tries":
        vars(batches)["_tried"] = none_is_left
    eplb_communicator.PIN_MEMORY = eplb_state.PIN_MEMORY = False
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks
    )
    groups = {
        name: parallel_state.GroupCoordinator(
            [list(range(num_ranks))], rank, "gloo", use_device_communicator=False, group_name=name
        )
        for name in ("ep", "eplb")
    }
    parallel_state._EP, parallel_state._EPLB = groups["ep"], groups["eplb"]
    parallel_state._NODE_COUNT = 1

    config = SimpleNamespace(
        enable_elastic_ep=False,
        num_ubatches=1,
        eplb_config=SimpleNamespace(
            use_async=case["async"],
            window_size=2,
            step_interval=3,
            policy="default",
            communicator="torch_gloo",
            log_balancedness_interval=1,
            migration_batching_enabled=False,
        ),
    )
    model: Any = Model(rank, num_ranks)
    state = eplb_state.EplbState(config, torch.device("cpu"))
    state.device_index = 0
    named: Any = SimpleNamespace(model="m", compute_hash=lambda: "m")
    own_slots = {module: vars(module).get(_TO_SLOTS) for module in _with_slots()}
    state.add_model(model, named)
    state.step(is_dummy=True, is_profile=True)
    state.start_async_loop()
    running = state.model_states["m"]
    said: dict[str, Any] = {
        "policy": state.policy.__name__,
        "maps": [],
        "wrong": 0,
        "parts": [],
        "slots": [],
    }
    draw = np.random.default_rng(rank)
    skew = np.random.default_rng(7).lognormal(0.0, 1.0, (LAYERS, EXPERTS))
    longest = 0.0
    for _ in range(STEPS):
        tokens = draw.poisson(50.0 * skew)
        phy2log = running.physical_to_logical_map.numpy()
        parts, counts = parts_of(model, phy2log)
        share = np.take_along_axis(tokens, phy2log, axis=1) * parts
        load = share / np.take_along_axis(counts, phy2log, axis=1)
        if model.moe_layers:
            # The last rows pad, and hold experts, as where a batch is filled up for a graph.
            chosen = skew / skew.sum(axis=1, keepdims=True)
            ids = np.stack([draw.choice(EXPERTS, (TOKENS, 2), p=each) for each in chosen])
            slots, wrong = route(state, model, named, torch.from_numpy(ids), TOKENS - 8)
            said["wrong"] += wrong + int(
                (
                    np.take_along_axis(phy2log, slots.numpy().reshape(LAYERS, -1), axis=1)
                    != ids.reshape(LAYERS, -1)
                ).sum()
            )
            said["slots"].append(slots.tolist())
        else:
            running.expert_load_pass.copy_(torch.from_numpy(load).to(torch.int32))
        begin = time.perf_counter()
        state.step()
        while running.rebalanced:  # in the background, a layer at a time
            if state._all_ranks_result_ready(running):
                eplb_state._move_to_workspace(running, groups["ep"].rank_in_group)
            time.sleep(0.005)
        longest = max(longest, time.perf_counter() - begin)
        phy2log = running.physical_to_logical_map.numpy()
        said["maps"].append(phy2log.tolist())
        mine = phy2log[:, rank * phy2log.shape[1] // num_ranks :][
            :, : phy2log.shape[1] // num_ranks
        ]
        held = np.stack([layer[0].numpy() for layer in model.expert_weights])
        wanted = mine + 100 * np.arange(LAYERS)[:, None]
        said["wrong"] += int((held != wanted[..., None]).sum())
        parts, counts = parts_of(model, phy2log)
        said["wrong"] += int((parts == 0).sum()) if counts.max() < SPARE else 0
        said["parts"].append(parts.tolist())
    if model.moe_layers and os.environ.get("EPLB_DISPATCH") == "table":
        every = torch.arange(EXPERTS).repeat(1024, 1)
        slots = [layer.to_slots(every).numpy().ravel() for layer in model.moe_layers]
        said["taken"] = [np.bincount(each, minlength=phy2log.shape[1]).tolist() for each in slots]
    logging.getLogger("vllm.eplb").removeHandler(handler)
    live.next_placement, vars(batches)["_tried"] = theirs, tried
    for name, method in own.items():
        setattr(eplb_state.EplbState, name, method)
    for name, function in commits.items():
        setattr(eplb_state, name, function)
    for module, function in own_slots.items():
        setattr(module, _TO_SLOTS, function)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return said | {"lines": lines, "seconds": longest}


def load_plugins() -> None:
    """Have the engine load the plug-in as it does, before it imports its EPLB state."""
    from vllm.plugins import load_general_plugins

    del sys.modules["vllm.distributed.eplb.eplb_state"], vllm.distributed.eplb.eplb_state
    load_general_plugins()


def rank_of(
    answers: Connection, rank: int, number: int, folder: Path, cases: list[dict[str, Any]]
) -> None:
    """Run the cases of one rank, and send what it did in each."""
    without_accelerator()
    answers.send([run(rank, number, folder / f"store{i}", case) for i, case in enumerate(cases)])
