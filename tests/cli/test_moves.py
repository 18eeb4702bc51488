"""`eplb plan --current`, `frontier`, `decide`, `migrate` and the net benefit of `compare`."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run

import eplb
from eplb import Cluster, LoadTrace, Placement, Service
from eplb.cli import main
from eplb.synthetic import deepseek_v3

CLUSTER = Cluster(8, 2, 5)
BASE = np.random.default_rng(0).lognormal(0.0, 1.0, (3, 32))
OTHER = np.random.default_rng(1).lognormal(0.0, 1.0, (3, 32))
MOE_SLOTS = 3 * 40

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """The command without a process of its own: its exit code, what it prints, its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def made(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eplb", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr()
        return int(done.value.code or 0), said.out, said.err

    return made


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    """One dense layer and three others: a placement for some loads, and loads that are others."""
    dense = np.zeros((1, 32))
    before, after = np.vstack([dense, BASE]), np.vstack([dense, OTHER])
    old = eplb.plan(before, CLUSTER).placement
    eplb.save_placement(old, tmp_path / "old.json", to="sglang")
    eplb.save_placement(old, tmp_path / "old.npz", to="deepseek")  # it tells its GPUs
    eplb.save_trace(LoadTrace(after), tmp_path / "one.npz")
    noise = np.random.default_rng(2).lognormal(0.0, 0.05, (12, 1, 32))
    eplb.save_trace(LoadTrace(after * noise), tmp_path / "many.npz")
    eplb.save_trace(LoadTrace(before * noise), tmp_path / "same.npz")


def loaded(path: str, gpus: int | None = None) -> Placement:
    return eplb.load_placement(path, gpus, 2)


def test_plan_keeps_to_the_budget_and_says_what_moves(call: Call) -> None:
    arguments = ("plan", "one.npz", "--gpus", 8, "--nodes", 2, "--current", "old.json")
    code, out, err = call(*arguments, "--max-moves", 7, "-o", "new.json", "--json")
    assert code == 0, err
    figures = json.loads(out)
    old, new = loaded("old.json", 8), loaded("new.json", 8)
    loads = eplb.load_trace("one.npz").loads
    made = eplb.plan(loads[0], CLUSTER, current=old, max_moves=7).placement
    assert np.array_equal(new.phy2log[1:], made.phy2log[1:])
    assert figures["moves"] == made.moves_from(old) <= 7
    assert figures["moved"] == figures["moves"] / MOE_SLOTS
    assert figures["current_balancedness"] == old.balancedness(loads) < figures["plan"]
    assert figures["running"] == figures["current_balancedness"]
    before, after = (each.gpu_load(loads).max(axis=2)[:, 1:] for each in (old, new))
    assert figures["busiest_gpu_saves"] == pytest.approx(np.mean(1.0 - after / before))
    code, out, _ = call(*arguments, "--max-moves", "5%")
    assert code == 0
    few = eplb.plan(loads[0], CLUSTER, current=old, max_moves=6)
    share = f"{few.moves} experts ({few.moves / MOE_SLOTS:.2%} of 120 slots)"
    assert "load than now, and" in " ".join(out.split())
    assert f"GPUs receive {share}. Experts that stay on a GPU keep their slot." in out
    code, out, _ = call(*arguments, "--move-cost", 1e9, "--json")
    assert (code, json.loads(out)["moves"]) == (0, 0)


def test_plan_takes_slots_from_the_placement_and_grows(call: Call) -> None:
    for current, more in (("old.json", ("--current-gpus", 8)), ("old.npz", ())):
        arguments = ("plan", "one.npz", "--gpus", 10, "--nodes", 2, "--current", current)
        code, out, err = call(*arguments, *more, "--json")
        assert code == 0, err
        figures = json.loads(out)
        assert (figures["gpus"], figures["slots"]) == (10, 50)
        grown = eplb.plan(
            eplb.load_trace("one.npz").loads[0], Cluster(10, 2, 5), current=loaded("old.npz")
        )
        assert figures["moves"] == grown.moves
    code, out, _ = call(*arguments, "--slots", 60, "--json")
    assert json.loads(out)["slots"] == 60


def test_frontier_is_the_function(call: Call) -> None:
    arguments = ("frontier", "one.npz", "--current", "old.npz", "--nodes", 2)
    code, out, err = call(*arguments, "--points", 7, "--json")
    assert code == 0, err
    figures = json.loads(out)
    loads = eplb.load_trace("one.npz").loads
    wanted = eplb.frontier(loads, CLUSTER, loaded("old.npz"), points=7)
    assert [point["moves"] for point in figures["points"]] == wanted.moves.tolist()
    assert [point["balancedness"] for point in figures["points"]] == wanted.balancedness.tolist()
    assert figures["slots_of_layers_with_load"] == MOE_SLOTS
    assert figures["points"][-1]["moved"] == wanted.moves[-1] / MOE_SLOTS
    code, out, _ = call(*arguments, "--points", 7)
    assert f"{wanted.balancedness[-1]:.4f}" in out
    assert "of slots gives 95% of the possible gain" in " ".join(out.split())
    code, out, _ = call("frontier", "same.npz", "--current", "old.json", "--gpus", 8)
    assert code == 0


@pytest.mark.parametrize(("name", "head"), [("f.svg", b"<?xml"), ("f.png", b"\x89PNG")])
def test_the_curve_is_drawn(call: Call, name: str, head: bytes) -> None:
    pytest.importorskip("matplotlib", reason="figures are drawn by matplotlib, an extra")
    code, out, err = call("frontier", "one.npz", "--current", "old.npz", "--plot", name)
    assert code == 0, err
    assert f"The curve is drawn in {name}." in out
    assert Path(name).read_bytes().startswith(head)
    first = Path(name).read_bytes()
    call("frontier", "one.npz", "--current", "old.npz", "--plot", name)
    assert Path(name).read_bytes() == first


def test_matplotlib_is_asked_for_before_the_work() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from eplb.cli.plot import check_plot_path\ncheck_plot_path('f.svg')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "drawing a frontier needs matplotlib: pip install matplotlib, or eplb with its extra 'plot'"
        in done.stderr
    )


