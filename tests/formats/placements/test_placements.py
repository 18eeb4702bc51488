"""Placements as files: each engine's form as its own reader takes it, and back again unchanged."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import eplb
from eplb.formats.placements import Engine

yaml = pytest.importorskip("yaml", reason="PyYAML reads TensorRT-LLM's placements")

FILES: dict[Engine, str] = {
    "sglang": "a.json",
    "vllm": "b.json",
    "tensorrt-llm": "c.yaml",
    "ascend": "d.json",
    "deepseek": "e.npz",
}
MOE_ONLY = {"vllm", "tensorrt-llm", "ascend"}


def random_placement(
    rng: np.random.Generator, layers: int, cluster: eplb.Cluster
) -> eplb.Placement:
    """Every expert somewhere, and none twice on a GPU: its slots are neighbours in a cycle."""
    num_experts = int(rng.integers(cluster.slots_per_gpu, cluster.num_slots + 1))
    rows = [np.resize(rng.permutation(num_experts), cluster.num_slots) for _ in range(layers)]
    return eplb.Placement(np.array(rows), num_experts, cluster)


@st.composite
def placements(draw: st.DrawFn) -> tuple[eplb.Placement, NDArray[np.bool_], int]:
    """A placement, which of its layers are dense, and the number of its first layer."""
    nodes = draw(st.integers(1, 3))
    cluster = eplb.Cluster(nodes * draw(st.integers(1, 4)), nodes, draw(st.integers(1, 4)))
    layers = draw(st.integers(1, 6))
    dense = np.array(draw(st.lists(st.booleans(), min_size=layers, max_size=layers)))
    dense[draw(st.integers(0, layers - 1))] = False
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    placement = random_placement(rng, layers, cluster)
    return placement, dense, draw(st.sampled_from((0, 0, 3)))


def expected(placement: eplb.Placement, dense: NDArray[np.bool_]) -> list[list[int]]:
    """What comes back where an engine has no rows for dense layers."""
    start = [slot % placement.num_experts for slot in range(placement.cluster.num_slots)]
    rows: list[list[int]] = placement.phy2log.tolist()
    return [start if dense[layer] else row for layer, row in enumerate(rows)]


@pytest.mark.parametrize("engine", get_args(Engine))
@given(case=placements())
def test_round_trip(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[eplb.Placement, NDArray[np.bool_], int],
) -> None:
    placement, dense, first_layer = case
    path = tmp_path_factory.mktemp("round") / FILES[engine]
    eplb.save_placement(placement, path, to=engine, dense=dense, first_layer=first_layer)
    cluster = placement.cluster
    back = eplb.load_placement(
        path,
        cluster.num_gpus,
        cluster.num_nodes,
        num_experts=placement.num_experts,
        dense=dense,
        first_layer=first_layer,
    )
    assert back.cluster == cluster
    assert back.num_experts == placement.num_experts
    rows = expected(placement, dense) if engine in MOE_ONLY else placement.phy2log.tolist()
    assert back.phy2log.tolist() == rows


@pytest.fixture
def small() -> eplb.Placement:
    """Three layers of 3 experts in 4 slots of 2 GPUs; the first one is dense where that counts."""
    rows = [[0, 1, 2, 0], [2, 0, 1, 2], [1, 0, 2, 1]]
    return eplb.Placement(np.array(rows), 3, eplb.Cluster(2, 1, 2))


DENSE = np.array([True, False, False])


def test_sglang_has_all_layers_and_no_other_key(small: eplb.Placement, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    eplb.save_placement(small, path, to="sglang", dense=DENSE)
    assert json.loads(path.read_text()) == {"physical_to_logical_map": small.phy2log.tolist()}
    eplb.save_placement(small, path, to="sglang", first_layer=2)
    rows = json.loads(path.read_text())["physical_to_logical_map"]
    assert rows == [[0, 1, 2, 0], [0, 1, 2, 0], *small.phy2log.tolist()]


def test_tensorrt_llm_has_moe_layers_by_number(small: eplb.Placement, tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    eplb.save_placement(small, path, to="tensorrt-llm", dense=DENSE, first_layer=4)
    assert yaml.safe_load(path.read_text()) == {
        "num_slots": 4,
        "layer_updates_per_iter": 0,
        "initial_global_assignments": {5: [2, 0, 1, 2], 6: [1, 0, 2, 1]},
    }


def test_ascend_has_moe_layers_by_position(small: eplb.Placement, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    eplb.save_placement(small, path, to="ascend", dense=DENSE, first_layer=4)

    def layer(number: int, *experts: list[int]) -> dict[str, Any]:
        devices = [{"device_id": gpu, "device_expert": held} for gpu, held in enumerate(experts)]
        return {"layer_id": number, "device_count": 2, "device_list": devices}

    assert json.loads(path.read_text()) == {
        "moe_layer_count": 2,
        "layer_list": [layer(0, [2, 0], [1, 2]), layer(1, [1, 0], [2, 1])],
    }


def test_vllm_has_its_map_and_what_it_is_for(small: eplb.Placement, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    eplb.save_placement(small, path, to="vllm", dense=DENSE, first_layer=4)
    assert json.loads(path.read_text()) == {
        "eplb_placement": 1,
        "engine": "vllm",
        "num_gpus": 2,
        "num_nodes": 1,
        "num_experts": 3,
        "layers": [5, 6],
        "physical_to_logical_map": [[2, 0, 1, 2], [1, 0, 2, 1]],
    }
    # It tells all that is to be known: MoE layers come back as they went.
    assert eplb.load_placement(path).phy2log.tolist() == [[2, 0, 1, 2], [1, 0, 2, 1]]


@pytest.mark.parametrize("name", ["a.npz", "a.json"])
def test_deepseek_has_its_three_arrays(small: eplb.Placement, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    eplb.save_placement(small, path, to="deepseek")
    found: Any = np.load(path) if name == "a.npz" else json.loads(path.read_text())
    assert np.array_equal(found["phy2log"], small.phy2log)
    assert np.array_equal(found["log2phy"], small.log2phy)
    assert np.array_equal(found["logcnt"], small.logcnt)
    assert eplb.load_placement(path) == small


def test_deepseek_arrays_as_its_algorithm_returns_them(tmp_path: Path) -> None:
    """log2phy has free places at its end, and slots of an expert in any order."""
    cluster = eplb.Cluster(4, 1, 3)
    loads = np.random.default_rng(5).lognormal(size=(3, 8))
    phy2log, log2phy, logcnt = eplb.rebalance_experts(loads, 12, 1, 1, 4)
    turned = log2phy.copy()
    for layer, expert in np.ndindex(logcnt.shape):
        number = logcnt[layer, expert]
        turned[layer, expert, :number] = log2phy[layer, expert, :number][::-1]
    path = tmp_path / "a.npz"
    np.savez(path, phy2log=phy2log, log2phy=turned, logcnt=logcnt)
    assert eplb.load_placement(path, 4) == eplb.Placement(phy2log, 8, cluster)


def test_bare_arrays(small: eplb.Placement, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", small.phy2log.astype(np.int32))
    (tmp_path / "a.json").write_text(json.dumps(small.phy2log.tolist()))
    for name in ("a.npy", "a.json"):
        assert eplb.load_placement(tmp_path / name, 2) == small


@pytest.mark.parametrize("key", ["physical_to_logical_map", "last_physical_to_logical_map"])
def test_sglang_pt_and_dumps(small: eplb.Placement, tmp_path: Path, key: str) -> None:
    torch = pytest.importorskip("torch", reason="torch writes .pt files")
    path = tmp_path / "a.pt"
    records = {"records": [{"forward_pass_id": 1}]} if key.startswith("last") else {}
    torch.save({**records, key: torch.tensor(small.phy2log.copy(), dtype=torch.int32)}, path)
    assert eplb.load_placement(path, 2) == small


def test_tensorrt_llm_as_its_own_tool_and_in_a_whole_configuration(tmp_path: Path) -> None:
    balancer = {
        "initial_global_assignments": {10: [1, 0, 1, 2], 9: [2, 1, 0, 0]},
        "layer_updates_per_iter": 0,
        "num_slots": 4,
    }
    path = tmp_path / "a.conf"
    path.write_text(yaml.safe_dump(balancer))
    rows = [[2, 1, 0, 0], [1, 0, 1, 2]]
    assert eplb.load_placement(path, 2).phy2log.tolist() == rows
    # JSON is YAML, with layers in quotes.
    path.write_text(json.dumps(balancer))
    assert eplb.load_placement(path, 2).phy2log.tolist() == rows
    whole = {
        "enable_attention_dp": True,
        "moe_expert_parallel_size": 2,
        "moe_config": {"backend": "WIDEEP", "load_balancer": balancer},
    }
    path.write_text(yaml.safe_dump(whole))
    assert eplb.load_placement(path).cluster == eplb.Cluster(2, 1, 2)


@pytest.mark.parametrize("engine", get_args(Engine))
def test_what_is_there_is_recognised_whatever_it_is_called(
    small: eplb.Placement, tmp_path: Path, engine: Engine
) -> None:
    path = tmp_path / FILES[engine]
    eplb.save_placement(small, path, to=engine)
    renamed = path.rename(tmp_path / "placement")
    assert eplb.load_placement(renamed, 2) == small


def test_layers_of_loads_that_leave_some_out(small: eplb.Placement, tmp_path: Path) -> None:
    """MoE layers of a file find their place in loads of all layers, of MoE layers, and of some."""
    path = tmp_path / "a.json"
    start = [0, 1, 2, 0]
    first, second = small.phy2log.tolist()[1:]

    def rows(dense: list[int], **options: Any) -> list[list[int]]:
        mask = np.array(dense, np.bool_)
        found: list[list[int]] = eplb.load_placement(
            path, 2, dense=mask, **options
        ).phy2log.tolist()
        return found

    eplb.save_placement(small, path, to="ascend", dense=DENSE)
    assert rows([1, 0, 0]) == [start, first, second]
    assert rows([0, 0]) == [first, second]
    assert rows([0, 1, 0]) == [first, start, second]
    # The last layer had no load by chance.
    assert rows([1, 0, 1]) == [start, first, second]
    eplb.save_placement(small, path, to="sglang")
    assert rows([0, 0], first_layer=1) == [first, second]
    assert rows([1, 0, 0]) == small.phy2log.tolist()
    eplb.save_placement(small, path.with_suffix(".yaml"), to="tensorrt-llm", dense=DENSE)
    path = path.with_suffix(".yaml")
    assert rows([1, 0, 1]) == [start, first, second]
    assert rows([0, 0]) == [first, second]
    assert rows([0, 0], first_layer=1) == [first, second]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """vllm-ascend holds an expert once on a device: what was there before stays."""
    twice = eplb.Placement(np.array([[0, 1, 1, 2], [0, 1, 2, 2]]), 3, eplb.Cluster(2, 1, 2))
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(eplb.PlacementError, match=r"layer 1 has expert 2 twice on GPU 1: vllm-as"):
        eplb.save_placement(twice, path, to="ascend")
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
    eplb.save_placement(twice, path, to="ascend", dense=[False, True])
    assert eplb.load_placement(path).phy2log.tolist() == [[0, 1, 1, 2]]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"to": "trt"},
            eplb.OptionError,
            "'trt' is not a known format of placements: give sglang, vllm, ",
        ),
        ({"to": "tensorrt-llm"}, eplb.FormatError, "for tensorrt-llm ends with .yaml or .yml"),
        (
            {"to": "vllm", "dense": [True] * 3},
            eplb.LoadsError,
            "all layers are dense, so there are no experts",
        ),
        ({"to": "vllm", "dense": [True] * 2}, eplb.LoadsError, "dense has 2 layers, the placem"),
        ({"to": "vllm", "dense": [0, 1, 1]}, eplb.LoadsError, "dense has shape (3,) of int64"),
        ({"to": "vllm", "first_layer": -1}, eplb.OptionError, "first_layer is -1: give 0 to 9999"),
    ],
)
def test_what_cannot_be_written(
    small: eplb.Placement,
    tmp_path: Path,
    options: dict[str, Any],
    kind: type[eplb.EplbError],
    message: str,
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        eplb.save_placement(small, tmp_path / "a.json", **options)
    assert not list(tmp_path.iterdir())


def test_real_plan_for_each_engine(traces: Path, tmp_path: Path) -> None:
    """DeepSeek-V3 has three dense layers; what comes back serves the loads as the plan does."""
    trace = eplb.load_trace(traces / "deepseek_v3" / "prefill_in512.json")
    cluster = eplb.Cluster(32, 4, 9)
    placement = eplb.Placement.contiguous(trace.num_layers, trace.num_experts, cluster)
    moe = placement.phy2log.copy()
    moe[3:] = np.roll(moe[3:], 5, axis=1)
    placement = eplb.Placement(moe, trace.num_experts, cluster)
    for engine, name in FILES.items():
        eplb.save_placement(placement, tmp_path / name, to=engine, dense=trace.dense)
        back = eplb.load_placement(tmp_path / name, 32, 4, num_experts=256, dense=trace.dense)
        assert back == placement
    assert list(
        yaml.safe_load((tmp_path / "c.yaml").read_text())["initial_global_assignments"]
    ) == [*range(3, 61)]
    assert json.loads((tmp_path / "d.json").read_text())["moe_layer_count"] == 58
