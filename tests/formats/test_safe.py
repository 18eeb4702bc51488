"""Files that were made to do harm: refused in one line, without running or building anything."""

import io
import json
import os
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb import FormatError, MissingExtraError
from eplb.formats import load_trace, safe, save_trace
from eplb.formats.loads import json as loads_json
from eplb.formats.loads import tables
from eplb.loads import LoadTrace


def growth(read: Callable[[], object]) -> int:
    """Bytes that a call took at most, above what the process had."""

    def memory(name: str) -> int:
        match = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
        assert match is not None
        return int(match[1]) << 10

    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    read()
    return memory("VmHWM") - before


def peak_growth(path: Path, message: str) -> int:
    """Bytes that reading a bad file took at most."""

    def read() -> None:
        with pytest.raises(FormatError, match=message) as raised:
            load_trace(path)
        assert str(raised.value).startswith(str(path.parent))

    return growth(read)


def test_a_large_history_takes_little_memory(tmp_path: Path) -> None:
    """Read at once, its text and its numbers would take several times more."""
    row = ", ".join(f"{number}.25" for number in range(1000, 1256))
    window = f'{{"step": 1, "logical_expert_load": [{", ".join([f"[{row}]"] * 58)}]}}'
    path = tmp_path / "expert-load.json"
    path.write_text(f'{{"load_history": [{", ".join([window] * 200)}]}}')
    read: list[LoadTrace] = []
    taken = growth(lambda: read.append(load_trace(path)))
    assert read[0].loads.shape == (200, 58, 256)
    assert read[0].loads[-1, -1, -1] == 1255.25
    assert taken < 4 * read[0].loads.nbytes


