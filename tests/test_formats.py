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
from hypothesis import given
from hypothesis import strategies as st

from eplb.errors import FormatError
from eplb.files import write_text
from eplb.formats import read_loads

LOADS = np.array([[0.0, 0.0, 0.0], [5.0, 1.0, 2.0]])


def save(path: Path, loads: Any) -> Path:
    """Write loads in the format that the path's ending names."""
    if path.suffix == ".json":
        path.write_text(json.dumps({"logical_count": np.asarray(loads).tolist()}))
    elif path.suffix == ".npy":
        np.save(path, loads)
    elif path.suffix == ".npz":
        np.savez_compressed(path, counts=loads)
    elif path.suffix == ".csv":
        np.savetxt(path, loads, delimiter=",")
    else:
        torch = pytest.importorskip("torch", reason="torch reads and writes .pt files")
        torch.save({"rank": 0, "logical_count": torch.as_tensor(loads)}, path)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.npy", "a.npz", "a.csv", "a.pt", "A.JSON"])
def test_round_trip_with_dense_layers_in_place(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name.lower(), LOADS).rename(tmp_path / name)
    assert read_loads(path).tolist() == LOADS.tolist()


@pytest.mark.parametrize("name", ["a.json", "a.npy", "a.npz", "a.pt"])
def test_windows_are_added_up(tmp_path: Path, name: str) -> None:
    windows = np.stack([LOADS, 2 * LOADS, 0 * LOADS])
    assert read_loads(save(tmp_path / name, windows)).tolist() == (3 * LOADS).tolist()


def test_bare_tensor_and_bare_list(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch reads and writes .pt files")
    torch.save(torch.tensor([[1, 2]], dtype=torch.int32), tmp_path / "a.pt")
    assert read_loads(tmp_path / "a.pt").tolist() == [[1.0, 2.0]]
    (tmp_path / "a.json").write_text("[[1, 2]]")
    assert read_loads(str(tmp_path / "a.json")).tolist() == [[1.0, 2.0]]


def test_csv_heading_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\ufeffexpert 0,expert 1\n1,2\n\n3,4\n", encoding="utf-8")
    assert read_loads(path).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_named_array_of_several(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, times=np.arange(2), loads=LOADS)
    assert read_loads(path).tolist() == LOADS.tolist()
    np.savez(path, one=LOADS, two=LOADS)
    with pytest.raises(FormatError, match=r"has arrays one, two: name that of the loads"):
        read_loads(path)


def test_fortran_order_and_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.asfortranarray(LOADS).astype(">i4"))
    assert read_loads(path).tolist() == LOADS.tolist()


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
            read_loads(tmp_path / name)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON file"),
        ("{", "not a JSON file"),
        ("[" * 100_000, "nested too deep|not a JSON file"),
        ('{"a": 1}', "expected the key 'logical_count', found 'a'"),
        ("{}", "expected the key 'logical_count', found none"),
        ('{"logical_count": 3}', "expected rows of numbers, found int"),
        ("7", "expected rows of numbers, found int"),
        ("[[1, 2], [3]]", "rows of different lengths"),
        ('[["a", "b"]]', "give real numbers"),
        ("[[null]]", "give real numbers"),
        ("[1, 2]", r"give two axes, layers and experts \[L, E\]"),
        ("[[[[1]]]]", r"give two axes, layers and experts \[L, E\]"),
        ("[]", r"give two axes"),
        ("[[]]", "loads are empty"),
        ("[[1, NaN]]", r"loads\[0, 1\] is nan"),
        ("[[1, Infinity]]", r"loads\[0, 1\] is inf"),
        ("[[1, -2]]", r"loads\[0, 1\] is -2"),
        ("[[[1, -2]], [[1, 3]]]", r"loads\[0, 1\] is -2"),
        ("[[1, 1" + "0" * 400 + "]]", "give real numbers|too large"),
    ],
)
def test_json_that_is_no_loads(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as raised:
        read_loads(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no line of numbers"),
        ("a,b\n", "has no line of numbers"),
        ("1,2\n3,x\n", "line 2 has 'x', no number"),
        ("1,2\n3\n", "line 2 has 1 columns, lines before 2"),
        ("1,-2\n", r"loads\[0, 1\] is -2"),
    ],
)
def test_csv_that_is_no_loads(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        read_loads(path)


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
            read_loads(path)
    archive = tmp_path / "a.npz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("loads.npy", header_claiming((10**6, 10**6)))
    with pytest.raises(FormatError, match="claims shape"):
        read_loads(archive)


@pytest.mark.parametrize("name", ["a.json", "a.npy", "a.npz", "a.pt"])
def test_cut_short_anywhere(tmp_path: Path, name: str) -> None:
    whole = save(tmp_path / name, LOADS).read_bytes()
    for length in sorted({0, 1, 2, 10, *range(20, len(whole) - 1, max(1, len(whole) // 25))}):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(FormatError, match=name):
            read_loads(tmp_path / name)


@pytest.mark.parametrize("suffix", [".json", ".npy", ".npz", ".csv", ".pt"])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_loads_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    path.write_bytes(content)
    try:
        loads = read_loads(path)
    except FormatError as error:
        message = str(error)
    else:
        assert loads.ndim == 2
        assert (loads >= 0).all()
        return
    assert message.startswith(str(path))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        read_loads(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(FormatError, match="is a folder"):
        read_loads(tmp_path / "b.json")
    with pytest.raises(FormatError, match=r"none of \.csv, \.json, \.npy, \.npz, \.pt"):
        read_loads(tmp_path / "a.parquet")


def test_write_replaces_or_leaves_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    with pytest.raises(FormatError, match="cannot be written"):
        write_text(tmp_path / "none" / "a.json", "text")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
