"""Dumps of SGLang's recorder, and vllm-ascend's bare tensors."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb import FormatError, LoadTrace, merging
from eplb.formats import load_trace

trace_of: Any = LoadTrace
"""It takes lists for arrays."""

LOADS = np.array([[0.0, 0.0, 0.0], [5.0, 1.0, 2.0]])


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch reads and writes .pt files")


# SGLang


def test_stat_dump_without_unused_steps(tmp_path: Path, torch: Any) -> None:
    """A buffer that is half full; the file's name has the time of the dump."""
    buffer = torch.zeros((4, 2, 3), dtype=torch.int32)
    buffer[0] = torch.tensor(LOADS)
    buffer[2] = 2 * torch.tensor(LOADS)
    content = {"rank": 0, "logical_count": buffer, "average_utilization_rate_over_window": None}
    path = tmp_path / "expert_distribution_recorder_1755000000.25.pt"
    torch.save(content, path)
    # The file's time is of both steps, so of none.
    assert load_trace(path) == trace_of([LOADS, 2 * LOADS], ["0", "2"])
    torch.save({**content, "logical_count": buffer[2:]}, path)
    assert load_trace(path) == trace_of(2 * LOADS, ["0"], [1755000000.25])
    # A buffer that grows is saved as a view of a larger one.
    torch.save({**content, "logical_count": buffer[:1]}, tmp_path / "a.pt")
    assert load_trace(tmp_path / "a.pt") == trace_of(LOADS)
    torch.save({**content, "logical_count": buffer[3:]}, path)
    with pytest.raises(FormatError, match="all 1 steps are unused: nothing was recorded"):
        load_trace(path)


def test_stat_dumps_of_a_buffer_that_is_emptied_and_not_rewound(tmp_path: Path, torch: Any) -> None:
    """As SGLang's circular buffer: its dump sets all to 0, and the next step follows the last."""
    buffer = torch.zeros((10, 1, 2), dtype=torch.int32)
    position = 0
    for dumped in range(12):
        for step in range(1, 8):
            buffer[position] = step
            position = (position + 1) % len(buffer)
        path = tmp_path / f"expert_distribution_recorder_{1755000000 + dumped}.5.pt"
        torch.save({"rank": 0, "logical_count": buffer}, path)
        buffer.zero_()
        trace = load_trace(path)
        assert trace.loads[:, 0, 0].tolist() == list(range(1, 8))
        assert trace.names[0] == str(7 * dumped % 10)
    together = load_trace(tmp_path)
    assert together.loads[:, 0, 1].tolist() == 12 * list(range(1, 8))
    assert together.times is None


def test_stat_dumps_that_tell_no_order_stay_as_they_are(tmp_path: Path, torch: Any) -> None:
    """All steps used, or more than one gap: where time begins cannot be told."""
    for used in ([3, 1, 2], [3, 0, 1, 0, 2], [0, 3, 0, 1], [3, 0, 1, 0]):
        counts = torch.tensor(used, dtype=torch.int32)[:, None, None]
        torch.save({"rank": 0, "logical_count": counts}, tmp_path / "a.pt")
        trace = load_trace(tmp_path / "a.pt")
        assert trace.loads.ravel().tolist() == [each for each in used if each]


def record(torch: Any, pass_id: int, rank: int, counts: Any) -> dict[str, Any]:
    return {
        "forward_pass_id": pass_id,
        "rank": rank,
        "gatherer_key": "primary",
        "global_physical_count": torch.tensor(counts, dtype=torch.int32),
    }


def save_records(torch: Any, path: Path, records: list[Any], phy2log: Any) -> Path:
    torch.save(
        {"records": records, "last_physical_to_logical_map": torch.tensor(phy2log)},
        path,
    )
    return path


PHY2LOG = [[0, 1, 2, 0], [2, 1, 0, 1]]


def dump(folder: Path, rank: int, time: float = 1755000000.5) -> Path:
    return folder / f"expert_distribution_recorder_{time + rank / 64}_{rank}.pt"


