"""A placement that vLLM starts with, on a stand-in for the engine's state."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="vLLM shows tensors")

from eplb import Cluster, Placement, plan  # noqa: E402
from eplb.engines import log, ranks, vllm  # noqa: E402
from eplb.engines.ranks import Agreement, Member  # noqa: E402
from eplb.engines.settings import Settings  # noqa: E402
from eplb.formats.placements import save_placement  # noqa: E402

LAYERS, EXPERTS, RANKS, SLOTS = 3, 16, 2, 20
INTERVAL = 12
CLUSTER = Cluster(RANKS, 1, SLOTS // RANKS)
NUMBERS = (3, 4, 5)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_told", set())


@pytest.fixture
def placement() -> Placement:
    loads = np.random.default_rng(1).lognormal(5.0, 1.0, (LAYERS, EXPERTS))
    return plan(loads, CLUSTER, effort="fast").placement


class Theirs:
    @classmethod
    def rebalance_experts(cls, *_: Any) -> Any:
        return first()


def first() -> Any:
    return (torch.arange(SLOTS) % EXPERTS).repeat(LAYERS, 1)


class State:
    """What vLLM's `EplbState` does with steps, with loads or without any."""

    def __init__(self, policy: Any, *, elastic: bool = False, idle: bool = False) -> None:
        self.policy = policy
        self.parallel_config = SimpleNamespace(enable_elastic_ep=elastic)
        self.expert_rearrangement_step = INTERVAL - INTERVAL // 4
        self.expert_rearrangement_step_interval = INTERVAL
        self.idle = idle
        self.map = first()
        self.rearranged: list[int] = []
        self.steps = 0

    def step(self, is_dummy: bool = False, is_profile: bool = False) -> None:
        if is_profile:
            self.rearrange(torch.zeros((LAYERS, EXPERTS)))
            return
        self.steps += 1
        self.expert_rearrangement_step += 1
        if self.expert_rearrangement_step >= INTERVAL:
            self.expert_rearrangement_step = 0
            loads = np.random.default_rng(self.steps).lognormal(5.0, 1.0, (LAYERS, EXPERTS))
            self.map = self.rearrange(torch.from_numpy(loads) * (not self.idle))
            self.rearranged.append(self.steps)

    def rearrange(self, loads: Any) -> Any:
        return self.policy.rebalance_experts(loads, SLOTS, 1, 1, RANKS, self.map)


def model(**other: Any) -> Any:
    known = {
        "num_moe_layers": LAYERS,
        "num_logical_experts": EXPERTS,
        "num_physical_experts": SLOTS,
        "num_local_physical_experts": SLOTS // RANKS,
        "moe_layers": [
            SimpleNamespace(layer_name=f"model.layers.{n}.mlp.experts") for n in NUMBERS
        ],
    }
    return SimpleNamespace(**known | other)


def served(path: Path | None, passes: int = 8, of: Any = None, **kind: bool) -> State:
    """An engine that has started, tried what a rearrangement costs, and run some passes."""
    policy = vllm.make_policy(Theirs, Settings(initial=path))
    state = State(policy, **kind)
    policy.eplb_initial.read(state, of or model())
    state.map = first()
    for number in range(passes + 1):
        policy.eplb_initial.step(State.step, state, is_profile=number == 0)
    return state


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize(("to", "ending"), [("vllm", "json"), ("deepseek", "npz")])
def test_it_is_in_force_after_the_first_pass_and_plans_come_as_before(
    idle: bool, to: Any, ending: str, placement: Placement, tmp_path: Path
) -> None:
    path = tmp_path / f"placement.{ending}"
    save_placement(placement, path, to=to, layers=NUMBERS)
    started = served(path, 1, idle=idle)
    assert np.array_equal(started.map, placement.phy2log)
    later = served(path, 8, idle=idle)
    assert later.rearranged == [1, 3]
    assert served(None, 8, idle=idle).rearranged == [3]
    moved = Placement(later.map.numpy(), EXPERTS, CLUSTER).moves_from(placement)
    assert moved <= 0.05 * LAYERS * SLOTS


def test_rows_of_dense_layers_are_left_out(placement: Placement, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    rows = np.concatenate([first().numpy(), placement.phy2log])
    every = Placement(rows, EXPERTS, CLUSTER)
    save_placement(every, path, to="sglang")
    assert np.array_equal(served(path, 1).map, placement.phy2log)


def of_another_model(path: Path, placement: Placement) -> State:
    return served(path, of=model(num_moe_layers=2, moe_layers=()))


def of_other_experts(path: Path, placement: Placement) -> State:
    return served(path, of=model(num_logical_experts=17))


def for_other_ranks(path: Path, placement: Placement) -> State:
    return served(path, of=model(num_local_physical_experts=5))


def missing(path: Path, placement: Placement) -> State:
    path.unlink()
    return served(path)


def no_placement(path: Path, placement: Placement) -> State:
    path.write_text('{"loads": [1]}')
    return served(path)


def elastic(path: Path, placement: Placement) -> State:
    return served(path, elastic=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (of_another_model, "has 3 layers of 20 slots, and the engine runs 2 of 20"),
        (of_other_experts, "has experts 0 to 15, expected 0 to 16: it is of another model"),
        (for_other_ranks, "is for 2 GPUs, but 4 are given"),
        (missing, "does not exist"),
        (no_placement, "is no placement"),
        (elastic, "does not go with elastic expert parallelism"),
    ],
)
def test_one_that_does_not_do_costs_a_line_and_the_engine_serves_on(
    wrong: Callable[[Path, Placement], State],
    said: str,
    placement: Placement,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "placement.json"
    save_placement(placement, path, to="vllm", layers=NUMBERS)
    state = wrong(path, placement)
    assert state.rearranged == [3]
    assert torch.equal(state.map, served(None).map)
    lines = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert said in lines[0]
    assert "vLLM starts with its own layout" in lines[0]


def test_a_draft_model_that_is_not_in_the_file_is_nothing_to_tell(
    placement: Placement, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "placement.json"
    save_placement(placement, path, to="vllm", layers=NUMBERS)
    policy = vllm.make_policy(Theirs, Settings(initial=path))
    state = State(policy)
    policy.eplb_initial.read(state, model(num_moe_layers=1, moe_layers=[]))
    policy.eplb_initial.read(state, model())
    policy.eplb_initial.step(State.step, state)
    assert np.array_equal(state.map, placement.phy2log)
    assert not caplog.text


@pytest.mark.parametrize("odd", ["file", "memory"])
def test_ranks_that_have_read_something_else_do_not_use_it(
    odd: str,
    placement: Placement,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two ranks, each a thread: with other files, or one that could not read the same one."""
    monkeypatch.setattr(ranks, "_SECONDS", 60.0)
    paths = [tmp_path / f"{rank}.json" for rank in range(2)]
    for rank, path in enumerate(paths):
        rows = placement.phy2log if odd == "memory" or rank == 0 else first().numpy()
        save_placement(Placement(rows, EXPERTS, CLUSTER), path, to="vllm", layers=NUMBERS)
    stores = [torch.distributed.FileStore(str(tmp_path / "store"), 2) for _ in range(2)]
    states: dict[int, State] = {}

    def run(rank: int) -> None:
        member = Member(groups[rank], stores[rank], "ep", rank, 2)
        settings = Settings(initial=paths[rank])
        policy = vllm.make_policy(Theirs, settings)
        agreement = Agreement(lambda: member, settings, "own", vllm._logger, lambda: None)
        policy.eplb_initial._alike = agreement.alike
        states[rank] = State(policy)
        if rank == 0 or odd == "file":
            policy.eplb_initial.read(states[rank], model())
        else:
            policy.eplb_initial._errors.append(MemoryError("none is left"))
        policy.eplb_initial.step(State.step, states[rank])

    groups = [SimpleNamespace(), SimpleNamespace()]
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [state.rearranged for state in states.values()] == [[], []]
    assert not any(state.policy.eplb_initial._maps for state in states.values())
    if odd == "memory":
        assert caplog.text.count("EPLB_INITIAL: rank 1 has a map of digest") == 2
