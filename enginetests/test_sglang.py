"""SGLang's own registry of hooks, dispatch and metadata, with this planner in.

Stand-ins, and why:
- the runtime context: SGLang publishes it from the arguments of a server with a model on GPUs. Only
  what expert placement reads of it is here.
- the model's configuration: SGLang reads it from a model's files. `ModelConfigForExpertLocation`,
  which it makes of that, is its own.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from recorded import DEEPSEEK_V3, load_recorded
from sglang.srt import runtime_context
from sglang.srt.elastic_ep.elastic_ep import ElasticEPStateManager
from sglang.srt.eplb import eplb_algorithms, expert_location
from sglang.srt.eplb.expert_location import ExpertLocationMetadata, ModelConfigForExpertLocation
from sglang.srt.plugins import hook_registry
from torch.distributed import distributed_c10d

import eplb
from eplb.dispatching.rules import TABLES, split_of_table
from eplb.engines import ranks
from eplb.engines import sglang as sglang_plug_in
from eplb.engines.settings import Settings
from eplb.engines.sglang import register
from eplb.formats.placements import save_placement

LAYERS, EXPERTS, SLOTS, GPUS = 61, 256, 288, 32

Locate = Callable[..., ExpertLocationMetadata]


@pytest.fixture
def locate() -> Iterator[Locate]:
    """SGLang's metadata for a server of 32 ranks, of what one of its functions is given."""
    moe = SimpleNamespace(
        ep_num_redundant_experts=SLOTS - EXPERTS,
        eplb_algorithm="auto",
        ep_dispatch_algorithm="static",
        ep_join_mode=None,
        moe_a2a_backend="deepep",
        init_expert_location="trivial",
    )
    parallel = SimpleNamespace(nnodes=4, ep_size=GPUS, elastic_ep_initial_size=None, tp_size=GPUS)
    resources = SimpleNamespace(expert_location_metadata=None)
    model = ModelConfigForExpertLocation(LAYERS, EXPERTS, None)

    def made(function: Any, *args: Any, num_groups: int | None = None, **kwargs: Any) -> Any:
        model.num_groups = num_groups
        for name in list(kwargs):
            if hasattr(moe, name):
                setattr(moe, name, kwargs.pop(name))
        return function(None, *args, **kwargs)

    with (
        patch.object(expert_location, "get_exec", lambda: SimpleNamespace(moe=moe)),
        patch.object(expert_location, "get_parallel", lambda: parallel),
        patch.object(expert_location, "get_resources", lambda: resources),
        patch.object(expert_location, "get_device", lambda: SimpleNamespace(device="cpu")),
        patch.object(expert_location, "_prefer_same_node_experts", lambda: True),
        patch.object(torch.distributed, "get_rank", lambda: 3),
        patch.object(
            ModelConfigForExpertLocation, "from_model_config", staticmethod(lambda _: model)
        ),
    ):
        yield made


@pytest.fixture
def hooked(switched_on: None) -> Iterator[None]:
    """SGLang, after it has loaded this plug-in."""
    theirs = eplb_algorithms.rebalance_experts
    register()
    hook_registry.HookRegistry.apply_hooks()
    yield
    hook_registry.HookRegistry.reset()
    eplb_algorithms.rebalance_experts = theirs


@pytest.fixture
def tabled(monkeypatch: pytest.MonkeyPatch, switched_on: None) -> Iterator[None]:
    """SGLang, after it has loaded this plug-in, which makes its tables of dispatch too."""
    theirs = expert_location.compute_logical_to_rank_dispatch_physical_map
    rebalance = eplb_algorithms.rebalance_experts
    monkeypatch.setenv("EPLB_DISPATCH", "table")
    register()
    hook_registry.HookRegistry.apply_hooks()
    yield
    hook_registry.HookRegistry.reset()
    eplb_algorithms.rebalance_experts = rebalance
    expert_location.compute_logical_to_rank_dispatch_physical_map = theirs


def steps(traces: Path) -> torch.Tensor:
    loads = np.stack([load_recorded(traces, name) for name in DEEPSEEK_V3[:5]])
    return torch.from_numpy(loads).to(torch.int32)


def start() -> torch.Tensor:
    """The map that SGLang starts with."""
    return (torch.arange(SLOTS) % EXPERTS).repeat(LAYERS, 1)


def their_table(locate: Locate, metadata: ExpertLocationMetadata, rank: int) -> torch.Tensor:
    """SGLang's own table, by its own function."""
    function = expert_location.compute_logical_to_rank_dispatch_physical_map
    own = getattr(function, "__wrapped__", function)
    slots = metadata.logical_to_all_physical_map_cpu
    table: torch.Tensor = locate(lambda _: own(slots, GPUS, SLOTS, rank))
    return table


