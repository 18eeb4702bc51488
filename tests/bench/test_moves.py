"""The benchmark of moves: its bars, peers of each kind, wrong arguments."""

import json
import zipfile
from pathlib import Path

import moves_peers
import numpy as np
import pytest
from command_line import run_script

import eplb
from eplb import Cluster, Placement
from eplb.synthetic import deepseek_v3

pytestmark = pytest.mark.long

CLUSTER = Cluster(8, 1, 5)
PEERS = {
    "drop_in.py": "from eplb import rebalance_experts",
    "keeps.py": (
        "def rebalance_from(weight, replicas, groups, nodes, gpus, running):\n"
        "    assert weight.shape[0] == running.shape[0] and running.shape[1] == replicas\n"
        "    return running\n"
    ),
    "fails.py": "def rebalance_experts(*_):\n    raise ZeroDivisionError('by zero')",
    "short.py": "def rebalance_experts(*_):\n    return [[0]]",
}


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    for name, text in PEERS.items():
        (tmp_path / name).write_text(text)
    policy = (
        "from .abstract import Base\n\n\nclass DefaultEplbPolicy(Base):\n"
        "    @classmethod\n    def rebalance_experts(cls, weight, *shape):\n"
        "        return shape[-1]\n"
    )
    with zipfile.ZipFile(tmp_path / "vllm-9.9.9-cp38-abi3-linux.whl", "w") as wheel:
        wheel.writestr("vllm/distributed/eplb/policy/abstract.py", "class Base:\n    pass\n")
        wheel.writestr("vllm/distributed/eplb/policy/default.py", policy)
    return tmp_path


def test_points_of_peers(peers: Path) -> None:
    before, after = deepseek_v3(seed=1)[:2, :32], deepseek_v3(seed=2)[:2, :32]
    old = eplb.plan(before, CLUSTER).placement

    def point(name: str) -> moves_peers.Point:
        return moves_peers.point_of(moves_peers.load_replanner(peers / name), after, old)

    afresh = Placement(eplb.rebalance_experts(after, 40, 1, 1, 8)[0], 32, CLUSTER)
    found = point("drop_in.py")
    assert (found.moves, found.failed) == (afresh.moves_from(old), None)
    assert found.balancedness == pytest.approx(afresh.balancedness(after))
    for name in ("keeps.py", "vllm-9.9.9-cp38-abi3-linux.whl"):
        assert (point(name).moves, point(name).failed) == (0, None)
        assert point(name).balancedness == pytest.approx(old.balancedness(after))
    assert point("fails.py").failed == "ZeroDivisionError: by zero"
    assert "shape (1, 1)" in str(point("short.py").failed)
    wheel = moves_peers.load_replanner(peers / "vllm-9.9.9-cp38-abi3-linux.whl")
    assert wheel.name == "vllm-9.9.9"
    names = [each.name for each in moves_peers.built_in()]
    assert names == ["keep", "deepseek", "seed"]
    (peers / "no.whl").write_bytes(b"no archive")
    with pytest.raises(eplb.PolicyError, match=r"no\.whl: no wheel of vLLM: BadZipFile"):
        moves_peers.load_replanner(peers / "no.whl")


def test_the_best_within_some_moves() -> None:
    points = [(0, 0.5), (10, 0.9), (20, 0.95)]
    found = [moves_peers.best_within(points, moves) for moves in (0, 9, 10, 100)]
    assert found == [0.5, 0.5, 0.9, 0.95]
    assert moves_peers.best_within(points[1:], 5) == 0.0


def test_a_run_beside_peers(peers: Path) -> None:
    more = ("--peer", "keeps.py", "--peer", "fails.py", "--json")
    done = run_script("moves.py", "--only", "peers", *more, cwd=peers)
    assert done.returncode == 0, done.stderr
    bars = json.loads(done.stdout)["bars"]
    assert len(bars) == 4 * 5
    for bar in bars:
        who = bar["what"].split()[-1]
        if who in {"keep", "keeps", "deepseek"}:
            assert bar["met"], bar
        if who == "fails":
            assert not bar["met"]
            assert "ZeroDivisionError: by zero" in bar["found"]
    done = run_script("moves.py", "--only", "peers", "--peer", "fails.py", "--check", cwd=peers)
    assert done.returncode == 1
    assert "MISSED" in done.stdout


def test_windows_and_wrong_arguments(peers: Path) -> None:
    done = run_script(
        "moves.py", "--only", "windows", "--windows", 9, "--json", "--check", cwd=peers
    )
    assert done.returncode == 0, done.stderr
    found = [bar["found"] for bar in json.loads(done.stdout)["bars"]]
    trace = eplb.synthetic.trace("gpt-oss-20b", num_windows=9, tokens_per_window=2048)
    cluster = Cluster(num_gpus=8, slots_per_gpu=5)
    each = eplb.replay(trace, cluster, "eplb")
    moving = eplb.replay(trace, cluster, "moving", every=4)
    share = np.sum(moving.moves[1:]) / np.sum(each.moves[1:])
    assert found[0].startswith(f"{moving.average() / each.average():.2%} (")
    assert f" {share:.2%} of {each.moves[1:].sum():,} moves" in found[0]
    for wrong, message in (
        (("--peer", "none.py"), "none.py: there is no such file"),
        (("--traces", "none", "--only", "moves"), "does not exist"),
        (("--windows", "0"), "'0' is not a whole number of 1 or more"),
    ):
        done = run_script("moves.py", *wrong, cwd=peers)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr
