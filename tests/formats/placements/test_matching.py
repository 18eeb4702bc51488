"""Which row of a placement's file is which layer of the loads: by number, by count, or asked for.

The model has 5 hidden layers, of which the first 2 are dense, and a layer 5 that predicts further
tokens. Loads have the hidden layers, or the MoE layers 2 to 4.
"""

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from notes import told
from numpy.typing import NDArray

import eplb

CLUSTER = eplb.Cluster(2, 1, 2)
START = [0, 1, 2, 0]
ROWS = {layer: np.roll(START, layer).tolist() for layer in (2, 3, 4, 5)}
HIDDEN = np.array([True, True, False, False, False])
MOE = np.zeros(3, np.bool_)
EXPECTED = [START, START, ROWS[2], ROWS[3], ROWS[4]]


def tensorrt_llm(path: Path, layers: list[int]) -> Path:
    lines = "\n".join(f"  {layer}: {ROWS[layer]}" for layer in layers)
    target = path.with_suffix(".yaml")
    target.write_text(f"num_slots: 4\ninitial_global_assignments:\n{lines}\n")
    return target


def vllm(path: Path, layers: list[int]) -> Path:
    content = {"eplb_placement": 1, "num_gpus": 2, "num_experts": 3, "layers": layers}
    rows = [ROWS[layer] for layer in layers]
    path.write_text(json.dumps({**content, "physical_to_logical_map": rows}))
    return path


def ascend(path: Path, layers: list[int], *, numbered: bool = True) -> Path:
    listed = []
    for position, layer in enumerate(layers):
        held = [{"device_id": gpu, "device_expert": ROWS[layer][2 * gpu :][:2]} for gpu in (0, 1)]
        number = layer if numbered else position
        listed.append({"layer_id": number, "device_count": 2, "device_list": held})
    path.write_text(json.dumps({"moe_layer_count": len(layers), "layer_list": listed}))
    return path


def ascend_by_position(path: Path, layers: list[int]) -> Path:
    return ascend(path, layers, numbered=False)


def bare(path: Path, layers: list[int]) -> Path:
    path.write_text(json.dumps([ROWS[layer] for layer in layers]))
    return path


def sglang(path: Path, layers: list[int]) -> Path:
    rows = [ROWS.get(layer, START) for layer in range(layers[-1] + 1)]
    path.write_text(json.dumps({"physical_to_logical_map": rows}))
    return path


Writer = Callable[[Path, list[int]], Path]
NUMBERED: list[Writer] = [tensorrt_llm, vllm, ascend, sglang]
COUNTED: list[Writer] = [ascend_by_position, bare]


