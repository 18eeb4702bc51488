"""GPUs that differ, on the command line: as lists, in files, and what is wrong there."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run

import eplb

SLOTS, SPEED = [4, 2, 3, 5], [1.0, 0.5, 2.0, 1.0]


@pytest.fixture
def loads_file(tmp_path: Path) -> Path:
    loads = np.random.default_rng(0).lognormal(0.0, 0.7, (3, 2, 10)).round(3)
    path = tmp_path / "loads.npy"
    np.save(path, loads)
    return path


def as_list(numbers: list[int] | list[float]) -> str:
    return ",".join(map(str, numbers))


def test_from_plan_to_report(loads_file: Path, tmp_path: Path) -> None:
    """What is planned is what the library plans; its file is read with the slots in it, and every
    command takes the speeds.
    """
    cluster = eplb.Cluster(4, 1, SLOTS, speed=SPEED)
    slots, target = tmp_path / "slots.txt", tmp_path / "placement.json"
    slots.write_text("4 2\n3 5\n")
    uneven = ("--gpus", 4, "--slots-per-gpu", slots, "--speed", as_list(SPEED))
    done = run("plan", loads_file, *uneven, "-o", target, "--to", "vllm", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    placement = eplb.load_placement(target)
    assert placement.cluster == eplb.Cluster(4, 1, SLOTS)
    loads = np.load(loads_file)
    paced = eplb.Placement(placement.phy2log, 10, cluster)
    assert figures["slots"] == 14
    assert figures["plan"] > figures["engine"] == figures["contiguous"]

    speed = ("--speed", as_list(SPEED))
    done = run("evaluate", target, loads_file, *speed, "--json")
    assert done.returncode == 0, done.stderr
    (scored,) = json.loads(done.stdout)["standings"][:1]
    assert scored["balancedness"] == pytest.approx(paced.balancedness(loads))
    for command in (
        ("plan", loads_file, "--gpus", 4, "--current", target, "--max-moves", 2),
        ("frontier", loads_file, "--current", target),
        ("decide", loads_file, "--current", target, "--seconds", 60, "--expert-bytes", 1000,
         "--bandwidth-within", 100),
    ):  # fmt: skip
        done = run(*command, *speed)
        assert done.returncode == 0, done.stderr
    done = run("compare", loads_file, *uneven, "--policy", "deepseek,eplb,moving")
    assert done.returncode == 0, done.stderr
    done = run("report", loads_file, *uneven, "--text")
    assert done.returncode == 0, done.stderr
    assert "14 slots on 4 GPUs of 2 to 5 slots and speed 0.5 to 2" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slots-per-gpu", "4,2,3"], "slots_per_gpu has 3 numbers: give one for each of 4 GPUs"),
        (["--slots-per-gpu", "4,2,3,x"], "--slots-per-gpu has 'x': give a number for each GPU"),
        (["--slots-per-gpu", "4,2,3,2.5"], "slots_per_gpu[3] is 2.5: give a whole number"),
        (
            ["--slots-per-gpu", as_list(SLOTS), "--slots", "16"],
            "--slots is 16, but --slots-per-gpu has 14 in all: leave out --slots",
        ),
        (["--slots-per-gpu", "2,2,2,2"], "8 slots do not hold 10 experts"),
        (["--speed", "1,1,1,0"], "speed[3] is 0: give above 0"),
        (["--speed", "1,1,1,nan"], "speed[3] is nan: give above 0"),
        (["--speed", "1,1"], "speed has 2 numbers: give one for each of 4 GPUs"),
        (["--slots-per-gpu", as_list(SLOTS), "--dispatch", "sglang"], "the GPUs differ in slots"),
    ],
)
def test_wrong_lists(loads_file: Path, options: list[str], message: str) -> None:
    axes = ["--axes", "windows,layers,experts"]
    done = run("plan", loads_file, *axes, "--gpus", 4, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_engines_that_take_no_such_placement(loads_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "placement.json"
    options = ("--gpus", 4, "--slots-per-gpu", as_list(SLOTS), "-o", target)
    done = run("plan", loads_file, *options)
    assert done.returncode == 2
    assert "GPUs have 2 to 5 slots, and sglang takes as many on each" in done.stderr
    assert not target.exists()