SERVICE = ("--expert-bytes", 10**7, "--bandwidth-within", 100, "--bandwidth-between", 50)


def test_decide_is_the_function(call: Call) -> None:
    arguments = ("decide", "many.npz", "--current", "old.npz", "--nodes", 2, *SERVICE)
    code, out, err = call(*arguments, "--seconds", 60, "--stall", 0.5, "--json")
    assert code == 0, err
    figures = json.loads(out)
    service = Service(10**7, 100.0, 50.0, stall=0.5)
    loads = eplb.load_trace("many.npz").loads
    wanted = eplb.decide(loads, CLUSTER, loaded("old.npz"), service, 60.0)
    assert wanted.action == "move"
    for name in ("action", "moves", "gain", "reason", "lost_seconds", "total_bytes"):
        assert figures[name] == getattr(wanted, name)
    assert figures["layers"] == [1, 2, 3]
    code, out, _ = call(*arguments, "--seconds", 60, "-o", "go.json")
    assert code == 0
    assert out.count("Move: ") == 1
    assert "Placement written to go.json" in out
    assert loaded("go.json", 8).moves_from(loaded("old.npz")) > 0


def test_decide_waits_with_status_0_and_writes_nothing(call: Call) -> None:
    arguments = ("decide", "same.npz", "--current", "old.json", "--gpus", 8, *SERVICE)
    code, out, err = call(*arguments, "--seconds", 1e-6, "-o", "go.json")
    assert code == 0, err
    assert "Wait: no expert would gain 2 times the cost of its move" in " ".join(out.split())
    assert not Path("go.json").exists()
    code, out, _ = call(*arguments, "--seconds", 1e-6, "--json")
    assert (json.loads(out)["action"], json.loads(out)["layers"]) == ("wait", [])


def test_names_of_a_model_and_a_gpu(call: Call) -> None:
    arguments = ("decide", "one.npz", "--current", "old.npz", "--nodes", 2, "--seconds", 60)
    code, out, err = call(*arguments, "--model", "GPT-OSS-20b", "--gpu", "h100", "--json")
    assert code == 0, err
    service = Service.of("gpt-oss-20b", "H100", CLUSTER)
    assert json.loads(out)["service"] == vars(service)
    # A figure given is used in place of the GPU's.
    more = ("--gpu", "H100", "--expert-bytes", 5, "--bandwidth-between", 1.5)
    code, out, _ = call(*arguments, *more, "--expert-share", 0.25, "--json")
    wanted = {**vars(service), "expert_bytes": 5, "bandwidth_between": 1.5, "expert_share": 0.25}
    assert json.loads(out)["service"] == wanted
    engine = ("--engine", "vllm-sync", "--layer-seconds", 0.5)
    code, out, _ = call(*arguments, *more[:2], "--model", "gpt-oss-20b", *engine, "--json")
    synchronous = replace(service.in_engine("vllm-sync"), layer_seconds=0.5)
    assert json.loads(out)["service"] == vars(synchronous)


