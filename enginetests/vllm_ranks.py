"""One of several processes that run vLLM's own `EplbState` on CPUs, with weights that move.

    python vllm_ranks.py RANK RANKS STORE

It prints a line of JSON: what each rebalance did. Stand-ins, and why:
- the model: a real one needs its weights and GPUs. This one's are the number of the expert that
  each slot holds, so that a slot with another expert's weights is seen.
- the parallel configuration: vLLM's own checks for GPUs when it is made. Only what `EplbState`
  reads of it is here.
- `PIN_MEMORY`: vLLM pins memory unless it knows that it cannot, and without a GPU nothing can.
- `torch.Event` and the accelerator's stream: vLLM times its rebalances by the one and waits for the
  other, and without a GPU there is neither.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

LAYERS, EXPERTS, SPARE = 4, 16, 8
STEPS = 9


class Model:
    """What `MixtureOfExperts` asks for: layers of weights [slots of this rank, 3]."""

    num_moe_layers = LAYERS
    num_expert_groups = 1
    num_logical_experts = num_routed_experts = EXPERTS
    num_physical_experts = EXPERTS + SPARE
    num_redundant_experts = SPARE
    num_shared_experts = 0
    moe_layers: tuple[Any, ...] = ()

    def __init__(self, rank: int, num_ranks: int) -> None:
        self.num_local_physical_experts = self.num_physical_experts // num_ranks
        mine = np.arange(self.num_local_physical_experts) + rank * self.num_local_physical_experts
        experts = torch.tensor(mine % EXPERTS, dtype=torch.float32)
        self.expert_weights = [
            [(experts + 100 * layer)[:, None].repeat(1, 3)] for layer in range(LAYERS)
        ]

    def set_eplb_state(self, load: Any, log2phy: Any, logcnt: Any) -> None:
        """Keep what vLLM's layers would keep."""
        self.load, self.log2phy, self.logcnt = load, log2phy, logcnt


class Event:
    """`torch.Event` where there is no accelerator: all is done when it is called."""

    def __init__(self, **_: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, _: Any) -> float:
        return 0.0


def main() -> None:
    rank, num_ranks, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.Event = Event  # type: ignore[misc,assignment]
    torch.accelerator.current_stream = Event  # type: ignore[assignment]
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    from vllm.distributed import parallel_state
    from vllm.distributed.eplb import eplb_communicator, eplb_state

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
            use_async=False,
            window_size=2,
            step_interval=3,
            policy="default",
            communicator="torch_gloo",
            log_balancedness_interval=1,
        ),
    )
    model: Any = Model(rank, num_ranks)
    state = eplb_state.EplbState(config, torch.device("cpu"))
    named: Any = SimpleNamespace(model="m", compute_hash=lambda: "m")
    state.add_model(model, named)
    state.step(is_dummy=True, is_profile=True)
    running = state.model_states["m"]
    said: dict[str, Any] = {"policy": state.policy.__name__, "maps": [], "wrong": 0}
    draw = np.random.default_rng(rank)
    skew = np.random.default_rng(7).lognormal(0.0, 1.0, (LAYERS, EXPERTS))
    for _ in range(STEPS):
        tokens = draw.poisson(50.0 * skew)
        phy2log = running.physical_to_logical_map.numpy()
        share = tokens / running.logical_replica_count.numpy()
        load = np.take_along_axis(share, phy2log, axis=1)
        running.expert_load_pass.copy_(torch.from_numpy(load).to(torch.int32))
        state.step()
        phy2log = running.physical_to_logical_map.numpy()
        said["maps"].append(phy2log.tolist())
        mine = phy2log[:, rank * phy2log.shape[1] // num_ranks :][
            :, : phy2log.shape[1] // num_ranks
        ]
        held = np.stack([layer[0].numpy() for layer in model.expert_weights])
        wanted = mine + 100 * np.arange(LAYERS)[:, None]
        said["wrong"] += int((held != wanted[..., None]).sum())
        slots = model.log2phy.numpy()
        for layer in range(LAYERS):
            for slot, expert in enumerate(phy2log[layer]):
                said["wrong"] += int(slot not in slots[layer, expert])
    print(json.dumps(said), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
