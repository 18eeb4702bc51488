"""Files that were made to do harm: refused in one line, without running or building anything."""

import io
import os
import pickle
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
from eplb.formats import load_trace, save_trace
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
    pytest.importorskip("ijson", reason="ijson reads streams")
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


def test_npz_bomb(tmp_path: Path) -> None:
    size = 100 << 20
    write_zip(tmp_path / "a.npz", "loads.npy", npy((1, size), bytes(size)))
    assert peak_growth(tmp_path / "a.npz", "unpacks from .* more than 250 times") < 64 << 20


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


def test_directory_of_a_zip_that_lies(tmp_path: Path) -> None:
    """An archive may claim a directory as large as the file."""
    path = tmp_path / "a.npz"
    size = 100 << 20
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, size, 0, 0)
    path.write_bytes(bytes(size) + end)
    assert peak_growth(path, "claims a directory of") < 32 << 20


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.npy", zipfile.ZIP_LZMA)], "packed in way 14"),
        ([("a.npy", zipfile.ZIP_STORED)] * 2, "has the member 'a.npy' twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips_of_other_kinds(tmp_path: Path, members: list[Any], message: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, way in members:
            archive.writestr(name, npy((1, 1), b"\1"), way)
    with pytest.raises(FormatError, match=message):
        load_trace(tmp_path / "a.npz")


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
        "a buffer of any size": lambda _: Call(bytearray, 1 << 33),
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
        "many small things": lambda _: [[] for _ in range(600_000)],
    }


@pytest.mark.filterwarnings("ignore:torch.quantize_per", "ignore:TypedStorage")
@pytest.mark.parametrize("kind", torch_contents())
def test_torch_files_that_build_something(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="torch writes .pt files")
    torch.save(torch_contents()[kind](torch), tmp_path / "a.pt")
    message = "never loaded|only [0-9]+ bytes|expected a tensor|expected real|too much beside"
    assert peak_growth(tmp_path / "a.pt", message) < 256 << 20


def test_torch_files_of_other_kinds(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch writes .pt files")
    path = tmp_path / "a.pt"
    torch.save(torch.ones(2, 2), path, _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match="bare pickles, which are never loaded"):
        load_trace(path)
    torch.save(torch.ones(2, 2), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data + bytes(1000))
    with pytest.raises(FormatError, match="is packed, torch saves none so"):
        load_trace(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, "a/constants.pkl": pickle.dumps(())}.items():
            archive.writestr(name, data)
    with pytest.raises(FormatError, match=r"not a \.pt file of tensors"):
        load_trace(path)


def test_parquet_bomb(tmp_path: Path) -> None:
    """A column of one value, again and again, takes a few bytes."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    import pyarrow.parquet as pq

    ones = pa.array(np.ones(30_000_000, np.int8))
    pq.write_table(pa.table({"0": ones}), tmp_path / "a.parquet", compression="zstd")
    del ones
    assert peak_growth(tmp_path / "a.parquet", "unpacks from .* more than 250 times") < 64 << 20


def test_parquet_bomb_in_a_name(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    import pyarrow.parquet as pq

    columns = {"window": ["x" * (300 << 20)], "layer": [0], "0": [1]}
    options = {"compression": "zstd", "write_statistics": False}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", **options)
    del columns
    assert (
        peak_growth(tmp_path / "a.parquet", "its pages claim 3[0-9]{8} bytes and more") < 64 << 20
    )


def padded(value: int, length: int) -> bytes:
    """A number as Thrift's compact protocol has it, in more bytes than it needs."""
    groups = [(2 * value) >> (7 * group) & 127 for group in range(length)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_pages_that_the_footer_denies(tmp_path: Path, dictionary: bool) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    columns = {"window": ["x" * (400 << 20)], "layer": [0], "0": [1]}
    options = {"compression": "zstd", "write_statistics": False, "use_dictionary": dictionary}
    pq.write_table(pa.table(columns), path, **options)
    del columns
    group = pq.read_metadata(path).row_group(0)
    data = path.read_bytes()
    for size in (group.total_byte_size, group.column(0).total_uncompressed_size):
        assert data.count(padded(size, 5)) == 1
        data = data.replace(padded(size, 5), padded(1000, 5))
    path.write_bytes(data)
    assert peak_growth(path, "its pages claim 4[0-9]{8} bytes and more") < 64 << 20


def test_parquet_texts_that_repeat_what_stands_before(tmp_path: Path) -> None:
    """Each of the names has the start of the one before, which takes no bytes."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    start = "x" * 100_000
    columns = {"window": [f"{start}{number}" for number in range(4000)]}
    table = pa.table({**columns, "layer": [0] * 4000, "0": [1] * 4000})
    del columns
    options = {"use_dictionary": False, "column_encoding": {"window": "DELTA_BYTE_ARRAY"}}
    pq.write_table(table, path, **options)
    del table
    assert peak_growth(path, "DELTA_BYTE_ARRAY, not read here") < 64 << 20


def test_parquet_footer_that_lies(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    path = tmp_path / "a.parquet"
    for length in (0, 20 << 20, 2**32 - 1):
        path.write_bytes(b"PAR1" + bytes(32 << 20) + length.to_bytes(4, "little") + b"PAR1")
        assert peak_growth(path, "not a whole Parquet file") < 64 << 20
    # Thrift: a struct with one list of one list of one list, and so on; and a list without an end.
    for footer in (b"\x19" * 100_000, b"\x1c" * 100_000, b"\x19\xf3\xff\xff\xff\x7f" + bytes(99)):
        path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
        assert peak_growth(path, "not a whole Parquet file .pages are described") < 64 << 20


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
        ("a.json", "ijson", "formats"),
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
    assert f"'eplb[{extra}]'" in str(e.value)
    if package == "pyarrow":
        with pytest.raises(MissingExtraError, match="needs pyarrow"):
            save_trace(LoadTrace(np.ones((1, 1))), tmp_path / "b.parquet")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[[1]]")
    (tmp_path / "a.json").chmod(0)
    with pytest.raises(FormatError, match=r"a\.json: Permission denied"):
        load_trace(tmp_path / "a.json")
