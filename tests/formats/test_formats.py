"""Files of loads: what is read, and one line for every file that is not what it claims."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb import FormatError, LoadTrace
from eplb.formats import load_trace, save_trace

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
    for name, message in {
        "a.npy": "Python objects",
        "a.npz": "Object arrays cannot be loaded",
        "a.pt": "holds what is never loaded",
        "b.pt": "not a zip file",
    }.items():
        with pytest.raises(FormatError, match=rf"{name}: .*{message}"):
            load_trace(tmp_path / name).total()
    assert not ran.exists()


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
    with pytest.raises(FormatError, match=r"none of \.csv, \.json, \.json\.gz, \.npy, \.npz, "):
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