def test_migrate_is_the_function(call: Call) -> None:
    call("plan", "one.npz", "--gpus", 8, "--current", "old.json", "-o", "new.json")
    arguments = ("migrate", "old.json", "new.json", "--gpus", 8, "--nodes", 2)
    more = ("--experts-at-once", 2, "--spare-slots", 2, "--loads", "one.npz", *SERVICE)
    code, out, err = call(*arguments, *more, "-o", "t.json", "--json")
    assert code == 0, err
    figures: dict[str, Any] = json.loads(out)
    old, new = loaded("old.json", 8), loaded("new.json", 8)
    wanted = eplb.migrate(
        old,
        new,
        experts_at_once=2,
        spare_slots=2,
        loads=eplb.load_trace("one.npz").loads,
        bytes_per_expert=10**7,
        bandwidth_within=100.0,
        bandwidth_between=50.0,
    )
    for name in ("num_waves", "fewest_waves", "total_bytes", "bytes_between_nodes", "seconds"):
        assert figures[name] == getattr(wanted, name)
    written = json.loads(Path("t.json").read_text())
    assert [row["wave"] for row in written["transfers"]] == wanted.wave.tolist()
    assert [row["source"] for row in written["transfers"]] == wanted.source.tolist()
    assert [row["origin"] for row in written["copies"]] == wanted.copies.origin.tolist()
    code, out, _ = call(*arguments, *more)
    assert f"{wanted.num_transfers}" in out
    assert f"{wanted.total_bytes / 1e9:,.3f} GB" in out  # type: ignore[operator]
    code, out, _ = call(*arguments)
    assert "Give --model and --gpu, or bytes and bandwidths" in out
    code, out, _ = call("migrate", "old.json", "old.json", "--gpus", 8)
    assert "Nothing moves: every GPU already holds its experts." in out


def test_compare_tells_the_net_benefit(call: Call) -> None:
    arguments = ("compare", "many.npz", "--gpus", 8, "--policy", "contiguous", "--policy", "moving")
    code, out, err = call(*arguments, "--window-seconds", 5, *SERVICE, "--json")
    assert code == 0, err
    wanted = eplb.compare(
        eplb.load_trace("many.npz"),
        Cluster(8, 1, 5),
        ["contiguous", "moving"],
        service=Service(10**7, 100.0, 50.0),
        window_seconds=5.0,
    )
    nets = [score["net"] for score in json.loads(out)["scores"]]
    assert nets == [score.net for score in wanted.scores]
    assert nets[1] > 0.0 == nets[0]
    code, out, _ = call(*arguments, "--window-seconds", 5, *SERVICE)
    assert f"{nets[1]:+.2%}" in out
    assert "share of the service's time saved compared with contiguous" in " ".join(out.split())
    code, out, _ = call(*arguments)
    assert code == 0
    assert "net" not in out