@pytest.mark.parametrize("write", NUMBERED)
def test_a_row_too_many_is_left_out(
    tmp_path: Path, write: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.json", [2, 3, 4, 5])
    for dense, layers, expected in (
        (HIDDEN, None, EXPECTED),
        (HIDDEN, range(5), EXPECTED),
        (MOE, (2, 3, 4), EXPECTED[2:]),
        # A layer without a token by chance is no dense one.
        (np.array([True, True, False, True, False]), None, EXPECTED),
    ):
        with told(caplog, r"a\.\w+: layer 5 is left out"):
            found = eplb.load_placement(path, 2, dense=dense, layers=layers)
        assert found.phy2log.tolist() == expected


@pytest.mark.parametrize("write", [*NUMBERED, *COUNTED])
def test_as_many_rows_as_layers_say_nothing(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path / "a.json", [2, 3, 4])
    assert eplb.load_placement(path, 2, dense=HIDDEN).phy2log.tolist() == EXPECTED or (
        write is bare
    )
    found = eplb.load_placement(path, 2, dense=MOE, first_layer=2)
    assert found.phy2log.tolist() == EXPECTED[2:]
    assert found.layers == (2, 3, 4)


@pytest.mark.parametrize(
    ("write", "dense"),
    [*((write, MOE) for write in [*NUMBERED, *COUNTED]), *((write, HIDDEN) for write in COUNTED)],
)
def test_what_nothing_numbers_is_asked_for(
    tmp_path: Path,
    write: Writer,
    dense: NDArray[np.bool_],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write(tmp_path / "a.json", [2, 3, 4, 5])
    rows = 6 if write is sglang else 4
    option = "--first-layer or --layers" if write in NUMBERED else "--placement-layers 3-61"
    count = "5 (2 of them without load)" if dense is HIDDEN else "3"
    with pytest.raises(eplb.FormatError) as raised:
        eplb.load_placement(path, 2, dense=dense)
    assert f"has {rows} layers, the loads have {count}: it is of another" in str(raised.value)
    assert option in str(raised.value)
    # What it asks for settles it.
    answer: dict[str, Any] = {"first_layer": 0 if dense is HIDDEN else 2}
    if write in COUNTED:
        answer["placement_layers"] = range(2, 6)
    with told(caplog, "layer 5 is left out"):
        found = eplb.load_placement(path, 2, dense=dense, **answer)
    assert found.phy2log.tolist() == (EXPECTED if dense is HIDDEN else EXPECTED[2:])


def test_a_layer_with_load_needs_a_row(tmp_path: Path) -> None:
    path = tensorrt_llm(tmp_path / "a", [3, 4, 5])
    message = r"has 3 layers \(3-5\), the loads have 3 \(2-4\), and it has none for layer 2: it is"
    with pytest.raises(eplb.FormatError, match=message):
        eplb.load_placement(path, 2, dense=MOE, first_layer=2)


def test_alternating_layers_keep_their_numbers(tmp_path: Path) -> None:
    """MoE layers 1, 3 and 5, of loads that have only these, there and back."""
    rows = np.array([ROWS[2], ROWS[3], ROWS[4]])
    placement = eplb.Placement(rows, 3, CLUSTER, layers=(1, 3, 5))
    for name, engine in (("a.json", "vllm"), ("b.yaml", "tensorrt-llm"), ("c.json", "sglang")):
        path = tmp_path / name
        eplb.save_placement(placement, path, to=engine)  # type: ignore[arg-type]
        assert eplb.load_placement(path, 2, dense=MOE, layers=(1, 3, 5)) == placement
    back = json.loads((tmp_path / "c.json").read_text())["physical_to_logical_map"]
    assert back == [START, ROWS[2], START, ROWS[3], START, ROWS[4]]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Loads of the hidden layers, and what runs, a layer more, planned for just these loads."""
    rng = np.random.default_rng(3)
    loads = rng.poisson(rng.lognormal(4, 1, (1, 6, 8)))
    loads[:, :2] = 0
    np.save(tmp_path / "loads.npy", loads[:, :5])
    cluster = eplb.Cluster(2, 1, 5)
    running = eplb.plan(loads, cluster).placement
    path = tmp_path / "running.yaml"
    dense = loads.sum(axis=(0, 2)) == 0
    eplb.save_placement(running, path, to="tensorrt-llm", dense=dense)
    return tmp_path / "loads.npy", path


def test_every_command_takes_rows_by_number(files: tuple[Path, Path], tmp_path: Path) -> None:
    """What was planned for these loads needs no move."""
    loads, running = files
    cost = ["--expert-bytes", "1000000", "--bandwidth-within", "100"]
    commands: list[list[object]] = [
        ["evaluate", running, loads, "--gpus", "2"],
        ["plan", loads, "--gpus", "2", "--current", running],
        ["decide", loads, "--gpus", "2", "--current", running, "--seconds", "60", *cost],
        ["frontier", loads, "--gpus", "2", "--current", running],
        ["migrate", running, running, "--gpus", "2", "--loads", loads],
    ]
    for words in commands:
        done = run(*words)
        assert done.returncode == 0, done.stderr
        assert "note: " in done.stderr
        assert "layer 5 is left out" in done.stderr
    figures = json.loads(run("plan", loads, "--gpus", 2, "--current", running, "--json").stdout)
    assert figures["moves"] == 0
    # Loads that do not say which layers they have are asked about.
    np.save(loads, np.load(loads)[:, 2:])
    done = run("evaluate", running, loads, "--gpus", "2")
    assert done.returncode == 2
    assert "--first-layer or --layers (the file has 2-5)" in done.stderr
    for option, value in (("--first-layer", "2"), ("--layers", "2-4")):
        assert run("evaluate", running, loads, "--gpus", "2", option, value).returncode == 0
    out = tmp_path / "out.yaml"
    target = ["-o", out, "--to", "tensorrt-llm"]
    assert run("plan", loads, "--gpus", "2", "--layers", "1,3,5", *target).returncode == 0
    assert [line[:4] for line in out.read_text().splitlines()[3:]] == ["  1:", "  3:", "  5:"]
    for wrong in ("5-", "1,1,2", "1,2", "x"):
        assert run("plan", loads, "--gpus", "2", "--layers", wrong).returncode == 2


def test_layers_are_called_by_their_numbers(files: tuple[Path, Path]) -> None:
    """Those of the model, where they are known, whatever names a layer."""
    loads, running = files
    hot = np.load(loads)[:, 2:]
    hot[0, 2] = [1, 1, 1, 1, 1, 1, 90, 80]
    saved = loads.with_name("hot.npz")
    eplb.save_trace(eplb.LoadTrace(hot, layers=(2, 3, 4)), saved)
    said = run("inspect", saved).stdout
    assert "of their layer): 6 of layer 4 (" in said
    assert re.findall(r"^ *(\d) \|", said, re.MULTILINE) == ["2", "3", "4"]
    for words in (["plan", saved], ["evaluate", running, saved]):
        named = re.findall(r"layer (\d)", run(*words, "--gpus", "2").stdout)
        assert set(named) == {"2", "3", "4"}
    found = json.loads(run("report", saved, "--gpus", "2", "--json").stdout)
    assert [each["layer"] for each in found["hot"]] == found["heat"]["layers"] == [2, 3, 4]
    cost = ["--seconds", 60, "--expert-bytes", 1, "--bandwidth-within", 100, "--gpus", 2]
    done = run("decide", saved, "--current", running, *cost, "--json")
    found = json.loads(done.stdout)
    assert (found["action"], found["layers"]) == ("move layers", [4])


def test_a_trace_keeps_the_numbers_of_its_layers(tmp_path: Path) -> None:
    loads = np.random.default_rng(0).integers(1, 9, (4, 3, 4)).astype(float)
    trace = eplb.LoadTrace(loads, layers=(1, 3, 5))
    for name in ("a.npz", "a.csv"):
        eplb.save_trace(trace, tmp_path / name)
        back = eplb.load_trace(tmp_path / name)
        assert back == trace
        assert back.merged(2).pick([1]).layers == (1, 3, 5)
    for wrong in ((1, 3), (1, 1, 2), (-1, 0, 1), "135"):
        with pytest.raises(eplb.LoadsError, match="layers"):
            replace(trace, layers=wrong)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert eplb.plan(trace, CLUSTER, effort="fast").placement.layers == (1, 3, 5)
