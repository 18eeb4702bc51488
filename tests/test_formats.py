"""Files of loads: what is read, and one line for every file that is not what it claims."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb import FormatError, LoadTrace
from eplb.formats import json_file, load_trace, save_trace

LOADS = np.array([[0.0, 0.0, 0.0], [5.0, 1.0, 2.0]])


def save(path: Path, loads: Any) -> Path:
    """Write loads in the format that the path's ending names."""
    if path.suffix == ".json":
        path.write_text(json.dumps({"logical_count": np.asarray(loads).tolist()}))
    elif path.suffix == ".npy":
        np.save(path, loads)
    elif path.suffix == ".npz":
        np.savez_compressed(path, counts=loads)
    elif path.suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
        save_trace(LoadTrace(loads), path)
    elif path.suffix == ".csv":
        np.savetxt(path, loads, delimiter=",")
    else:
        torch = pytest.importorskip("torch", reason="torch reads and writes .pt files")
        torch.save({"rank": 0, "logical_count": torch.as_tensor(loads)}, path)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.npy", "a.npz", "a.csv", "a.pt", "A.JSON"])
def test_round_trip_with_dense_layers_in_place(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name.lower(), LOADS).rename(tmp_path / name)
    assert load_trace(path).total().tolist() == LOADS.tolist()


@pytest.mark.parametrize("name", ["a.json", "a.npy", "a.npz", "a.pt"])
def test_windows_are_added_up(tmp_path: Path, name: str) -> None:
    windows = np.stack([LOADS, 2 * LOADS, 0 * LOADS])
    assert load_trace(save(tmp_path / name, windows)).total().tolist() == (3 * LOADS).tolist()


def test_bare_tensor_and_bare_list(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch reads and writes .pt files")
    torch.save(torch.tensor([[1, 2]], dtype=torch.int32), tmp_path / "a.pt")
    assert load_trace(tmp_path / "a.pt").total().tolist() == [[1.0, 2.0]]
    (tmp_path / "a.json").write_text("[[1, 2]]")
    assert load_trace(str(tmp_path / "a.json")).total().tolist() == [[1.0, 2.0]]


def test_csv_heading_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\ufeffexpert 0,expert 1\n1,2\n\n3,4\n", encoding="utf-8")
    assert load_trace(path).total().tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_named_array_of_several(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, times=np.arange(2), loads=LOADS)
    assert load_trace(path).total().tolist() == LOADS.tolist()
    np.savez(path, one=LOADS, two=LOADS)
    with pytest.raises(FormatError, match=r"has arrays one, two: name that of the loads"):
        load_trace(path).total()


def test_fortran_order_and_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.asfortranarray(LOADS).astype(">i4"))
    assert load_trace(path).total().tolist() == LOADS.tolist()


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickled_code_never_runs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch reads and writes .pt files")
    ran = tmp_path / "ran"
    hostile = np.array([Hostile(ran)], dtype=object)
    np.save(tmp_path / "a.npy", hostile, allow_pickle=True)
    np.savez(tmp_path / "a.npz", loads=hostile)
    torch.save({"logical_count": Hostile(ran)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Hostile(ran)))
    for name in ("a.npy", "a.npz", "a.pt", "b.pt"):
        with pytest.raises(FormatError, match=rf"{name}.*never loaded"):
            load_trace(tmp_path / name).total()
    assert not ran.exists()


JSON_ERRORS = [
    ("", "not a JSON file"),
    (" ", "not a JSON file"),
    ("{", "not a JSON file|found neither"),
    ("[" * 100_000, "nested too deep"),
    ('{"a": 1}', "expected the key 'logical_count' or 'load_history', found"),
    ("{}", "expected the key 'logical_count' or 'load_history', found"),
    ('{"logical_count": [[1]], "logical_count": [[2]]}', "key 'logical_count' stands there (2|tw)"),
    ("[[1, 2], [3]]", r"the array\[1\] has shape \(1,\), those before \(2,\)"),
    ("[[[1, 2], [3]]]", r"the array\[0\]\[1\] is no row of 2 numbers"),
    ("[[[1]], [[1], [2]]]", r"the array\[1\] has shape \(2, 1\), those before \(1, 1\)"),
    ('[["a", "b"]]', r"the array\[0\] has str, expected real numbers"),
    ("[[1, true]]", r"the array\[0\] has bool, expected real numbers"),
    ("[[null]]", r"the array\[0\] has NoneType, expected real numbers"),
    ("[1, 2]", r"the array\[0\] is (float|int), expected a row of numbers"),
    ("[[[[1]]]]", r"the array\[0\]\[0\] has list, expected real numbers"),
    ("[]", "the array is empty"),
    ("[[]]", r"the array\[0\] is empty"),
    ("[[[]]]", r"the array\[0\]\[0\] is empty"),
    ("[[1, NaN]]", r"loads\[0, 0, 1\] is nan|invalid char"),
    ("[[1, Infinity]]", r"loads\[0, 0, 1\] is inf|invalid char"),
    ("[[1, -2]]", r"loads\[0, 0, 1\] is -2"),
    ("[[[1, -2]], [[1, 3]]]", r"loads\[0, 0, 1\] is -2"),
    ("[[1, 1" + "0" * 400 + "]]", r"loads\[0, 0, 1\] is inf|overflow"),
    ("[[1, 1" + "0" * 10_000 + "]]", r"loads\[0, 0, 1\] is inf|overflow"),
    ("[[1]] 2", "not a JSON file"),
    ('{"load_history": []}', "load_history is empty"),
    ('{"load_history": [[[1]]]}', r"load_history\[0\] is no object with the key 'logical_expert"),
    ('{"load_history": [{"x": 1}]}', r"load_history\[0\] is no object with the key"),
    (
        '{"load_history": [{"logical_expert_load": [[1]]}, {"logical_expert_load": [[1, 2]]}]}',
        r"load_history\[1\] has shape \(1, 2\), those before \(1, 1\)",
    ),
    (
        '{"load_history": [{"logical_expert_load": [[1]], "logical_expert_load": [[2]]}]}',
        "the key 'logical_expert_load' stands there twice",
    ),
]


