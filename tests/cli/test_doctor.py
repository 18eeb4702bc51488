"""`eplb doctor`: what it says of a host, and of hosts that differ."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from command_line import run

from eplb.engines import doctor


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EPLB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EPLB_POLICY", "eplb")


def with_engine(monkeypatch: pytest.MonkeyPatch, policy: Any) -> None:
    """A stand-in for an installed vLLM, with a table of policies."""
    table = ModuleType("vllm.distributed.eplb.policy")
    table.EPLB_POLICIES = {"default": policy}  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.distributed", "vllm.distributed.eplb"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, table.__name__, table)
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "9.9" if name == "vllm" else known(name))


class Fits:
    @classmethod
    def rebalance_experts(
        cls,
        weight: Any,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Any = None,
    ) -> "Tensor":
        raise AssertionError("the plug-in goes by the signature alone")


Tensor = SimpleNamespace


def examined(**variables: str) -> tuple[int, dict[str, Any]]:
    done = run("doctor", "--json", **variables)
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_host_that_is_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with_engine(monkeypatch, Fits)
    code, found = examined(EPLB_WINDOWS="8")
    assert (code, found["problems"]) == (0, [])
    assert found["engines"]["vllm"] == "its interface is known"
    assert found["versions"]["vllm"] == "9.9"
    assert found["variables"] == {"EPLB_POLICY": "eplb", "EPLB_WINDOWS": "8"}
    assert found["ranks agree on"]["EPLB_WINDOWS"] == "8"
    assert (found["cache"]["writable"], len(found["plan"])) == (True, 16)
    done = run("doctor", EPLB_WINDOWS="8")
    assert done.returncode == 0
    assert "Nothing is wrong." in done.stdout
    assert found["plan"] in done.stdout


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda _: None)
    code, found = examined(EPLB_WINDOWS="many", EPLB_WINDOW="8")
    assert code == 1
    assert found["problems"] == [
        "EPLB_WINDOWS is 'many': give a whole number, 1 to 64: the engine's own planner stays",
        "unknown variables are ignored: EPLB_WINDOW",
        "there is no engine that the plug-in knows in this Python",
    ]
    with_engine(monkeypatch, object)
    _, found = examined(EPLB_POLICY="")
    assert found["problems"] == [
        "EPLB_POLICY is not eplb: the engine's own planner stays",
        "vllm: its policy has no rebalance_experts",
        "there is no engine that the plug-in knows in this Python",
    ]


def test_kernels_that_cannot_be_kept() -> None:
    facts = {"switched on": "yes", "engines": {"vllm": "its interface is known"}}
    cache = {"folder": "/there", "writable": False}
    (line,) = doctor.problems({**facts, "cache": cache})
    assert "cannot be kept in /there" in line
    assert "NUMBA_CACHE_DIR" in line
    assert doctor.problems({**facts, "cache": {**cache, "compiled": "before"}}) == []


def test_what_hosts_have_that_differs(tmp_path: Path) -> None:
    _, facts = examined()
    facts["host"] = "one"
    other = json.loads(json.dumps(facts))
    other["host"] = "two"
    other["versions"]["numpy"] = "1.0"
    both = tmp_path / "hosts.json"
    both.write_text(json.dumps(facts) + "\n" + json.dumps(other))
    done = run("doctor", both)
    assert done.returncode == 0, done.stderr
    version = facts["versions"]["numpy"]
    assert done.stdout.splitlines() == [
        f"versions, numpy: {version} on one; 1.0 on two",
        "The 2 hosts plan alike.",
    ]
    third = json.loads(json.dumps(facts)) | {"host": "three", "plan": "0" * 16}
    third["ranks agree on"]["EPLB_WINDOWS"] = "4"
    (tmp_path / "three.json").write_text(json.dumps(third))
    done = run("doctor", both, tmp_path / "three.json")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == [
        f"plan: {facts['plan']} on one, two; {'0' * 16} on three: they must be the same",
        "ranks agree on, EPLB_WINDOWS: 16 on one, two; 4 on three: they must be the same",
    ]
    found = json.loads(run("doctor", both, tmp_path / "three.json", "--json").stdout)
    assert (found["hosts"], len(found["differences"])) == (3, 3)


@pytest.mark.parametrize("text", ["", "[1]", '{"host": "one"}', "not JSON", '{"host": "one"'])
def test_files_that_hold_something_else(text: str, tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    path.write_text(text)
    done = run("doctor", path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"eplb: {path}: is ")
    assert done.stderr.count("\n") == 1
    done = run("doctor", tmp_path / "missing.json")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