def placement(metadata: ExpertLocationMetadata) -> eplb.Placement:
    cluster = eplb.Cluster(GPUS, 1, SLOTS // GPUS)
    return eplb.Placement(metadata.physical_to_logical_map_cpu, EXPERTS, cluster)


def test_plugins_are_found_and_loaded_by_the_engine_itself(
    switched_on: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt import plugins

    theirs = eplb_algorithms.rebalance_experts
    monkeypatch.setattr(plugins, "_plugins_loaded", False)
    try:
        plugins.load_plugins()
        assert eplb_algorithms.rebalance_experts.__wrapped__ is theirs
    finally:
        hook_registry.HookRegistry.reset()
        eplb_algorithms.rebalance_experts = theirs


def test_its_metadata_takes_our_answer(hooked: None, locate: Locate, traces: Path) -> None:
    loads = steps(traces)
    ours = placement(locate(ExpertLocationMetadata.init_by_eplb, loads))
    assert ours.num_duplicates == 0
    unseen = load_recorded(traces, DEEPSEEK_V3[5])
    with patch.object(
        eplb_algorithms, "rebalance_experts", eplb_algorithms.rebalance_experts.__wrapped__
    ):
        theirs = placement(locate(ExpertLocationMetadata.init_by_eplb, loads))
    assert ours.balancedness(unseen) > theirs.balancedness(unseen) + 0.05


def test_a_later_plan_moves_few_experts_from_the_one_that_runs(
    hooked: None, locate: Locate, traces: Path
) -> None:
    loads = steps(traces)
    first = locate(ExpertLocationMetadata.init_by_eplb, loads[:4])
    expert_location.set_global_expert_location_metadata(first)
    second = locate(ExpertLocationMetadata.init_by_eplb, loads[1:])
    moves = placement(second).moves_from(placement(first))
    assert 0 < moves <= 0.05 * LAYERS * SLOTS
    first.update(second, list(range(LAYERS)))
    assert placement(first) == placement(second)


def test_groups_stay_on_nodes_where_its_algorithm_keeps_them(
    hooked: None, locate: Locate, traces: Path
) -> None:
    maps = locate(ExpertLocationMetadata.init_by_eplb, steps(traces), num_groups=8)
    groups = maps.physical_to_logical_map.reshape(LAYERS, 4, -1) // (EXPERTS // 8)
    assert all(len(set(node.tolist())) == 2 for layer in groups[3:] for node in layer)


def test_ranks_that_die_are_planned_around_until_they_are_back(
    hooked: None, locate: Locate, traces: Path
) -> None:
    loads, algorithm = steps(traces), "elasticity_aware"
    state = ElasticEPStateManager._build_state(ep_size=GPUS, device=torch.device("cpu"))
    dead = [5, 9]
    slots = range(SLOTS // GPUS)
    lost = [SLOTS // GPUS * rank + slot for rank in dead for slot in slots]
    with patch.object(ElasticEPStateManager, "_instance", state):

        def made(given: torch.Tensor) -> ExpertLocationMetadata:
            metadata = locate(ExpertLocationMetadata.init_by_eplb, given, eplb_algorithm=algorithm)
            expert_location.set_global_expert_location_metadata(metadata, allow_overwrite=True)
            return metadata

        first = placement(made(loads[:4]))
        state.active_ranks[dead] = 0
        around = made(loads)
        again = made(loads[1:])
        state.active_ranks[:] = 1
        back = placement(made(loads))
    for metadata in (around, again):
        assert not metadata.physical_to_logical_map[:, lost].any()  # as its own algorithm does
        copies = metadata.logical_to_all_physical_map
        assert int(metadata.logical_to_all_physical_map_num_valid.min()) >= 1
        assert not torch.isin(copies, torch.tensor(lost)).any()
        table = metadata.logical_to_rank_dispatch_physical_map
        assert not torch.isin(table, torch.tensor(lost)).any()
    alive = first.cluster.without(dead)

    def living(metadata: ExpertLocationMetadata) -> eplb.Placement:
        held = metadata.physical_to_logical_map.numpy().copy()
        held[:, lost] = -1
        return eplb.Placement(held, EXPERTS, alive)

    unseen = load_recorded(traces, DEEPSEEK_V3[5])
    theirs = eplb_algorithms.rebalance_experts.__wrapped__
    with patch.object(ElasticEPStateManager, "_instance", state):
        state.active_ranks[dead] = 0
        with patch.object(eplb_algorithms, "rebalance_experts", theirs):
            own = living(made(loads))
    assert living(around).balancedness(unseen) > own.balancedness(unseen)
    assert living(again).moves_from(living(around)) <= 0.05 * LAYERS * SLOTS
    assert back.balancedness(unseen) > living(around).balancedness(unseen)
    assert living(around).moves_from(first) <= 1.5 * LAYERS * len(lost) < own.moves_from(first)


def test_no_load_keeps_what_runs(hooked: None, locate: Locate, traces: Path) -> None:
    first = locate(ExpertLocationMetadata.init_by_eplb, steps(traces))
    expert_location.set_global_expert_location_metadata(first)
    none = torch.zeros((3, LAYERS, EXPERTS), dtype=torch.int32)
    assert placement(locate(ExpertLocationMetadata.init_by_eplb, none)) == placement(first)


def test_where_it_fails_the_engine_answers(
    hooked: None, locate: Locate, traces: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loads = steps(traces)
    with patch("eplb.engines.live.plan", side_effect=MemoryError("none left")):
        ours = locate(ExpertLocationMetadata.init_by_eplb, loads)
    with patch.object(
        eplb_algorithms, "rebalance_experts", eplb_algorithms.rebalance_experts.__wrapped__
    ):
        theirs = locate(ExpertLocationMetadata.init_by_eplb, loads)
    assert torch.equal(ours.physical_to_logical_map, theirs.physical_to_logical_map)
    assert "none left; SGLang's own algorithm answers" in caplog.text


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ""),
        ({"EPLB_POLICY": "default"}, ""),
        ({"EPLB_POLICY": "best"}, "EPLB_POLICY is 'best'"),
        ({"EPLB_POLICY": "eplb", "EPLB_MAX_MOVES": "lots"}, "EPLB_MAX_MOVES is 'lots'"),
    ],
)
def test_off_unless_it_is_asked_for_rightly(
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("EPLB_POLICY", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    register()
    assert not any(hook_registry.HookRegistry._hooks.values())
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_an_engine_with_another_interface_is_left_alone(
    switched_on: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(eplb_algorithms, "rebalance_experts", lambda loads, num_slots: None)
    register()
    assert not any(hook_registry.HookRegistry._hooks.values())
    assert "rebalance_experts takes loads, num_slots" in caplog.text
    assert "SGLang's own EPLB algorithm stays" in caplog.text


@pytest.mark.parametrize("inline", [False, True])
def test_it_starts_with_the_placement_of_our_file(
    inline: bool, locate: Locate, traces: Path, tmp_path: Path
) -> None:
    cluster = eplb.Cluster(GPUS, 1, SLOTS // GPUS)
    made = eplb.plan(load_recorded(traces, DEEPSEEK_V3[0]), cluster).placement
    path = tmp_path / "placement.json"
    save_placement(made, path, to="sglang")
    given = path.read_text() if inline else str(path)
    initial = expert_location.compute_initial_expert_location_metadata
    assert placement(locate(initial, init_expert_location=given, moe_ep_rank=3)) == made
    assert set(json.loads(path.read_text())) == {"physical_to_logical_map"}


def test_loud_where_it_plans_and_only_there(
    switched_on: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Importing SGLang's own manager takes the sources of its kernels for GPUs.
    manager = ModuleType("sglang.srt.eplb.eplb_manager")
    manager.EPLBManager = type("EPLBManager", (), {"__init__": lambda _: None})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, manager.__name__, manager)
    try:
        register()
        assert not caplog.text
        for _ in range(2):
            manager.EPLBManager()
    finally:
        hook_registry.HookRegistry.reset()
    assert caplog.text.count("this planner replaces SGLang's algorithms") == 1


def table_of(metadata: ExpertLocationMetadata) -> np.ndarray[Any, Any]:
    """Slots [L, E] that rank 3 sends to, each of which holds the expert."""
    table: np.ndarray[Any, Any] = metadata.logical_to_rank_dispatch_physical_map.numpy()
    held = np.take_along_axis(metadata.physical_to_logical_map_cpu.numpy(), table, axis=1)
    assert (held == np.arange(EXPERTS)).all()
    return table


def test_our_table_is_in_force_after_a_rebalance(
    tabled: None, locate: Locate, traces: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = " ".join(record.getMessage() for record in caplog.get_records("setup"))
    assert "a table for the loads planned for replaces SGLang's own table" in said
    loads = steps(traces)
    running = locate(ExpertLocationMetadata.init_by_mapping, start(), moe_ep_rank=3)
    assert torch.equal(
        running.logical_to_rank_dispatch_physical_map, their_table(locate, running, 3)
    )
    made = locate(ExpertLocationMetadata.init_by_eplb, loads)
    running.update(made, list(range(LAYERS)))
    cluster = eplb.Cluster(GPUS, 4, SLOTS // GPUS)
    planned = eplb.Placement(made.physical_to_logical_map_cpu, EXPERTS, cluster)
    every = eplb.dispatch(planned, loads.numpy()).table(effort="fast")
    assert np.array_equal(table_of(running), every[:, 3])
    theirs = TABLES["sglang"](planned.log2phy, cluster)
    assert np.array_equal(theirs[:, 3], their_table(locate, made, 3).numpy())
    even = np.full(GPUS, 1 / GPUS)
    for unseen in (loads.numpy(), load_recorded(traces, DEEPSEEK_V3[5])):
        ours, own = (
            planned.balancedness(unseen, dispatch=split_of_table(each, SLOTS, even))
            for each in (every, theirs)
        )
        assert ours > own + 0.01
    # Steps without loads leave what runs, and its table.
    expert_location.set_global_expert_location_metadata(running)
    none = torch.zeros((3, LAYERS, EXPERTS), dtype=torch.int32)
    kept = locate(ExpertLocationMetadata.init_by_eplb, none)
    assert np.array_equal(table_of(kept), every[:, 3])


@pytest.mark.parametrize("fails", ["engines.tables.dispatch", "engines.live.plan"])
def test_where_a_table_or_a_plan_fails_the_table_is_its_own(
    fails: str,
    tabled: None,
    locate: Locate,
    traces: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with patch(f"eplb.{fails}", side_effect=MemoryError("none left")):
        made = locate(ExpertLocationMetadata.init_by_eplb, steps(traces))
    assert np.array_equal(table_of(made), their_table(locate, made, 3).numpy())
    own = "table of dispatch is used" if "dispatch" in fails else "algorithm answers"
    assert f"none left; SGLang's own {own}" in caplog.text


def test_an_engine_with_another_table_keeps_it(
    switched_on: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EPLB_DISPATCH", "table")
    name = "compute_logical_to_rank_dispatch_physical_map"
    monkeypatch.setattr(expert_location, name, lambda log2phy, rank: None)
    register()
    assert list(hook_registry.HookRegistry._hooks) == [
        "sglang.srt.eplb.eplb_algorithms.rebalance_experts"
    ]
    hook_registry.HookRegistry.reset()
    assert f"{name} takes log2phy, rank" in caplog.text
    assert "SGLang's own table of dispatch stays" in caplog.text


def test_rule_of_dispatch_is_the_engines_own(locate: Locate, traces: Path) -> None:
    """Slot for slot, from every rank, with its seeded draws."""
    cluster = eplb.Cluster(num_gpus=GPUS, num_nodes=4, slots_per_gpu=SLOTS // GPUS)
    loads = load_recorded(traces, DEEPSEEK_V3[0])
    placement = eplb.plan(loads[::6], cluster).placement
    table = TABLES["sglang"](placement.log2phy, cluster)

    def of_rank(_: object, rank: int) -> torch.Tensor:
        found: torch.Tensor = expert_location.compute_logical_to_rank_dispatch_physical_map(
            torch.tensor(placement.log2phy), GPUS, SLOTS, rank
        )
        return found

    for rank in range(0, GPUS, 5):
        assert (locate(of_rank, rank).numpy() == table[:, rank]).all()


def test_ranks_say_at_their_first_pass_who_is_set_otherwise(
    switched_on: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manager = ModuleType("sglang.srt.eplb.eplb_manager")
    methods = {"__init__": lambda _: None, "on_forward_pass_end": lambda _: None}
    manager.EPLBManager = type("EPLBManager", (), methods)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, manager.__name__, manager)
    register()
    hook_registry.HookRegistry.reset()
    sglang_plug_in._stages.cache_clear()
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    members = [
        ranks.Member(store, distributed_c10d.PrefixStore("ranks", store), "world", rank, 2)
        for rank in range(2)
    ]
    # As the first to come, which waits for nobody.
    other = ranks._Ranks(members[1])
    other.settle(ranks._of_settings(Settings(windows=3)), wait=False)
    with (
        patch.object(sglang_plug_in, "default_member", lambda: members[0]),
        patch.object(runtime_context, "get_parallel", lambda: SimpleNamespace(pp_size=1)),
    ):
        for _ in range(2):
            manager.EPLBManager().on_forward_pass_end()
    sglang_plug_in._stages.cache_clear()
    said = "rank 1 has EPLB_WINDOWS 3, rank 0 has EPLB_WINDOWS 16"
    (line,) = [record.message for record in caplog.records if said in record.message]
    assert "SGLang's own algorithm answers on all ranks" in line
