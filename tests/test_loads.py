"""Loads at the border: one kind of array out of every kind, or an error of the project's."""

import subprocess
import sys

import numpy as np
import pytest

from eplb import LoadsError
from eplb.loads import as_array, check_loads, is_tensor


def test_checked_loads_are_contiguous_doubles() -> None:
    given = np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4))
    checked = check_loads(given)
    assert checked.dtype == np.float64
    assert checked.flags.c_contiguous
    assert checked.tolist() == given.tolist()


def test_doubles_are_not_copied() -> None:
    given = np.ones((3, 4))
    assert check_loads(given) is given


@pytest.mark.parametrize("value", [0.0, -0.0, 5e-324, 1e100])
def test_the_least_and_the_most(value: float) -> None:
    assert check_loads([[value]]).tolist() == [[value]]


def test_first_wrong_value_is_named() -> None:
    loads = np.ones((3, 4))
    loads[2, 0] = np.nan
    loads[1, 3] = -2.0
    with pytest.raises(LoadsError, match=r"loads\[1, 3\] is -2\.0"):
        check_loads(loads)


def test_errors_are_value_errors_too() -> None:
    with pytest.raises(ValueError, match="give real numbers"):
        check_loads([["a"]])


def test_arrays_of_any_rank_for_those_who_check_it() -> None:
    assert as_array([[[1, 2]]]).shape == (1, 1, 2)
    assert as_array([]).shape == (0,)


def test_tensors_are_told_from_the_rest() -> None:
    torch = pytest.importorskip("torch", reason="tensors need torch")
    assert is_tensor(torch.ones(2))
    assert not is_tensor(np.ones(2))
    assert as_array(torch.tensor([1, 2], dtype=torch.int16)).tolist() == [1.0, 2.0]


def test_torch_is_not_imported_to_tell() -> None:
    code = (
        "import sys; from eplb.loads import check_loads, is_tensor;"
        "check_loads([[1.0]]); assert not is_tensor([1.0]); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
