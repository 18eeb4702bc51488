"""Lists of layers, experts and counts, as tables, arrays and lines of JSON."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from notes import told

import eplb

ROWS = [(3, 0, 5), (3, 2, 7), (3, 7, 1), (5, 1, 4), (5, 6, 2), (5, 7, 9)]
EXPECTED = np.zeros((2, 8))
for _layer, _expert, _count in ROWS:
    EXPECTED[int(_layer == 5), _expert] = _count


def table(path: Path, heading: str, rows: Sequence[tuple[int, ...]], mark: str = ",") -> Path:
    lines = [heading, *(mark.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("heading", ["layer_id,expert_id,count", " Layer , EXPERT,tokens"])
def test_tables(tmp_path: Path, heading: str, caplog: pytest.LogCaptureFixture) -> None:
    with told(caplog, ""):
        trace = eplb.load_trace(table(tmp_path / "a.csv", heading, ROWS))
    assert trace.loads.tolist() == [EXPECTED.tolist()]
    assert trace.layers == (3, 5)


def test_a_table_without_layers_is_of_one(tmp_path: Path) -> None:
    rows = [(expert, 10 - expert) for expert in range(8)]
    trace = eplb.load_trace(table(tmp_path / "a.csv", "expert_id,count", rows))
    assert trace.loads.tolist() == [[[10.0 - expert for expert in range(8)]]]
    assert trace.layers is None


def test_windows_and_ranks_in_columns(tmp_path: Path) -> None:
    """Ranks are added up."""
    heading = "step,rank,layer,expert,count"
    rows = [(step, rank, *row) for step in (2, 10) for rank in (0, 1) for row in ROWS]
    path = table(tmp_path / "a.csv", heading, rows)
    trace = eplb.load_trace(path)
    assert trace.names == ("2", "10")
    assert np.array_equal(trace.loads, [2 * EXPECTED] * 2)
    pa = pytest.importorskip("pyarrow", reason="pyarrow writes Parquet")
    import pyarrow.parquet as pq

    columns = dict(zip(heading.split(","), np.array(rows).T, strict=True))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert np.array_equal(eplb.load_trace(tmp_path / "a.parquet").loads, trace.loads)


def test_files_of_ranks_that_lack_pairs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SGLang's first recorder; no rank has all layers and experts."""
    for rank, rows in enumerate((ROWS[:3], ROWS[3:], [(4, 0, 1)])):
        name = f"expert_distribution_rank{rank}_timestamp174434775{rank}.25.csv"
        table(tmp_path / name, "layer_id,expert_id,count", rows)
    trace = eplb.load_trace(tmp_path)
    assert trace.layers == (3, 4, 5)
    assert trace.loads[0, ::2].tolist() == EXPECTED.tolist()
    for path in tmp_path.iterdir():
        path.rename(tmp_path / path.name.replace("rank", ""))
    assert eplb.load_trace(tmp_path).num_windows == 3
    (tmp_path / "z.csv").write_text("1,2\n3,4\n")
    with pytest.raises(eplb.FormatError, match=r"z\.csv: is no list of experts and counts"):
        eplb.load_trace(tmp_path)
    with told(
        caplog, "lists experts up to 6, so 7 are taken.*row with its last expert and count 0"
    ):
        eplb.load_trace(table(tmp_path / "b.csv", "layer,expert,count", ROWS[4:5]))