def npy(shape: tuple[int, ...], data: bytes, dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + data


def write_zip(path: Path, name: str, data: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)


def test_npz_member_that_lies_about_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_zip(path, "loads.npy", npy((1, 8), bytes(8)))
    data = path.read_bytes()
    real = struct.pack("<L", len(npy((1, 8), bytes(8))))
    path.write_bytes(data.replace(real, struct.pack("<L", 10 << 20)))
    header = npy((1, 9 << 20), b"")
    write_zip(tmp_path / "b.npz", "loads.npy", header)
    longer = (tmp_path / "b.npz").read_bytes()
    longer = longer.replace(struct.pack("<L", len(header)), struct.pack("<L", 10 << 20))
    (tmp_path / "b.npz").write_bytes(longer)
    assert peak_growth(tmp_path / "b.npz", "cut short|not a whole") < 128 << 20


@pytest.mark.parametrize("dtype", ["|b1", "<c16", "|S1", "<M8[s]", "|V4"])
def test_arrays_of_no_numbers(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "a.npy").write_bytes(npy((1, 1), bytes(16), dtype))
    with pytest.raises(FormatError, match="expected real numbers"):
        load_trace(tmp_path / "a.npy")


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def torch_contents() -> dict[str, Callable[[Any], Any]]:
    return {
        "a view of one value": lambda torch: torch.ones(1).expand(10**6, 10**6),
        "a view of one value in a dump": lambda torch: {
            "logical_count": torch.ones(1, dtype=torch.int32).expand(100, 10**5, 10**5)
        },
        "sparse": lambda torch: torch.eye(3).to_sparse(),
        "meta": lambda torch: torch.empty(10**6, 10**6, device="meta"),
        "quantized": lambda torch: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
        "complex": lambda torch: torch.ones((2, 2), dtype=torch.complex64),
        "bool": lambda torch: torch.ones((2, 2), dtype=torch.bool),
        "code": lambda _: {"logical_count": Call(os.system, "true")},
        "a dict of a kind": lambda _: OrderedDict(a=Call(eval, "1")),
        "a long number": lambda _: {"logical_count": 1 << 80_000},
        "a list": lambda _: [[] for _ in range(600)],
    }


@pytest.mark.filterwarnings("ignore:torch.quantize_per", "ignore:TypedStorage")
@pytest.mark.parametrize("kind", torch_contents())
def test_torch_files_that_build_something(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="torch writes .pt files")
    torch.save(torch_contents()[kind](torch), tmp_path / "a.pt")
    message = "is never loaded|only [0-9]+ bytes|expected a tensor|expected real numbers"
    assert peak_growth(tmp_path / "a.pt", message) < 256 << 20


def test_torch_files_of_other_kinds(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch writes .pt files")
    path = tmp_path / "a.pt"
    torch.save(torch.ones(2, 2), path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        FormatError, match=r"not a whole \.pt .torch 1\.6 or later. file .File is not a zip file"
    ):
        load_trace(path)
    torch.save(torch.ones(2, 2), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data + bytes(1000))
    with pytest.raises(FormatError, match="is packed, torch saves none so"):
        load_trace(path)


def test_no_more_is_read_than_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every format, by what it claims, before memory is taken."""
    trace = LoadTrace(np.ones((3, 100, 100)))
    torch = pytest.importorskip("torch", reason="torch writes .pt files")
    pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    np.save(tmp_path / "a.npy", trace.loads)
    torch.save(torch.tensor(trace.loads.copy()), tmp_path / "a.pt")
    (tmp_path / "a.json").write_text(json.dumps(trace.loads.tolist()))
    names = ["a.npy", "a.pt", "a.json"]
    for ending in (".npz", ".csv", ".parquet"):
        save_trace(trace, tmp_path / f"b{ending}")
        names.append(f"b{ending}")
    for module in (safe, loads_json, tables):
        monkeypatch.setattr(module, "LARGEST", trace.loads.nbytes)
    for name in names:
        if name != "b.parquet":  # It has columns beside those of experts.
            assert load_trace(tmp_path / name).loads.tolist() == trace.loads.tolist()
    for module in (safe, loads_json, tables):
        monkeypatch.setattr(module, "LARGEST", trace.loads.nbytes - 8)
    for name in names:
        with pytest.raises(FormatError, match=rf"{name}: .*(claims 3|more than 2)[0-9]* values"):
            load_trace(tmp_path / name)


def test_numbers_that_pack_well_are_read(tmp_path: Path) -> None:
    loads = np.ones((1, 10, 1_000_000))
    np.savez_compressed(tmp_path / "a.npz", loads=loads.astype(np.uint8))
    read: list[LoadTrace] = []
    assert growth(lambda: read.append(load_trace(tmp_path / "a.npz"))) < 4 * loads.nbytes
    assert read[0] == LoadTrace(loads)


def test_a_large_table_takes_little_memory(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    rng = np.random.default_rng(1)
    trace = LoadTrace(rng.integers(0, 1000, (200, 58, 256)).astype(np.float64))
    for ending in (".parquet", ".csv", ".npz"):
        save_trace(trace, tmp_path / f"a{ending}")
        load_trace(tmp_path / f"a{ending}")  # What packages take for themselves.
        read: list[LoadTrace] = []
        taken = growth(lambda: read.append(load_trace(tmp_path / f"a{ending}")))  # noqa: B023
        assert read[0] == trace
        assert taken < 4 * trace.loads.nbytes


def test_parquet_footer_that_lies(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    path = tmp_path / "a.parquet"
    for length in (0, 20 << 20, 2**32 - 1):
        path.write_bytes(b"PAR1" + bytes(32 << 20) + length.to_bytes(4, "little") + b"PAR1")
        assert peak_growth(path, "not a whole Parquet file") < 64 << 20
    # Thrift: a struct with one list of one list of one list, and so on; and a list without an end.
    for footer in (b"\x19" * 100_000, b"\x1c" * 100_000, b"\x19\xf3\xff\xff\xff\x7f" + bytes(99)):
        path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
        assert peak_growth(path, "not a whole Parquet file .Couldn't deserialize thrift") < 64 << 20


def test_safetensors_header_that_lies(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors reads statistics")
    (tmp_path / "meta_info.json").write_text('{"num_experts": 2, "num_experts_per_token": 1}')
    path = tmp_path / "rank0.safetensors"
    for length, text in [
        (2**63, b"{}"),
        (50, b"{}"),
        (60, b'{"0_0":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}    '),
        (70, b'{"0_0":{"dtype":"I32","shape":[99999999999],"data_offsets":[0,8]}}    ' + bytes(8)),
    ]:
        path.write_bytes(length.to_bytes(8, "little") + text)
        assert peak_growth(tmp_path, "rank0.safetensors: not a whole safetensors file") < 64 << 20


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.npy", "a.npz", "a.pt", "a.parquet"])
def test_junk_and_nothing(tmp_path: Path, name: str) -> None:
    for package in {"a.pt": ["torch"], "a.parquet": ["pyarrow"]}.get(name, []):
        pytest.importorskip(package, reason="reads such files")
    path = tmp_path / name
    for data in (b"", b"\0" * 999, bytes(range(256)), b"\xff\xfe[\0", b"PK\3\4junk", b"PAR1PAR1"):
        path.write_bytes(data)
        with pytest.raises(FormatError) as raised:
            load_trace(path)
        assert str(raised.value).startswith(f"{path}: ")


def test_what_a_file_says_cannot_speak_to_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"\\u001b[2J\\n": 1}')
    with pytest.raises(FormatError, match=r"found '\\x1b\[2J\\n'") as raised:
        load_trace(tmp_path / "a.json")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("a.pt", "torch", "torch"),
        ("a.parquet", "pyarrow", "formats"),
        ("rank0.safetensors", "safetensors", "formats"),
    ],
)
def test_packages_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    for module in [each for each in sys.modules if each.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with (tmp_path / name).open("wb") as file:
        file.write(b"[")
        file.truncate(20 << 20)
    path = tmp_path if package == "safetensors" else tmp_path / name
    with pytest.raises(
        MissingExtraError, match=rf"{re.escape(str(path))} needs {package}: .*"
    ) as e:
        load_trace(path)
    assert f"eplb with its extra '{extra}'" in str(e.value)
    if package == "pyarrow":
        with pytest.raises(MissingExtraError, match="needs pyarrow"):
            save_trace(LoadTrace(np.ones((1, 1))), tmp_path / "b.parquet")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[[1]]")
    (tmp_path / "a.json").chmod(0)
    with pytest.raises(FormatError, match=r"a\.json: Permission denied"):
        load_trace(tmp_path / "a.json")
