"""A process that is a rank of an engine: a line of JSON in, what it did as a line of JSON out.

What comes in: the store and the place in the group, this rank's variables (None: no plug-in), and
calls. After each call the ranks meet, as they do in an engine that moves weights next.
"""

import json
import logging
import sys
import threading
import time
from contextlib import nullcontext
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import distributed

from eplb.engines import live, ranks, sglang
from eplb.engines.live import History
from eplb.engines.settings import Settings, settings_from
from eplb.engines.sglang import make_hook
from eplb.engines.start import compile_kernels
from eplb.engines.vllm import make_policy

LAYERS, EXPERTS, SLOTS = 2, 8, 3  # slots of a rank
ranks._SECONDS = 3.0


class Theirs:
    """An engine's own policy: experts in the order of their loads, over and over."""

    @classmethod
    def rebalance_experts(cls, weight: Any, num_slots: int, *_: Any) -> torch.Tensor:
        order = torch.argsort(-weight.double(), dim=1, stable=True)
        return order.repeat(1, num_slots // EXPERTS + 1)[:, :num_slots].contiguous()


def their_hook(
    tokens_per_expert: Any,
    num_physical_experts: int,
    num_local_physical_experts: int,
    num_groups: int | None,
    num_nodes: int,
    algorithm: Any,
) -> Any:
    return Theirs.rebalance_experts(tokens_per_expert[0], num_physical_experts), None, None


class SGLang:
    """SGLang's function with this planner around it, called as vLLM's policy is."""

    state: Any = None
    running: Any = None

    def __init__(self, settings: Settings, *, scaled: bool, may_die: bool) -> None:
        elastic = ModuleType("sglang.srt.elastic_ep.elastic_ep")
        location = ModuleType("sglang.srt.eplb.expert_location")
        if scaled:
            self.state = SimpleNamespace(has_scaled=True, active_ranks=torch.ones(4))
        if may_die:
            self.state = SimpleNamespace(has_scaled=False, active_ranks=torch.ones(4))
        manager = SimpleNamespace(instance=lambda: self.state)
        elastic.ElasticEPStateManager = manager  # type: ignore[attr-defined]
        location.get_global_expert_location_metadata = (  # type: ignore[attr-defined]
            lambda: SimpleNamespace(physical_to_logical_map_cpu=self.running)
        )
        for each in (elastic, location):
            parts = each.__name__.split(".")
            for depth in range(1, len(parts)):
                name = ".".join(parts[:depth])
                sys.modules.setdefault(name, ModuleType(name))
            sys.modules[each.__name__] = each
        self._hook = make_hook(settings)

    def rebalance_experts(self, weight: Any, num_slots: int, *rest: Any) -> Any:
        self.running = rest[-1]
        algorithm = SimpleNamespace(name="deepseek")
        return self._hook(their_hook, weight[None], num_slots, SLOTS, None, 1, algorithm)[0]


def made(given: dict[str, Any]) -> Any:
    if given["environment"] is None:
        return Theirs
    settings = settings_from(given["environment"])
    if given.get("engine") == "SGLang":
        scaled, elastic = given.get("scaled", False), given.get("elastic", False)
        return SGLang(settings, scaled=scaled, may_die=elastic)
    return make_policy(Theirs, settings)


def start(num_ranks: int) -> torch.Tensor:
    return (torch.arange(num_ranks * SLOTS) % EXPERTS).repeat(LAYERS, 1)


def call(policy: Any, running: torch.Tensor, wanted: dict[str, Any]) -> torch.Tensor:
    """One call of the engine's. Where it is for more ranks than run, theirs are empty."""
    num_slots = wanted.get("ranks", 4) * SLOTS
    empty = torch.full((LAYERS, max(0, num_slots - running.shape[1])), -1)
    running = torch.cat([running, empty], dim=1)
    loads = np.random.default_rng(wanted["loads"]).integers(1, 1000, (LAYERS, EXPERTS))
    faults: dict[str, Any] = {
        "raises": patch.object(live, "next_placement", side_effect=MemoryError("none is left")),
        "no history": patch.object(History, "add", lambda *given: given[-1][None]),
        "": nullcontext(),
    }
    with faults[wanted.get("fault", "")]:
        answer = policy.rebalance_experts(
            torch.from_numpy(loads), num_slots, 1, 1, num_slots // SLOTS, running
        )
    return torch.as_tensor(answer)


def meet(size: int) -> None:
    for _ in range(2 if size > 1 else 0):
        distributed.all_reduce(torch.zeros(1))


def serve(given: dict[str, Any], policy: Any, said: list[str]) -> dict[str, Any]:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{given['store']}",
        rank=given["rank"],
        world_size=given["size"],
        timeout=timedelta(seconds=30),
    )
    running = start(4)
    maps: list[Any] = []
    seconds: list[float] = []
    store = distributed.distributed_c10d._get_default_store()
    if given.get("elastic"):
        sglang._count_start()
        meet(given["size"])  # as ranks do in their first pass
    for wanted in given["calls"]:
        if wanted == "start again":  # as a process that knows nothing but what runs
            policy = made(given)
            ranks._met.clear()
            sglang._count_start()
            running = torch.tensor(json.loads(store.get("running")))
            store.set("started", "")
            continue
        if wanted == "await it":
            store.set("running", json.dumps(running.tolist()))
            store.wait(["started"])
            continue
        if "alive" in wanted:
            policy.state.active_ranks = torch.tensor(wanted["alive"])
        begin = time.perf_counter()
        if isinstance(wanted, list):
            # Two of the engine's threads, in this rank's order.
            answers: list[Any] = [None] * len(wanted)

            def work(place: int, one: dict[str, Any], old: torch.Tensor = running) -> None:
                answers[place] = call(policy, old, one)  # noqa: B023

            threads = []
            for place, one in enumerate(wanted):
                threads.append(threading.Thread(target=work, args=(place, one)))
                threads[-1].start()
                time.sleep(0.2)
            for thread in threads:
                thread.join(60.0)
                assert not thread.is_alive(), "a call of the engine's hangs"
            by_ranks = zip((one["ranks"] for one in wanted), answers, strict=True)
            answers = [answer for _, answer in sorted(by_ranks, key=lambda pair: pair[0])]
        else:
            answers = [call(policy, running, wanted)]
        seconds.append(time.perf_counter() - begin)
        maps += [answer.tolist() for answer in answers]
        running = answers[-1]
        if given.get("meet", True):
            meet(given["size"])
    distributed.destroy_process_group()
    told = [line for line in said if line.startswith("eplb: rebalance")]
    said = [line for line in said if line not in told]
    return {"maps": maps, "said": said, "told": told, "seconds": seconds}


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    for name in ("vllm.eplb", "sglang.eplb"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    compile_kernels(logging.getLogger("vllm.eplb"))
    policy = None
    tell("ready")
    for line in sys.stdin:
        given = json.loads(line)
        if not given.get("again"):
            policy = made(given)
        said.clear()
        tell(json.dumps(serve(given, policy, said)))


if __name__ == "__main__":
    main()
