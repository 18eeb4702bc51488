"""Loads in `.npy` and `.npz`."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from eplb import FormatError
from eplb.formats import load_trace

LOADS = np.array([[0.0, 0.0, 0.0], [5.0, 1.0, 2.0]])


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
        with pytest.raises(FormatError, match=r"not a whole \.npy file .(mmap length|Python int)"):
            load_trace(path).total()
    archive = tmp_path / "a.npz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("loads.npy", header_claiming((10**6, 10**6)))
    with pytest.raises(FormatError, match="claims more values than memory holds"):
        load_trace(archive).total()
