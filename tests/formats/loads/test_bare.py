"""What the axes of an array are, and what its windows are: known by a name, told, or warned of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from notes import told
from numpy.typing import NDArray

import eplb

RNG = np.random.default_rng(7)
RATES = RNG.lognormal(4, 1, (4, 24))
LOADS = RNG.poisson(RATES, (6, 4, 24)).astype(float)
BY_RANK = LOADS[0].reshape(4, 3, 8)
"""[layers, ranks, local experts] of the first window."""


def save(path: Path, array: NDArray[Any]) -> Path:
    if path.suffix == ".pt":
        torch = pytest.importorskip("torch", reason="torch writes .pt files")
        torch.save(torch.tensor(array), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(array.tolist()))
    else:
        np.save(path, array)
    return path


@pytest.mark.parametrize("ending", [".npy", ".pt"])
def test_files_named_as_vllm_ascend_does(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step, window in enumerate(LOADS):
        save(tmp_path / f"moe_load_{10 * step}{ending}", window.reshape(4, 3, 8).astype(np.int32))
    with told(caplog, ""):
        assert np.array_equal(eplb.load_trace(tmp_path).loads, LOADS)


@pytest.mark.parametrize("ending", [".npy", ".pt", ".json"])
def test_axes_are_told(tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    ranks = RNG.poisson(RATES, (3, 4, 24))
    choices = RNG.integers(0, 24, (50, 4, 2))
    counts = [np.bincount(layer.ravel(), minlength=24) for layer in choices.transpose(1, 0, 2)]
    for axes, array, expected in (
        ("layers,ranks,local", BY_RANK, LOADS[0]),
        ("ranks,layers,local", BY_RANK.transpose(1, 0, 2), LOADS[0]),
        ("ranks, layers, experts", ranks, ranks.sum(axis=0)),
        ("layers,windows,experts", LOADS.transpose(1, 0, 2), LOADS),
        ("tokens,layers,choices", choices, counts),
    ):
        path = save(tmp_path / f"a{ending}", array)
        with told(caplog, ""):
            found = eplb.load_trace(path, axes=axes).loads
        assert np.array_equal(found, np.array(expected).reshape(found.shape))
    trace = eplb.load_trace(save(tmp_path / f"a{ending}", ranks), axes="ranks,layers,experts")
    assert np.array_equal(np.asarray(trace.sources), ranks)
    path = save(tmp_path / f"a{ending}", LOADS[0].T)
    assert np.array_equal(eplb.load_trace(path, axes="experts,layers").loads[0], LOADS[0])


def test_windows_of_ranks_have_four_axes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", LOADS.reshape(6, 4, 3, 8))
    with pytest.raises(eplb.FormatError, match=r"say what .* --axes windows,layers,ranks,local"):
        eplb.load_trace(path)
    found = eplb.load_trace(path, axes="windows,layers,ranks,local")
    assert np.array_equal(found.loads, LOADS)


@pytest.mark.parametrize(
    "axes",
    ["layers", "layers,local", "layers,experts,local", "time,layers,experts", "tokens,experts", ""],
)
def test_axes_that_say_nothing(tmp_path: Path, axes: str) -> None:
    path = save(tmp_path / "a.npy", LOADS)
    with pytest.raises(eplb.OptionError, match="name each axis, layers and experts among them"):
        eplb.load_trace(path, axes=axes)
    done = run("inspect", path, "--axes", axes)
    assert done.returncode == 2
    with pytest.raises(eplb.FormatError, match=r"has shape \(6, 4, 24\), and axes are layers, exp"):
        eplb.load_trace(path, axes="layers,experts")
    eplb.save_trace(eplb.LoadTrace(LOADS), tmp_path / "own.npz")
    with pytest.raises(eplb.OptionError, match="says what its axes are: leave out --axes"):
        eplb.load_trace(tmp_path / "own.npz", axes="windows,layers,experts")


@pytest.mark.parametrize("ending", [".npy", ".pt", ".json"])
def test_axes_that_look_wrong(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    with told(caplog, "windows have nothing in common.*--axes layers,ranks,local"):
        eplb.load_trace(save(tmp_path / f"a{ending}", BY_RANK))
    with told(caplog, "has 256 layers of 58 experts.*--axes experts,layers"):
        eplb.load_trace(save(tmp_path / f"b{ending}", RNG.integers(1, 99, (256, 58))))
    with told(caplog, ""):
        eplb.load_trace(save(tmp_path / f"c{ending}", LOADS))
    # A few tokens each: what differs is mostly the noise of counting.
    with told(caplog, ""):
        eplb.load_trace(save(tmp_path / f"c{ending}", RNG.poisson(RATES / 500, (40, 4, 24))))


@pytest.mark.parametrize("tokens", [3, 100, 10_000])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ranks", [2, 8])
def test_ranks_first_are_never_read_as_windows_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ranks: int, spread: float, tokens: int
) -> None:
    """[ranks, layers, local], two ranks and few or even loads too; windows with load are clear."""
    draw = np.random.default_rng(ranks)
    share = draw.lognormal(0, spread, (12, ranks, 16))
    path = save(tmp_path / "a.npy", draw.poisson(share * tokens).transpose(1, 0, 2))
    with told(caplog, f"as {ranks} windows of 12 layers and 16 experts, but .*--axes windows,lay"):
        eplb.load_trace(path)
    axes = "ranks,layers,local"
    with told(caplog, ""):
        assert eplb.load_trace(path, axes=axes).loads.shape == (1, 12, ranks * 16)
        eplb.load_trace(path, axes="windows,layers,experts")
    windows = draw.poisson(share[:, 0] * tokens, (ranks, 12, 16))
    with told(caplog, "" if spread else "nothing in common"):
        eplb.load_trace(save(tmp_path / "b.npy", windows))


def test_experts_that_tokens_chose_by_name(tmp_path: Path) -> None:
    """`routed_experts` [tokens, L, k], with padding, under that key or in a file of that name."""
    ids = RNG.integers(0, 8, (40, 3, 2))
    ids[30:] = -1
    expected = [np.bincount(layer[:30].ravel(), minlength=8) for layer in ids.transpose(1, 0, 2)]
    np.savez(tmp_path / "a.npz", routed_experts=ids, other=1)
    (tmp_path / "b.json").write_text(json.dumps({"routed_experts": ids.tolist()}))
    np.save(tmp_path / "routed_experts.npy", ids)
    for name in ("a.npz", "b.json", "routed_experts.npy"):
        trace = eplb.load_trace(tmp_path / name)
        assert trace.total().tolist() == np.array(expected).tolist()
        assert trace.layers is None
    np.savez(tmp_path / "a.npz", routed_experts=ids[:, 0])
    with pytest.raises(
        eplb.FormatError, match=r"shape \(40, 2\): give them as \[tokens, layers, k"
    ):
        eplb.load_trace(tmp_path / "a.npz")


def test_arrays_called_by_ranks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ranks = RNG.poisson(RATES, (3, 4, 24))
    for name in ("rank_layer_expert.npy", "counts-per-rank.npy"):
        np.save(tmp_path / name, ranks)
        with told(caplog, "its 3 arrays are taken for those of ranks.*--axes windows,layers,exp"):
            assert np.array_equal(eplb.load_trace(tmp_path / name).loads, [ranks.sum(axis=0)])
    assert len(eplb.load_trace(tmp_path / name, axes="windows,layers,experts")) == 3


def test_counters_since_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The engine starts again before the fifth file."""
    counts = [LOADS[0], LOADS[:2].sum(0), LOADS[:3].sum(0), LOADS[:4].sum(0), LOADS[4] / 2]
    for step, window in enumerate(counts[:4]):
        save(tmp_path / f"rank0_step{75 * step}_experts_counts.json", window)
    with told(caplog, "no count falls in any of 4 windows.*--counters"):
        eplb.load_trace(tmp_path)
    save(tmp_path / "rank0_step999_experts_counts.json", counts[4])
    with told(caplog, ""):
        found = eplb.load_trace(tmp_path, counters=True)
    assert np.array_equal(found.loads, [*LOADS[:4], LOADS[4] / 2])
    done = run("inspect", tmp_path, "--counters", "--json")
    assert json.loads(done.stdout)["windows"] == 5
    counts[4] = counts[3] + 1
    counts[4][2, 3] = counts[3][2, 3] - 1
    save(tmp_path / "rank0_step999_experts_counts.json", counts[4])
    with pytest.raises(eplb.FormatError, match=r"\(layer 2, expert 3, window rank0_step999_"):
        eplb.load_trace(tmp_path, counters=True)