def test_passes_are_added_up_over_ranks(tmp_path: Path, torch: Any) -> None:
    """Rank 1 started to record a pass later, and each rank looks at its own clock."""
    one, two = [[1, 2, 3, 4], [1, 0, 0, 5]], [[0, 0, 0, 1], [0, 2, 0, 2]]
    ids = {0: [7, 8, 9], 1: [8, 9]}
    for rank, pass_ids in ids.items():
        records = [record(torch, each, rank, (one, two)[rank]) for each in pass_ids]
        save_records(torch, dump(tmp_path, rank), records, PHY2LOG)
    # Of layer 0, expert 0 has slots 0 and 3; of layer 1, expert 1 has slots 1 and 3.
    first, second = [[5, 2, 3], [0, 5, 1]], [[1, 0, 0], [0, 4, 0]]
    both = np.add(first, second)
    assert load_trace(tmp_path) == trace_of([both, both], ["8", "9"])
    sources = load_trace(tmp_path).sources
    assert sources is not None
    assert sources.tolist() == [(2 * np.array(each)).tolist() for each in (first, second)]
    assert load_trace(dump(tmp_path, 0)).sources is None
    assert load_trace(dump(tmp_path, 0)).names == ("7", "8", "9")
    assert load_trace(dump(tmp_path, 1)).loads.tolist() == [second, second]


def test_ranks_that_counted_what_came_to_them_are_no_sources(tmp_path: Path, torch: Any) -> None:
    phy2log = [[*range(8), *range(4)]]
    for rank in range(4):
        counts = np.zeros((1, 12), int)
        counts[0, 3 * rank : 3 * rank + 3] = 5
        save_records(torch, dump(tmp_path, rank), [record(torch, 1, rank, counts)], phy2log)
    trace = load_trace(tmp_path)
    assert trace.loads.tolist() == [[[10] * 4 + [5] * 4]]
    assert trace.sources is None


def test_two_dumps_of_one_run_follow_each_other(tmp_path: Path, torch: Any) -> None:
    for time, pass_ids in [(1755000000.0, [3, 4]), (1755000100.0, [10, 11])]:
        for rank in (0, 1):
            records = [record(torch, each, rank, [[each, 0, 0, 1]] * 2) for each in pass_ids]
            save_records(torch, dump(tmp_path, rank, time), records, PHY2LOG)
    trace = load_trace(tmp_path)
    assert trace.names == ("3", "4", "10", "11")
    assert trace.times is None
    assert trace.loads[:, 0, 0].tolist() == [8, 10, 22, 24]


def test_times_of_dumps_of_one_pass_each(tmp_path: Path, torch: Any) -> None:
    for pass_id in (3, 9):
        for rank in (0, 1):
            path = dump(tmp_path, rank, 1755000000.0 + pass_id)
            save_records(torch, path, [record(torch, pass_id, rank, [[1] * 4] * 2)], PHY2LOG)
    trace = load_trace(tmp_path)
    assert trace.times is not None
    assert trace.times.tolist() == [1755000003.0, 1755000009.0]


def test_per_token_dump(tmp_path: Path, torch: Any) -> None:
    """With counts, as SGLang 0.5.23 saves it, and without, from the tokens' experts."""
    topk = torch.tensor([[[0, 3], [1, -1]], [[2, 2], [-1, -1]]], dtype=torch.int32)
    tokens = {
        "input_ids": [5, 70_000],
        "positions": [0, 1],
        "extend_seq_lens": [2],
        "forward_mode": 1,
        "topk_ids_of_layer": topk,
        "misc_objects": [],
    }
    counted = {**record(torch, 1, 0, [[1, 1, 0, 1], [0, 0, 2, 0]]), **tokens}
    bare = {key: value for key, value in counted.items() if key != "global_physical_count"}
    for each in (counted, bare):
        path = save_records(torch, tmp_path / "a.pt", [each], PHY2LOG)
        assert load_trace(path) == trace_of([[[2, 1, 0], [2, 0, 0]]], ["1"])


def test_recordings_that_do_not_fit_together(tmp_path: Path, torch: Any) -> None:
    def save(rank: int, pass_ids: list[int], phy2log: Any = PHY2LOG) -> Path:
        records = [record(torch, each, rank, [[1, 1, 1, 1]] * 2) for each in pass_ids]
        return save_records(torch, dump(tmp_path, rank), records, phy2log)

    path = save(0, [1, 2, 2])
    with pytest.raises(FormatError, match="has pass 2 of rank 0 again"):
        load_trace(path)
    save(0, [1, 2, 3])
    late = save(1, [1, 3])
    with pytest.raises(FormatError, match="pass 2 was recorded by some ranks, and not by rank 1"):
        load_trace(tmp_path)
    save(1, [1, 2, 3], [PHY2LOG[0], PHY2LOG[0]])
    with pytest.raises(FormatError, match=r"_1\.pt: has another placement than .*_0\.pt"):
        load_trace(tmp_path)
    save(1, [1, 2, 3], [[0, 1, 1, 0]] * 2)
    with pytest.raises(
        FormatError, match=r"_1\.pt: has 2 layers and 2 experts, .*_0\.pt has 2 and"
    ):
        load_trace(tmp_path)
    save(1, [1, 2, 3]).rename(dump(tmp_path, 1, 0.0))
    save(2, [1, 2, 3])
    dump(tmp_path, 1, 0.0).unlink()
    with pytest.raises(FormatError, match="ranks up to 2, and none of rank 1"):
        load_trace(tmp_path)
    assert not late.exists()
    np.save(tmp_path / "a.npy", LOADS)
    with pytest.raises(FormatError, match=r"a rank's passes.*folder of its own"):
        load_trace(tmp_path)


