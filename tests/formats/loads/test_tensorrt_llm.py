"""Statistics as TensorRT-LLM writes them, a folder of files."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb import FormatError, LoadTrace
from eplb.formats import load_trace

trace_of: Any = LoadTrace
"""It takes lists for arrays."""


def statistics(folder: Path, num_ranks: int = 2) -> None:
    """Two iterations of layers 1 and 3: layers 0 and 2 are dense."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors writes statistics")
    folder.mkdir(exist_ok=True)
    meta = {"num_experts": 3, "num_experts_per_token": 2}
    (folder / "meta_info.json").write_text(json.dumps(meta))
    for rank in range(num_ranks):
        counts = {
            f"{iteration}_{layer}": np.array([iteration, layer, rank], np.int32)
            for iteration, layer in itertools.product((9, 100), (1, 3))
        }
        safetensors.save_file(counts, folder / f"rank{rank}.safetensors")


def test_statistics_of_tensorrt_llm(tmp_path: Path) -> None:
    statistics(tmp_path)
    trace = load_trace(tmp_path)
    zero = [0, 0, 0]
    windows = [[zero, [2 * it, 2, 1], zero, [2 * it, 6, 1]] for it in (9, 100)]
    assert trace == trace_of(windows, ["9", "100"], top_k=2)
    assert trace.dense.tolist() == [True, False, True, False]
    assert trace.sources is not None
    assert trace.sources.sum(axis=0).tolist() == trace.total().tolist()
    assert trace.sources[:, 1].tolist() == [[109, 2, 0], [109, 2, 2]]


def test_ranks_of_stages_are_those_that_tokens_come_from(tmp_path: Path) -> None:
    """Ranks 0 and 1 have layer 0, ranks 2 and 3 layer 1: two sources, and none are told where one
    stage has three ranks.
    """
    from_numpy = pytest.importorskip("safetensors.numpy", reason="safetensors writes statistics")
    meta = {"num_experts": 2, "num_experts_per_token": 1}
    (tmp_path / "meta_info.json").write_text(json.dumps(meta))
    for rank in range(4):
        row = np.array([rank + 1, 10], np.int32)
        from_numpy.save_file({f"0_{rank // 2}": row}, tmp_path / f"rank{rank}.safetensors")
    sources = load_trace(tmp_path).sources
    assert sources is not None
    assert sources[:, :, 0].tolist() == [[1, 3], [2, 4]]
    from_numpy.save_file({"0_1": row}, tmp_path / "rank4.safetensors")
    assert load_trace(tmp_path).sources is None


def test_statistics_that_are_not_whole(tmp_path: Path) -> None:
    from_numpy = pytest.importorskip("safetensors.numpy", reason="safetensors writes statistics")
    statistics(tmp_path, num_ranks=3)
    for name in ("rank0.safetensors", "meta_info.json"):
        with pytest.raises(FormatError, match=rf"{name}: is one .* give (its|the) folder"):
            load_trace(tmp_path / name)
    (tmp_path / "rank1.safetensors").rename(tmp_path / "old")
    with pytest.raises(FormatError, match=r"rank1\.safetensors: is missing"):
        load_trace(tmp_path)
    row = np.ones(3, np.int32)
    for keys, message in [
        (["9_1", "9_3", "100_1"], "rank1.safetensors: lacks iteration 100, layer 3, that rank0"),
        (["9_1", "9_3", "100_1", "100_3", "100_4"], "rank0.safetensors: lacks .*layer 4"),
        (["9_1", "09_1"], "iteration 9, layer 1 twice"),
        (["9"], "has '9', expected names 'iteration_layer'"),
        (["9_1000000"], "claims a layer 1000000, at most 10000"),
        ([], "has no iteration"),
    ]:
        from_numpy.save_file(dict.fromkeys(keys, row), tmp_path / "rank1.safetensors")
        with pytest.raises(FormatError, match=message):
            load_trace(tmp_path)
    from_numpy.save_file({"9_1": row, "10_2": row}, tmp_path / "rank0.safetensors")
    with pytest.raises(FormatError, match=r"rank0\.safetensors: lacks iteration 9, layer 2"):
        load_trace(tmp_path)
    for values in (np.ones(4, np.int32), np.ones(3), np.array([1, -1, 1])):
        from_numpy.save_file({"9_1": values}, tmp_path / "rank0.safetensors")
        with pytest.raises(FormatError, match=r"rank0\.safetensors: '9_1' (is|has)"):
            load_trace(tmp_path)
    for text in ("{}", "[]", '{"num_experts": 2, "num_experts_per_token": 3}', "{", "[" * 9999):
        (tmp_path / "meta_info.json").write_text(text)
        with pytest.raises(FormatError, match=r"meta_info\.json: "):
            load_trace(tmp_path)
    (tmp_path / "meta_info.json").unlink()
    with pytest.raises(FormatError, match=r"meta_info\.json: is missing"):
        load_trace(tmp_path)