CURRENT = ("--current", "old.npz")
RATES = (*CURRENT, *SERVICE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("plan", "one.npz", "--gpus", 8, "--max-moves", 3),
            "--max-moves needs the placement that runs",
        ),
        (
            ("plan", "one.npz", "--gpus", 8, *CURRENT, "--max-moves", -1),
            "--max-moves is '-1': give",
        ),
        (
            ("plan", "one.npz", "--gpus", 8, *CURRENT, "--max-moves", "5.5"),
            "--max-moves is '5.5': give",
        ),
        (
            ("plan", "one.npz", "--gpus", 8, *CURRENT, "--max-moves", "101%"),
            "--max-moves is '101%': give",
        ),
        (
            ("plan", "one.npz", "--gpus", 8, *CURRENT, "--max-moves", "nan%"),
            "--max-moves is 'nan%': give",
        ),
        (
            ("plan", "one.npz", "--gpus", 8, *CURRENT, "--move-cost", -1),
            "--move-cost is -1.0: give",
        ),
        (
            ("plan", "one.npz", "--gpus", 5, "--slots", 35, *CURRENT, "--max-moves", 0),
            "--max-moves is 0: ",
        ),
        (("plan", "one.npz", "--gpus", 8, "--current", "one.npz"), "one.npz: is no placement"),
        (("frontier", "one.npz", "--current", "none.json"), "none.json: does not exist"),
        (("frontier", "one.npz", "--current", "old.json"), "old.json: a file of sglang does not"),
        (("frontier", "one.npz", *CURRENT, "--points", 1), "--points is 1: give 2 or more"),
        (("frontier", "one.npz", *CURRENT, "--plot", "f.pdf"), "f.pdf: figures end with .svg or"),
        (("frontier", "one.npz", *CURRENT, "--nodes", 3), "8 GPUs do not divide over 3 nodes"),
        (("frontier", "zero.npz", *CURRENT), "zero.npz: no layer has any load"),
        (("decide", "one.npz", *CURRENT, "--seconds", 60), "the size of an expert is not known"),
        (
            ("decide", "one.npz", *CURRENT, "--seconds", 60, "--expert-bytes", 5),
            "the bandwidth of the GPUs is not known: give --gpu or --bandwidth-within",
        ),
        (("decide", "one.npz", *RATES, "--seconds", 0), "--seconds is 0.0: give a number of"),
        (
            ("decide", "one.npz", *RATES, "--seconds", 1, "--margin", 0.5),
            "--margin is 0.5: give a number",
        ),
        (("decide", "one.npz", *RATES, "--seconds", 1, "--stall", 2), "--stall is 2.0: give a"),
        (("decide", "one.npz", *RATES, "--seconds", 1, "--history", 0), "--history is 0: give 1"),
        (
            ("decide", "one.npz", *RATES, "--seconds", 1, "--gpu", "H101"),
            "the GPU 'H101' is not known",
        ),
        (
            ("decide", "one.npz", *CURRENT, "--seconds", 1, "--model", "DeepSeek-V3"),
            "--model DeepSeek-V3 has 256 experts in a layer, not 32: give another model, or "
            "--expert-bytes",
        ),
        (
            ("migrate", "old.npz", "old.npz", "--model", "DeepSeek-V3"),
            "--model DeepSeek-V3 has 256 experts in a layer, not 32",
        ),
        (
            ("compare", "many.npz", "--gpus", 8, "--model", "DeepSeek-V3"),
            "--model DeepSeek-V3 has 256 experts in a layer, not 32",
        ),
        (("plan", "one.npz", "--gpus", 3, "--slots", 32), "32 slots do not divide over 3 GPUs: 33"),
        (("decide", "one.npz", *RATES, "--seconds", 1, "-o", "p.yaml"), "p.yaml: a placement for"),
        (("migrate", "old.npz", "small.npz"), "small.npz: has experts 0 to 15, expected 0 to 31"),
        (("migrate", "old.npz", "old.npz", "-o", "t.csv"), "t.csv: transfers end with .json"),
        (("migrate", "old.npz", "old.npz", "-o", "old.npz"), "old.npz: transfers end with .json"),
        (("migrate", "old.npz", "old.npz", "--experts-at-once", 0), "--experts-at-once is 0: give"),
        (
            ("compare", "many.npz", "--gpus", 8, *SERVICE),
            "the trace does not say how long a window lasts: give window_seconds",
        ),
        (
            ("compare", "many.npz", "--gpus", 8, "--window-seconds", 0, *SERVICE),
            "--window-seconds is 0.0: give a number of seconds",
        ),
        (
            ("compare", "many.npz", "--gpus", 8, "--window-seconds", 5),
            "the size of an expert is not known: give --model or --expert-bytes",
        ),
    ],
)
def test_wrong_arguments_are_one_line(
    call: Call, arguments: tuple[object, ...], message: str
) -> None:
    eplb.save_trace(LoadTrace(np.zeros((2, 4, 32))), "zero.npz")
    small = Placement.contiguous(4, 16, Cluster(8, 1, 3))
    eplb.save_placement(small, "small.npz", to="deepseek")
    code, out, err = call(*arguments)
    assert (code, out) == (2, ""), err
    assert err.startswith(f"eplb: {message}"), err
    assert err.count("\n") == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 50, b'{"physical_to_logical_map": [[0]]}'])