@pytest.mark.parametrize(
    ("phy2log", "change", "message"),
    [
        ([0, 1], {}, "is no map of layers and physical experts"),
        ([[0, 2]], {}, "has experts outside 0 to 1"),
        ([[0, -1]], {}, "has experts outside 0 to 1"),
        ([[0, 1]], {"forward_pass_id": "7"}, "no number 'forward_pass_id'"),
        ([[0, 1]], {"rank": -1}, "no number 'rank'"),
        ([[0, 1]], {"global_physical_count": [[1]]}, r"is list, expected a tensor"),
        ([[0, 1, 0]], {}, r"records\[0\]\['global_physical_count'\] has shape \(1, 2\)"),
    ],
)
def test_records_that_are_none(
    tmp_path: Path, torch: Any, phy2log: Any, change: dict[str, Any], message: str
) -> None:
    path = save_records(
        torch, tmp_path / "a.pt", [{**record(torch, 1, 0, [[1, 2]]), **change}], phy2log
    )
    with pytest.raises(FormatError, match=message):
        load_trace(path)


def test_tensor_of_vllm_ascend(tmp_path: Path, torch: Any) -> None:
    for dtype in (torch.int64, torch.float32, torch.bfloat16):
        torch.save(torch.tensor(LOADS).to(dtype), tmp_path / "a.pt")
        assert load_trace(tmp_path / "a.pt") == trace_of(LOADS)
    torch.save(torch.tensor(LOADS).T.contiguous().T, tmp_path / "a.pt")
    assert load_trace(tmp_path / "a.pt") == trace_of(LOADS)
    torch.save(torch.tensor(np.stack([LOADS, 0 * LOADS])), tmp_path / "a.pt")
    assert load_trace(tmp_path / "a.pt") == trace_of([LOADS, 0 * LOADS])


def test_numbers_that_are_none(tmp_path: Path, torch: Any) -> None:
    """Of every NaN the message is the same: numpy would warn of some."""
    for bits in (0x7FC00000, 0x7F800001):
        values = torch.tensor([[1, bits]], dtype=torch.int32).view(torch.float32)
        torch.save(values, tmp_path / "a.pt")
        with pytest.raises(FormatError, match=r"loads\[0, 0, 1\] is nan"):
            load_trace(tmp_path / "a.pt")


def test_per_token_dump_of_many_tokens(tmp_path: Path, torch: Any) -> None:
    """A list of more bytes than the directory of an archive may have."""
    ids = list(range(1 << 20, (1 << 20) + 60_000))
    records = [
        {**record(torch, each, 0, [[1, 1, 1, 1]] * 2), "input_ids": [each + token for token in ids]}
        for each in range(30)
    ]
    path = save_records(torch, tmp_path / "a.pt", records, PHY2LOG)
    assert path.stat().st_size > 9_000_000
    assert load_trace(path).num_windows == 30
    # Longer still, in one piece.
    records = [{**record(torch, 1, 0, [[1, 1, 1, 1]] * 2), "note": "x" * 20_000_000}]
    assert load_trace(save_records(torch, path, records, PHY2LOG)).num_windows == 1


@pytest.mark.parametrize("kind", ["stat", "per_pass", "npy"])
def test_memory_does_not_grow_with_what_is_mapped(
    tmp_path: Path, torch: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,200 passes hardly more is taken than the sums that are kept, and no token is lost."""
    monkeypatch.setattr(merging, "_MEMORY", 0)
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (1200, 4, 256)).astype(np.int32)
    path = tmp_path / ("a.npy" if kind == "npy" else "a.pt")
    if kind == "npy":
        np.save(path, counts)
    elif kind == "stat":
        torch.save({"logical_count": torch.from_numpy(counts)}, path)
    else:
        phy2log = np.tile(np.arange(256), (4, 1))
        records = [record(torch, number, 0, each) for number, each in enumerate(counts)]
        save_records(torch, path, records, phy2log)
    load_trace(path)
    tracemalloc.start()
    trace = load_trace(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(trace.total(), counts.sum(axis=0))
    assert most < 4 * 128 * trace.loads[0].nbytes < counts.size * 8 / 2