def test_files_of_ranks_that_counted_their_own_experts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masks = np.repeat(np.eye(3), 8, axis=1)
    for rank, mask in enumerate(masks):
        save(tmp_path / f"rank{rank}.json", LOADS[0] * mask)
    with told(caplog, ""):
        trace = eplb.load_trace(tmp_path)
    assert np.array_equal(trace.loads, LOADS[:1])
    assert trace.sources is None
    with told(caplog, "16 of 24 experts have no load in any layer.*folder of all ranks' files"):
        eplb.load_trace(tmp_path / "rank1.json")
    # Names that do not tell ranks: only the experts do.
    for rank in range(3):
        (tmp_path / f"rank{rank}.json").rename(tmp_path / f"gpu{rank}.json")
    with told(caplog, "no expert has load in two of the 3 windows.*--merge all"):
        assert np.array_equal(eplb.load_trace(tmp_path).merged(3).loads, LOADS[:1])
    with told(caplog, ""):
        assert np.array_equal(eplb.load_trace(tmp_path, merge="all").loads, LOADS[:1])


def test_files_of_ranks_over_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each rank counted the tokens that it sent; the tenth step comes after the second."""
    for rank in (0, 1, 10):
        for step in (2, 10):
            save(tmp_path / f"counts_rank{rank}_step{step}.json", LOADS[step % 8] + rank)
    with told(caplog, "has files of ranks up to 10, and none of rank 2: the tokens that it count"):
        trace = eplb.load_trace(tmp_path)
    assert trace.names == ("counts_rank0_step2", "counts_rank0_step10")
    assert np.array_equal(trace.loads, [3 * LOADS[2] + 11, 3 * LOADS[2] + 11])
    assert trace.sources is None  # of rank 2 nothing is known
    for step in (2, 10):
        (tmp_path / f"counts_rank10_step{step}.json").rename(
            tmp_path / f"counts_rank2_step{step}.json"
        )
    sources = eplb.load_trace(tmp_path).sources
    assert np.array_equal(np.asarray(sources), [2 * (LOADS[2] + rank) for rank in (0, 1, 10)])
    assert eplb.load_trace(tmp_path, counters=True).sources is None
    (tmp_path / "counts_rank2_step2.json").unlink()
    with pytest.raises(eplb.FormatError, match="2 of rank 0, 2 of rank 1, 1 of rank 2 files: each"):
        eplb.load_trace(tmp_path)


def test_columns_of_mindie_are_the_experts_of_a_rank(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rank in range(3):
        rows = BY_RANK[:, rank].astype(int)
        np.savetxt(tmp_path / f"decode_{rank}.csv", rows, fmt="%d", delimiter=",")
    assert np.array_equal(eplb.load_trace(tmp_path).loads, LOADS[:1])
    with told(caplog, "decode_1.csv: is called like one rank's file: give the folder"):
        assert eplb.load_trace(tmp_path / "decode_1.csv").num_experts == 8
    # The layers of each interval are appended to those before.
    for rank in range(3):
        rows = LOADS.reshape(6, 4, 3, 8)[:, :, rank].reshape(24, 8).astype(int)
        np.savetxt(tmp_path / f"decode_{rank}.csv", rows, fmt="%d", delimiter=",")
    with told(caplog, "every 4 rows are alike, so its 24 rows are taken for 6 windows of 4 layers"):
        assert np.array_equal(eplb.load_trace(tmp_path).loads, LOADS)
    (tmp_path / "decode_1.csv").unlink()
    with pytest.raises(eplb.FormatError, match="ranks up to 2, and none of rank 1: its experts ar"):
        eplb.load_trace(tmp_path)


def test_dumps_without_a_token_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch", reason="torch writes .pt files")
    for number, window in enumerate((0 * LOADS[0], LOADS[1], 0 * LOADS[0])):
        counts = torch.tensor(window if number else window[None])
        path = tmp_path / f"expert_distribution_recorder_{100 + number}.5.pt"
        torch.save({"rank": 0, "logical_count": counts}, path)
    with told(caplog, r"10[02]\.5\.pt: is left out: nothing was recorded"):
        assert np.array_equal(eplb.load_trace(tmp_path).loads, LOADS[1:2])
    (tmp_path / "expert_distribution_recorder_101.5.pt").unlink()
    with pytest.raises(eplb.FormatError, match="nothing was recorded"):
        eplb.load_trace(tmp_path)


@pytest.mark.filterwarnings("error")
def test_windows_whose_sum_is_too_large_for_their_type(tmp_path: Path) -> None:
    loads = np.full((2, 3, 8), 6e4, np.float16)
    np.save(tmp_path / "a.npy", loads)
    assert eplb.load_trace(tmp_path / "a.npy").total()[0, 0] == 2 * float(loads[0, 0, 0])