@pytest.fixture(params=["at once", "as a stream"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small files are parsed at once, large ones as a stream: here both ways."""
    if request.param == "as a stream":
        pytest.importorskip("ijson", reason="ijson reads streams")
        monkeypatch.setattr(json_file, "_SMALL", -1)
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("text", "message"), JSON_ERRORS)
def test_json_that_is_no_loads(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as raised:
        load_trace(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"logical_count": 3}', "logical_count is float, expected rows of numbers"),
        ("7", "the array is float, expected rows of numbers"),
        ('{"load_history": {}}', "load_history is no list of windows"),
    ],
)
def test_json_without_rows(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        load_trace(tmp_path / "a.json")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_of_every_layout(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "a.json"
    windows = np.stack([LOADS, 2 * LOADS])
    history = [
        {"step": 1, "note": '"load [\\', "logical_expert_load": window.tolist(), "more": {"x": [1]}}
        for window in windows
    ]
    for content, expected in [
        (LOADS.tolist(), LOADS),
        (windows.tolist(), windows),
        ({"note": {"logical_expert_load": 1}, "logical_count": LOADS.tolist()}, LOADS),
        ({"logical_count": windows.tolist(), "more": [[[[1]]]]}, windows),
        ({"model": "a", "load_history": history, "end": None}, windows),
    ]:
        for options in ({}, {"indent": 4}, {"separators": (",", ":")}):
            text = json.dumps(content, **options)
            path.write_text(f"{mark} \n{text}\n", encoding="utf-8")
            assert load_trace(path) == LoadTrace(expected)


def test_streams_are_cut_where_nothing_comes(tmp_path: Path, way: str) -> None:
    """Each would take ever more memory if it were read on."""
    if way == "at once":
        return
    path = tmp_path / "a.json"
    for text in (
        '{"load_history": [{"x": [' + "[]," * 3_000_000,
        '["' + "x" * 6_000_000,
        "[[" + "1" * 6_000_000,
        '{"load_history": [{"' + "x" * 6_000_000,
    ):
        path.write_text(text)
        with pytest.raises(FormatError, match=r"bytes without a (value|whole window)"):
            load_trace(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no line of numbers"),
        ("a,b\n", "has no line of numbers"),
        ("1,2\n3,x\n", "line 2 has 'x', no number"),
        ("1,2\n3\n", "line 2 has 1 columns, lines before 2"),
        ("1,-2\n", r"loads\[0, 0, 1\] is -2"),
        ("1,1e999\n", r"loads\[0, 0, 1\] is inf"),
        ('1,"2\n', "not a CSV file"),
        ("1," * 3_000_000, "line 1 is longer than"),
        ("1" * 200_000, "not a CSV file|line 1 has"),
    ],
)
def test_csv_that_is_no_loads(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        load_trace(path).total()


def header_claiming(shape: tuple[int, ...]) -> bytes:
    """The start of a .npy file that claims to be large."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def test_headers_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for shape in [(10**6, 10**6), (10**30, 10**30), (58, 256)]:
        path.write_bytes(header_claiming(shape) + b"\0" * 16)
        with pytest.raises(FormatError, match="claims shape"):
            load_trace(path).total()
    archive = tmp_path / "a.npz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("loads.npy", header_claiming((10**6, 10**6)))
    with pytest.raises(FormatError, match="claims shape"):
        load_trace(archive).total()


@pytest.mark.parametrize("name", ["a.json", "a.npy", "a.npz", "a.pt", "a.parquet"])
def test_cut_short_anywhere(tmp_path: Path, name: str) -> None:
    whole = save(tmp_path / name, LOADS).read_bytes()
    for length in sorted({0, 1, 2, 10, *range(20, len(whole) - 1, max(1, len(whole) // 25))}):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(FormatError, match=name):
            load_trace(tmp_path / name).total()


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        load_trace(tmp_path / "a.json").total()
    (tmp_path / "b.json").mkdir()
    with pytest.raises(FormatError, match=r"b\.json: has no file that ends in"):
        load_trace(tmp_path / "b.json").total()
    (tmp_path / "a.txt").touch()
    with pytest.raises(FormatError, match=r"none of \.csv, \.json, \.npy, \.npz, \.parquet, \.pt"):
        load_trace(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "c.json")
    (tmp_path / "d.json").symlink_to("/dev/zero")
    for name in ("c.json", "d.json"):
        with pytest.raises(FormatError, match=rf"{name}: is no regular file and no folder"):
            load_trace(tmp_path / name)
    with pytest.raises(FormatError, match="does not exist"):
        load_trace("a\0.json")
    (tmp_path / "e.json").symlink_to("e.json")
    with pytest.raises(FormatError, match=r"e\.json: "):
        load_trace(tmp_path / "e.json")
