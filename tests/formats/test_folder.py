"""Folders of files as one trace, the recorded ones among them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workloads import NAMES, write_workloads

from eplb import FormatError, LoadTrace, OptionError
from eplb.formats import load_trace, save_trace

trace_of: Any = LoadTrace
"""It takes lists for arrays."""

LOADS = np.array([[0.0, 0.0, 0.0], [5.0, 1.0, 2.0]])


def write_json(path: Path, loads: Any) -> None:
    path.write_text(json.dumps({"logical_count": np.asarray(loads).tolist()}))


def test_folder_in_natural_order(tmp_path: Path) -> None:
    """Files of many kinds, one with two windows; what is no format is passed over."""
    for step in (10, 9, 100):
        write_json(tmp_path / f"step{step}.json", step * LOADS)
    np.save(tmp_path / "step020.npy", [20 * LOADS, 21 * LOADS])
    (tmp_path / "readme.md").write_text("no loads")
    (tmp_path / ".hidden.json").write_text("no loads")
    (tmp_path / "older.json").mkdir()
    trace = load_trace(tmp_path)
    assert trace.names == ("step9", "step10", "step020/0", "step020/1", "step100")
    assert trace.loads[:, 1, 0].tolist() == [45, 50, 100, 105, 500]
    assert load_trace(tmp_path).total().tolist() == (160 * LOADS).tolist()


def test_a_folder_of_workloads_is_told_to_be_no_series(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("step1", "step2", "step10"):
        write_json(tmp_path / f"{name}.json", LOADS)
    load_trace(tmp_path)
    assert caplog.messages == []
    write_json(tmp_path / "chat.json", LOADS)
    trace = load_trace(tmp_path)
    assert not trace.ordered
    (told,) = caplog.messages
    assert "2 kinds of names (chat.json to step10.json) tell no order in time" in told
    caplog.clear()
    # Who gives the files gives their order, and their sum needs none.
    assert load_trace([tmp_path / "step1.json", tmp_path / "chat.json"]).ordered
    assert load_trace(tmp_path, merge="all").ordered
    assert caplog.messages == []
    assert not load_trace([tmp_path / "step1.json", tmp_path]).ordered


@pytest.mark.parametrize("ending", ["npz", "csv"])
def test_what_is_in_no_order_stays_so(tmp_path: Path, ending: str) -> None:
    trace = load_trace(write_workloads(tmp_path / "loads"))
    assert (trace.ordered, trace.names) == (False, NAMES)
    assert repr(trace) == "LoadTrace(5 workloads in no order, 3 layers, 16 experts)"
    assert trace != trace_of(trace.loads, trace.names)
    assert not trace.pick([2, 0]).ordered
    assert trace.pick([2]).ordered
    assert not trace.merged(2).ordered
    assert len(trace.last(1)) == 5
    # A folder of such a file, which is one kind of name, is in no order either.
    (tmp_path / "saved").mkdir()
    save_trace(trace, tmp_path / "saved" / f"all.{ending}")
    assert load_trace(tmp_path / "saved" / f"all.{ending}") == trace
    assert not load_trace(tmp_path / "saved").ordered


def test_times_tell_an_order_that_names_do_not(tmp_path: Path) -> None:
    for name, time in (("a", 1.0), ("b", 2.0)):
        save_trace(trace_of(LOADS, ["x"], [time]), tmp_path / f"{name}.npz")
    assert load_trace(tmp_path).ordered
    save_trace(trace_of(LOADS, ["x"], [0.5]), tmp_path / "c.npz")
    assert not load_trace(tmp_path).ordered


def test_dumps_in_order_of_time(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch reads and writes .pt files")
    times = [1755000000.5, 1755000000.25, 1755000000.75]
    for time in times:
        content = {"rank": 0, "logical_count": torch.tensor(LOADS)[None] * (time % 1)}
        torch.save(content, tmp_path / f"expert_distribution_recorder_{time}.pt")
    trace = load_trace(tmp_path)
    assert trace.times is not None
    assert trace.times.tolist() == sorted(times)
    assert trace.loads[:, 1, 0].tolist() == [1.25, 2.5, 3.75]


def test_what_all_files_tell_is_kept(tmp_path: Path) -> None:
    save_trace(trace_of(LOADS, ["x"], [1.0], 2, "m"), tmp_path / "1.npz")
    save_trace(trace_of(LOADS, ["y"], [2.0], 2, "m"), tmp_path / "2.csv")
    expected = trace_of([LOADS, LOADS], ["1", "2"], [1.0, 2.0], 2, "m")
    assert load_trace(tmp_path) == expected
    save_trace(trace_of(LOADS, ["y"], None, 3, "other"), tmp_path / "2.csv")
    assert load_trace(tmp_path) == trace_of([LOADS, LOADS], ["1", "2"])


def test_a_bad_file_in_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"has no file that ends in any of \.csv, \.json"):
        load_trace(tmp_path)
    write_json(tmp_path / "a.json", LOADS)
    write_json(tmp_path / "b.json", LOADS[:, :2])
    message = r"b\.json: has 2 layers and 2 experts, a\.json has 2 and 3"
    with pytest.raises(FormatError, match=message):
        load_trace(tmp_path)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(FormatError, match=r"b\.json: not a whole JSON file") as raised:
        load_trace(tmp_path)
    assert str(raised.value).startswith(str(tmp_path / "b.json"))


def test_several_files_and_folders_follow_each_other_as_given(tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    for step in (10, 9):
        write_json(folder / f"step{step}.json", step * LOADS)
    np.save(tmp_path / "two.npy", [2 * LOADS, 3 * LOADS])
    write_json(tmp_path / "one.json", LOADS)
    files: list[str | Path] = [tmp_path / "two.npy", folder, str(tmp_path / "one.json")]
    trace = load_trace(files)
    assert trace.names == ("two/0", "two/1", "step9", "step10", "one")
    assert trace.loads[:, 1, 0].tolist() == [10, 15, 45, 50, 5]
    assert load_trace(files[::-1]).names == ("one", "step9", "step10", "two/0", "two/1")
    assert load_trace([folder]) == load_trace(folder)
    assert len(load_trace(files, merge="all").loads) == 1
    with pytest.raises(OptionError, match="no file is given"):
        load_trace([])
    with pytest.raises(FormatError, match=r"none\.json: does not exist"):
        load_trace([*files, tmp_path / "none.json"])


def test_files_of_ranks_are_added_up_in_the_order_given(tmp_path: Path) -> None:
    for rank, step in ((0, 1), (0, 2), (1, 1), (1, 2)):
        write_json(tmp_path / f"step{step}_rank{rank}.json", (10 * step + rank) * LOADS)
    steps = [[tmp_path / f"step{step}_rank{rank}.json" for rank in (0, 1)] for step in (2, 1)]
    trace = load_trace([*steps[0], *steps[1]])
    assert trace.loads[:, 1, 0].tolist() == [5 * 41, 5 * 21]
    with pytest.raises(FormatError, match="2 of rank 0, 1 of rank 1 files: each rank needs as"):
        load_trace([*steps[0], steps[1][0]])


def test_recorded_folder_is_one_trace(traces: Path) -> None:
    trace = load_trace(traces / "deepseek_v3")
    files = sorted((traces / "deepseek_v3").iterdir(), key=lambda file: len(file.name))
    assert trace.loads.shape == (6, 61, 256)
    assert sorted(trace.names) == sorted(file.stem for file in files)
    assert trace.names.index("prefill_in512") < trace.names.index("prefill_in2048")
    assert np.flatnonzero(trace.dense).tolist() == [0, 1, 2]
    for file in files:
        window = trace.loads[trace.names.index(file.stem)]
        assert window.tolist() == json.loads(file.read_text())["logical_count"]


def test_recorded_windows(traces: Path) -> None:
    assert load_trace(traces / "gptoss20b_domains_2048.npz").loads.shape == (105, 24, 32)
    assert load_trace(traces / "qwen3_30b.npz").loads.shape == (1, 48, 128)