def test_lists_without_a_heading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.save(tmp_path / "a.npy", np.array(ROWS))
    text = "\n".join(",".join(map(str, row)) for row in ROWS)
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    for name in ("a.npy", "a.csv", "a.json"):
        with told(caplog, "its 3 columns are taken for layer, expert, count"):
            assert eplb.load_trace(tmp_path / name).loads.tolist() == [EXPECTED.tolist()]
    (tmp_path / "a.csv").write_text("\n".join(f"{n},{n * n % 7}" for n in range(8)))
    with told(caplog, "its 2 columns are taken for expert, count"):
        assert eplb.load_trace(tmp_path / "a.csv").loads.shape == (1, 1, 8)
    # Loads of three experts are no list.
    (tmp_path / "a.csv").write_text("\n".join(f"{7 * n % 5},{n % 3},9" for n in range(8)))
    with told(caplog, ""):
        assert eplb.load_trace(tmp_path / "a.csv").loads.shape == (1, 8, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expert,hot\n0,1\n", "has a column 'expert' and none of counts.*--axes experts,layers"),
        ("expert,count\n", "has no line of numbers"),
        ("expert,count\n1.5,2\n", "row 1 of the list has expert 1.5, expected a number from 0 to"),
        ("layer,expert,count\n-1,1,2\n", "row 1 of the list has layer -1, expected a number"),
        ("expert,count\n1\n", "line 2 has 1 columns, the heading 2"),
        ("expert,count\n1,x\n", "line 2 has 'x', no number"),
        ("expert,count\n1,-4\n", "is -4.0: loads are numbers of tokens"),
        ("expert,count\n99999999,4\n", "row 1 of the list has expert 1e\\+08"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(eplb.FormatError, match=message):
        eplb.load_trace(tmp_path / "a.csv")


def test_lines_of_json(tmp_path: Path) -> None:
    """A line a token and layer; -1 is padding."""
    lines = [
        {"req_id": f"r{token}", "token_idx": token, "layer": layer, "topk_ids": [expert, 7, -1]}
        for token, (layer, expert) in enumerate([(3, 0), (3, 1), (4, 0), (3, 0)])
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    trace = eplb.load_trace(path)
    assert trace.layers == (3, 4)
    assert trace.loads[0].tolist() == [[2, 1, 0, 0, 0, 0, 0, 3], [1, 0, 0, 0, 0, 0, 0, 1]]
    counted = [{"layer": 3, "expert": each, "count": each + 1} for each in range(4)]
    path.write_text("\n".join(map(json.dumps, counted)))
    assert eplb.load_trace(path).loads.tolist() == [[[1, 2, 3, 4]]]
    for line, message in (
        ('{"layer": 3}', "line 1 has no numbers under 'layer' and 'topk_ids'"),
        ("[1]", "line 1 is no object"),
        ("{", "not a whole JSON lines file"),
    ):
        path.write_text(line)
        with pytest.raises(eplb.FormatError, match=message):
            eplb.load_trace(path)


def test_lines_of_json_of_all_layers(tmp_path: Path) -> None:
    """As vLLM returns them: `routed_experts` [tokens, layers, k] of requests, or of one token."""
    ids = np.random.default_rng(0).permuted(np.tile(np.arange(8), (30, 3, 1)), axis=2)[:, :, :2]
    expected = [[np.bincount(layer.ravel(), minlength=8) for layer in ids.transpose(1, 0, 2)]]
    requests = [
        {"prompt_routed_experts": None, "choices": [{"routed_experts": ids[:10].tolist()}]},
        {"req_id": "b", "routed_experts": ids[10:25].tolist()},
        *({"token_idx": at, "routed_experts": row.tolist()} for at, row in enumerate(ids[25:])),
    ]
    path = tmp_path / "a.jsonl"
    text = "\n".join(map(json.dumps, requests))
    path.write_text(text)
    trace = eplb.load_trace(path)
    assert np.array_equal(trace.loads, expected)
    assert trace.layers is None  # they are MoE layers in order, whatever their numbers
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(text)
    assert np.array_equal(eplb.load_trace(tmp_path / "a.jsonl.gz").loads, expected)
    # The same as one response, and as a list of them.
    answers = [{"routed_experts": half.tolist()} for half in (ids[:10], ids[10:20])]
    response = {"prompt_routed_experts": ids[20:].tolist(), "choices": answers, "usage": {}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(response))
    assert np.array_equal(eplb.load_trace(path).loads, expected)
    for content, message in (
        (answers, r"array\[0\] is an object.* read from a \.jsonl file, each on a line of its own"),
        ({"routed_experts": "AAEC"}, r"routed_experts is text: decode it, and give an array \[tok"),
        (
            {"choices": [{"routed_experts": [[[[1]]]]}]},
            r"choices\[0\]\.routed_experts\[0\]\[0\] has list, expected real",
        ),
        ({"routed_experts": [[[-2, 1]]]}, r"experts outside -1 to \d+ under routed_experts"),
        (
            {"choices": [{"text": "yes"}]},
            "expected the key 'logical_count'.* 'routed_experts' are read too",
        ),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(eplb.FormatError, match=message):
            eplb.load_trace(path)


def test_several_tokens_on_a_line_of_json(tmp_path: Path) -> None:
    lines = [{"layer": 3, "topk_ids": [[0, 3], [3, 1], [-1, -1]]}, {"layer": 4, "topk_ids": [2, 3]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    trace = eplb.load_trace(path)
    assert (trace.layers, trace.loads.tolist()) == ((3, 4), [[[1, 1, 0, 2], [0, 0, 1, 1]]])
    path.write_text(path.read_text()[:-3])
    with pytest.raises(eplb.FormatError, match=r"not a whole JSON lines file \(line 2: Expecting"):
        eplb.load_trace(path)


def test_tables_with_a_column_of_layers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Layers from 3 on; without a heading they are known by counting up. Or semicolons."""
    rows = [(layer, 50 * layer % 17, 9, 30, 4) for layer in (3, 4, 5)]
    path = table(tmp_path / "a.csv", "layer_id,0,1,2,3", rows)
    with told(caplog, ""):
        assert eplb.load_trace(path).layers == (3, 4, 5)
    table(path, "layer_id;0;1;2;3", rows, ";")
    assert eplb.load_trace(path).layers == (3, 4, 5)
    path.write_text("\n".join(",".join(map(str, row)) for row in rows))
    with told(caplog, "its first column counts 3 to 5, and is taken for the layers' numbers"):
        trace = eplb.load_trace(path)
    assert (trace.layers, trace.num_experts) == ((3, 4, 5), 4)
    path.write_text('"1,080",152,87\n231,208,319\n')
    with pytest.raises(eplb.FormatError, match="line 1 has '1,080': write numbers without separ"):
        eplb.load_trace(path)


def test_snapshots_of_vllm(tmp_path: Path) -> None:
    maps = [[[0, 1, 2, 0]], [[2, 1, 0, 1]]]
    loads = [[[5, 1, 2, 3]], [[4, 3, 2, 1]]]
    snapshots = [
        {"step": step, "window_expert_load": load, "physical_to_logical_map": experts}
        for step, (load, experts) in enumerate(zip(loads, maps, strict=True))
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"world_size": 2, "snapshots": snapshots}))
    assert eplb.load_trace(path).loads.tolist() == [[[8, 1, 2]], [[2, 4, 4]]]
    # As lines, with an empty slot, and with one map for all.
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, snapshots)))
    assert eplb.load_trace(lines).loads.tolist() == [[[8, 1, 2]], [[2, 4, 4]]]
    fewer = {"step": 0, "window_expert_load": [[5, 1, 2, 0]]}
    empty: dict[str, Any] = {"physical_to_logical_map": [[0, 1, 2, -1]], "snapshots": [fewer]}
    path.write_text(json.dumps(empty))
    assert eplb.load_trace(path).loads.tolist() == [[[5, 1, 2]]]
    empty["snapshots"] = [{"window_expert_load": [[5, 1, 2, 3]]}]
    path.write_text(json.dumps(empty))
    with pytest.raises(eplb.FormatError, match=r"\[0\] has load in a slot whose expert is -1"):
        eplb.load_trace(path)
    snapshots[1]["physical_to_logical_map"] = [[0, 1, 2, 9]]
    path.write_text(json.dumps({"snapshots": snapshots}))
    with pytest.raises(
        eplb.FormatError, match=r"snapshots\[1\]\..*_map has experts outside its sl"
    ):
        eplb.load_trace(path)


def test_pipeline_stages_of_tensorrt_llm(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors writes statistics")
    (tmp_path / "meta_info.json").write_text('{"num_experts": 3, "num_experts_per_token": 1}')
    row = np.array([1, 2, 3], np.int32)
    for rank in range(4):
        layers = (3, 4) if rank < 2 else (5, 6)
        counts = {f"{step}_{layer}": row * layer + step for step in (0, 1) for layer in layers}
        numpy.save_file(counts, tmp_path / f"rank{rank}.safetensors")
    trace = eplb.load_trace(tmp_path)
    assert trace.loads.shape == (2, 7, 3)
    assert trace.layers == tuple(range(7))
    assert trace.loads[1, 3:].tolist() == [
        (2 * (row * layer + 1)).tolist() for layer in range(3, 7)
    ]
    numpy.save_file({"0_5": row, "0_6": row}, tmp_path / "rank3.safetensors")
    with pytest.raises(eplb.FormatError, match=r"rank3\.safetensors: lacks iteration 1, layer 5"):
        eplb.load_trace(tmp_path)
