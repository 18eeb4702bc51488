"""Triton's kernels: in its interpreter, against the torch operations; and compiled for a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import ROOT

import eplb
from eplb.torch import BatchDispatch
from eplb.torch.batch import _kernels_for

SCRIPT = Path(__file__).with_name("interpreted.py")
SIMPLE = eplb.Placement(np.array([[0, 1, 0, 2]]), 3, eplb.Cluster(num_gpus=2, slots_per_gpu=2))


@pytest.mark.parametrize("number", [3, pytest.param(13, marks=pytest.mark.long)])
def test_slots_are_those_of_torch_operations(number: int) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux alone")
    done = subprocess.run(
        [sys.executable, SCRIPT, str(number)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("activated", [False, True])
def test_kernels_compile_for_a_gpu(
    *, activated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one: Triton brings what makes code for any."""
    pytest.importorskip("triton", reason="Triton is for Linux alone")
    from triton import compile as compiled_for
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from eplb.torch import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {
        "limited": True, "block": 512, "bins": 512, "columns": 32, "activated": activated,
        "block_rows": 32, "all_experts": 512, "all_slots": 512, "all_gpus": 32, "all_rows": 64,
        "of_class": 16, "all_width": 4,
    }  # fmt: skip
    narrow = ("begins", "ends", "counts")
    for kernel in (kernels._count, kernels._level, kernels._place):
        names = kernel.arg_names
        types = {
            name: "constexpr" if name in sizes
            else "i32" if name in {"k", "rank", "width"} or name.startswith(("num_", "most_"))
            else "*i32" if name in narrow
            else "*i64"
            for name in names
        }  # fmt: skip
        fixed = {(names.index(name),): size for name, size in sizes.items() if name in names}
        source = ASTSource(kernel, types, fixed)
        made = compiled_for(source, target=GPUTarget("cuda", 90, 32))
        assert made.asm["cubin"]


def test_without_a_gpu_or_triton_or_room_there_are_no_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = _kernels_for.__wrapped__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert found(8, 4) is None
    assert BatchDispatch(SIMPLE, 0)(torch.tensor([[0], [0]])).tolist() == [[0], [2]]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "eplb.torch.kernels", None)
    assert found(8, 4) is None