def test_a_broken_placement_is_one_line(call: Call, damage: bytes) -> None:
    Path("bad.json").write_bytes(damage)
    for arguments in (
        ("plan", "one.npz", "--gpus", 8, "--current", "bad.json"),
        ("frontier", "one.npz", "--gpus", 8, "--current", "bad.json"),
        ("decide", "one.npz", "--gpus", 8, "--current", "bad.json", "--seconds", 1, *SERVICE),
        ("migrate", "old.npz", "bad.json", "--new-gpus", 1),
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("eplb: bad.json: "), err


def test_processes(tmp_path: Path) -> None:
    """The same from a shell, with loads of a real size."""
    loads = tmp_path / "loads.json"
    loads.write_text(json.dumps({"logical_count": deepseek_v3(seed=2)[:3].tolist()}))
    placement = Placement.contiguous(3, 256, Cluster(32, 1, 9))
    eplb.save_placement(placement, tmp_path / "p.json", to="sglang")
    more = ("--current", tmp_path / "p.json", "--gpus", 32)
    done = run("frontier", loads, *more, "--points", 5, COLUMNS="60")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 60
    assert done.stderr == ""
    done = run("decide", loads, *more, "--seconds", 60, "--gpu", "H200", "--model", "DeepSeek-V3")
    assert done.returncode == 0, done.stderr
    assert "Move: " in done.stdout


def test_a_gpu_dies(call: Call, tmp_path: Path) -> None:
    common = ("one.npz", "--gpus", 8, "--nodes", 2, "--current", "old.npz", "--dead", 3)
    code, said, errors = call("plan", *common, "-o", "next.json", "--to", "vllm")
    assert (code, errors) == (0, "")
    old = loaded("old.npz")
    cluster = CLUSTER.without([3])
    loads = eplb.load_trace("one.npz").loads[0]
    made = eplb.plan(loads, cluster, current=old)
    assert "of 32 experts in 35 slots on 7 of 8 GPUs (dead: 3) on 2 nodes" in said
    assert f"GPUs receive {made.moves} experts" in said
    first, expert = made.lost[made.lost[:, 0] > 0][0].tolist()
    assert f"{len(made.lost)} of them died with their last copy and are to be read from the" in said
    assert f"layer {first}: {expert}" in said
    written = eplb.load_placement("next.json", dense=[True, False, False, False])
    assert written.cluster == cluster
    assert np.array_equal(written.phy2log[1:], made.placement.phy2log[1:])
    assert "The cluster has changed: re-plan, which moves" in said
    # The file says who is dead; none is a GPU that is back.
    again = json.loads(call("plan", *common[:5], "--current", "next.json", "--json")[1])
    assert (again["dead"], again["slots"], again["lost"]) == ([3], 35, [])
    code, said, _ = call("plan", *common[:5], "--current", "next.json", "--dead", "none", "--json")
    assert json.loads(said)["dead"] == []
    code, said, errors = call("evaluate", "old.npz", "one.npz", "--dead", 3, "--json")
    assert f"{len(old.lost_on(cluster))} experts died with their last copy" in errors
    assert json.loads(said)["dead"] == [3]
    code, said, errors = call("migrate", "old.npz", "next.json", "--json", "--loads", "one.npz")
    assert json.loads(said)["num_lost"] == len(made.lost)
    code, said, errors = call(
        "migrate", "old.npz", "next.json", "--loads", "one.npz", "--leaving", 3, "--json"
    )
    assert json.loads(said)["num_lost"] == 0
    decide = ("--seconds", 60, "--expert-bytes", 10**7, "--gpu", "H200")
    for command, more in (("frontier", ()), ("decide", decide)):
        code, said, errors = call(command, *common, *more)
        assert (code, errors) == (0, ""), command


@pytest.mark.parametrize(
    ("dead", "message"),
    [
        ("8", "a dead GPU is 8: give 0 to 7"),
        ("0-7", "all of 8 GPUs are dead: one at least must be alive"),
        ("x", "--dead is 'x': give numbers of GPUs, as 13,14 or 8-15, or none"),
        ("0,1", "30 slots do not hold 32 experts: 2 slots are missing: give each of the 6 GPUs"),
    ],
)
def test_gpus_that_cannot_be_dead(call: Call, dead: str, message: str) -> None:
    code, said, errors = call(
        "plan", "one.npz", "--gpus", 8, "--current", "old.npz", "--dead", dead
    )
    assert (code, said) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
