"""What `plan` takes: loads of every kind, and one line for everything that cannot be planned."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from eplb import Cluster, ClusterError, LoadsError, OptionError, plan, rebalance_experts
from eplb.cluster import check_pairs
from eplb.planning.problem import Effort

WHOLE = np.array([[9, 7, 4, 4, 2, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
CLUSTER = Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=2)

ARRAYS: dict[str, Callable[[], Any]] = {
    "lists": WHOLE.tolist,
    "lists of floats": WHOLE.astype(float).tolist,
    "tuples": lambda: tuple(map(tuple, WHOLE.tolist())),
    "list of arrays": lambda: list(WHOLE),
    "int8": lambda: WHOLE.astype(np.int8),
    "uint8": lambda: WHOLE.astype(np.uint8),
    "uint64": lambda: WHOLE.astype(np.uint64),
    "float16": lambda: WHOLE.astype(np.float16),
    "float32": lambda: WHOLE.astype(np.float32),
    "longdouble": lambda: WHOLE.astype(np.longdouble),
    "big-endian": lambda: WHOLE.astype(">f8"),
    "Fortran order": lambda: np.asfortranarray(WHOLE.astype(float)),
    "every other": lambda: np.repeat(np.repeat(WHOLE, 2, axis=0), 3, axis=1)[::2, ::3],
    "backwards": lambda: np.ascontiguousarray(WHOLE[::-1, ::-1])[::-1, ::-1],
}

TENSORS: dict[str, Callable[[Any], Any]] = {
    "float16": lambda torch: torch.tensor(WHOLE, dtype=torch.float16),
    "bfloat16": lambda torch: torch.tensor(WHOLE, dtype=torch.bfloat16),
    "float32": lambda torch: torch.tensor(WHOLE, dtype=torch.float32),
    "float64": lambda torch: torch.tensor(WHOLE, dtype=torch.float64),
    "uint8": lambda torch: torch.tensor(WHOLE, dtype=torch.uint8),
    "int32": lambda torch: torch.tensor(WHOLE, dtype=torch.int32),
    "int64": lambda torch: torch.tensor(WHOLE),
    "transposed": lambda torch: torch.tensor(np.ascontiguousarray(WHOLE.T)).T,
    "every other": lambda torch: torch.tensor(np.repeat(WHOLE, 2, axis=1))[:, ::2],
    "requires_grad": lambda torch: torch.tensor(WHOLE, dtype=torch.float32, requires_grad=True),
    "a graph's": lambda torch: torch.tensor(WHOLE * 0.5, requires_grad=True) * 2.0,
}


def check_like_float64(loads: Any) -> None:
    expected, made = plan(WHOLE.astype(np.float64), CLUSTER), plan(loads, CLUSTER)
    assert made.placement == expected.placement
    assert np.array_equal(made.peak, expected.peak)
    assert np.array_equal(made.bound, expected.bound)


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind(kind: str) -> None:
    check_like_float64(ARRAYS[kind]())


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_every_kind(kind: str) -> None:
    torch = pytest.importorskip("torch", reason="tensors need torch")
    check_like_float64(TENSORS[kind](torch))


def test_loads_are_left_alone() -> None:
    loads = np.array([[3.0, 0.0, 1.0, 0.0]])
    loads.flags.writeable = False
    made = plan(loads, Cluster(2, 1, 3))
    assert loads.tolist() == [[3.0, 0.0, 1.0, 0.0]]
    assert not np.shares_memory(loads, made.peak)


NUMBERS = "loads are numbers of tokens, from 0 to 1e+100"
AXES = "give layers and experts [L, E], or windows of them [T, L, E]"


def bad(value: float) -> NDArray[np.float64]:
    loads = np.ones((3, 4))
    loads[1, 2:] = value
    return loads


@pytest.mark.parametrize(
    ("loads", "message"),
    [
        (bad(np.nan), "loads[1, 2] is nan: " + NUMBERS),
        (bad(np.inf), "loads[1, 2] is inf: " + NUMBERS),
        (bad(-np.inf), "loads[1, 2] is -inf: " + NUMBERS),
        (bad(-0.5), "loads[1, 2] is -0.5: " + NUMBERS),
        (bad(1e101), "loads[1, 2] is 1e+101: " + NUMBERS),
        ([bad(1.0), bad(np.nan)], "loads[1, 1, 2] is nan: " + NUMBERS),
        ([bad(-2.0), bad(1.0)], "loads[0, 1, 2] is -2.0: " + NUMBERS),
        ([1.0, 2.0], "loads have shape (2,): " + AXES),
        (np.ones((2, 3, 4, 5)), "loads have shape (2, 3, 4, 5): " + AXES),
        (5.0, "loads have shape (): " + AXES),
        ([[]], "loads are empty, shape (1, 0): give at least 1 layer and expert"),
        (np.ones((0, 2, 4)), "loads are empty, shape (0, 2, 4): give at least 1 layer and expert"),
        (
            [np.ones((2, 4)), np.ones((3, 4))],
            "loads have rows of different lengths: give a full array",
        ),
        (np.ones((0, 4)), "loads are empty, shape (0, 4): give at least 1 layer and expert"),
        ([[1.0, 2.0], [3.0]], "loads have rows of different lengths: give a full array"),
        ([["1", "2"]], "loads have type <U1: give real numbers"),
        ([[1.0, 2j]], "loads have type complex128: give real numbers"),
        ([[1.0, None]], "loads have type object: give real numbers"),
        (None, "loads have type object: give real numbers"),
    ],
)
def test_loads_that_cannot_be_planned(loads: Any, message: str) -> None:
    with pytest.raises(LoadsError) as raised:
        plan(loads, CLUSTER)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda torch: torch.full((2, 3), torch.nan), r"loads\[0, 0\] is nan"),
        (lambda torch: -torch.ones((2, 3), dtype=torch.int16), r"loads\[0, 0\] is -1\.0"),
        (lambda torch: torch.ones(3), r"loads have shape \(3,\)"),
        (lambda torch: torch.ones((0, 3)), r"loads are empty, shape \(0, 3\)"),
        (lambda torch: torch.ones((2, 3), dtype=torch.complex64), "complex64: give real numbers"),
        (lambda torch: torch.ones((2, 3), dtype=torch.bool), "bool: give real numbers"),
    ],
    ids=["nan", "negative", "one axis", "empty", "complex", "bool"],
)
def test_tensors_that_cannot_be_planned(make: Callable[[Any], Any], message: str) -> None:
    torch = pytest.importorskip("torch", reason="tensors need torch")
    with pytest.raises(LoadsError, match=message):
        plan(make(torch), CLUSTER)


@pytest.mark.parametrize(
    ("num_experts", "num_groups", "message"),
    [
        (
            9,
            1,
            "8 slots do not hold 9 experts: give each of the 4 GPUs at least 3 slots, 12 in all",
        ),
        (8, 3, "8 experts do not divide into 3 groups: 2 or 4 groups would"),
        (8, 9, "8 experts do not divide into 9 groups: 4 or 8 groups would"),
        (7, 5, "7 experts do not divide into 5 groups: 1 or 7 groups would"),
        (8, 0, "num_groups is 0: give 1 or more"),
        (8, -2, "num_groups is -2: give 1 or more"),
        (8, 2.0, "num_groups is 2.0: give a whole number, 1 or more"),
        (8, "2", "num_groups is '2': give a whole number, 1 or more"),
    ],
)
def test_experts_that_do_not_fit(num_experts: int, num_groups: Any, message: str) -> None:
    with pytest.raises(ClusterError) as raised:
        plan(np.ones((2, num_experts)), CLUSTER, num_groups=num_groups)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("threads", "message"),
    [
        (0, "threads is 0: give 1 or more"),
        (-3, "threads is -3: give 1 or more"),
        (1.5, "threads is 1.5: give a whole number, 1 or more"),
    ],
)
def test_threads_that_cannot_be(threads: Any, message: str) -> None:
    with pytest.raises(OptionError) as raised:
        plan(np.ones((2, 4)), CLUSTER, threads=threads)
    assert str(raised.value) == message


def test_any_kind_of_whole_number_will_do() -> None:
    loads = np.random.default_rng(1).lognormal(size=(2, 8))
    expected = plan(loads, CLUSTER, num_groups=2, threads=1)
    made = plan(
        loads,
        Cluster(np.int32(4), np.uint8(2), np.int64(2)),
        num_groups=np.int32(2),
        threads=np.int16(1),
    )
    assert made.placement == expected.placement


def test_windows_of_every_kind() -> None:
    torch = pytest.importorskip("torch", reason="tensors need torch")
    windows = np.stack([WHOLE, WHOLE[:, ::-1]])
    expected = plan(windows.astype(np.float64), CLUSTER, weights=[2.0, 1.0])
    for loads, weights in (
        (windows.tolist(), (2, 1)),
        (windows[:, :, ::-1].astype(np.float32)[:, :, ::-1], np.array([4, 2], np.uint8)),
        (torch.tensor(windows), torch.tensor([2.0, 1.0], dtype=torch.float16)),
        (list(windows), np.array([2.0, 9.0, 1.0])[::2]),
    ):
        made = plan(loads, CLUSTER, weights=weights)
        assert made.placement == expected.placement
        assert np.array_equal(made.peak, expected.peak)
        assert np.array_equal(made.bound, expected.bound)


def test_windows_and_weights_are_left_alone() -> None:
    windows = np.stack([WHOLE, WHOLE[:, ::-1]]).astype(np.float64)
    weights = np.array([2.0, 1.0])
    before = windows.copy()
    windows.flags.writeable = weights.flags.writeable = False
    plan(windows, CLUSTER, weights=weights)
    assert np.array_equal(windows, before)
    assert weights.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 1.0], "weights have shape (2,): give one for each of 3 windows"),
        ([1.0] * 4, "weights have shape (4,): give one for each of 3 windows"),
        ([], "weights have shape (0,): give one for each of 3 windows"),
        (1.0, "weights have shape (): give one for each of 3 windows"),
        ([[1.0, 1.0, 1.0]], "weights have shape (1, 3): give one for each of 3 windows"),
        *(
            (weights, "weights must be finite, 0 or more, and not all 0")
            for weights in (
                [1.0, -1e-9, 1.0],
                [1.0, np.nan, 1.0],
                [1.0, np.inf, 1.0],
                [1.0, -np.inf, 1.0],
                [0.0, 0.0, 0.0],
                [0.0, -0.0, 0.0],
            )
        ),
    ],
)
def test_weights_that_cannot_be(weights: Any, message: str) -> None:
    with pytest.raises(LoadsError) as raised:
        plan(np.ones((3, 2, 4)), CLUSTER, weights=weights)
    assert str(raised.value) == message


@pytest.mark.parametrize("weights", [["1", "1"], [1.0, None], [1.0, 2j], [[1.0], [1.0, 2.0]]])
def test_weights_that_are_no_numbers(weights: Any) -> None:
    with pytest.raises(LoadsError):
        plan(np.ones((2, 2, 4)), CLUSTER, weights=weights)


def test_weights_of_one_window_are_checked_too() -> None:
    for loads in (np.ones((2, 4)), np.ones((1, 2, 4))):
        with pytest.raises(LoadsError, match=r"shape \(2,\): give one for each of 1 windows"):
            plan(loads, CLUSTER, weights=[1.0, 1.0])


@pytest.mark.parametrize("effort", ["Fast", "", "best", None, 1, ["fast"], ("fast",), np.nan])
@pytest.mark.parametrize("shape", [(2, 4), (2, 2, 4)])
def test_efforts_that_are_not(effort: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError) as raised:
        plan(np.ones(shape), CLUSTER, effort=effort)
    message = f"effort is {effort!r}: give 'fast', 'default', 'thorough'"
    assert str(raised.value) == message


def test_efforts_are_those_that_are_named() -> None:
    assert get_args(Effort) == ("fast", "default", "thorough")


def test_rebalance_experts_takes_one_window() -> None:
    for shape in ((1, 2, 4), (3, 2, 4)):
        with pytest.raises(LoadsError) as raised:
            rebalance_experts(np.ones(shape), 8, 1, 1, 4)
        assert str(raised.value) == (
            f"loads have shape {shape}: give two axes, layers and experts [L, E]"
        )


def test_load_in_windows_that_do_not_count_is_no_load() -> None:
    loads = np.zeros((3, 2, 4))
    loads[0] = 1.0
    loads[1, 1] = [4.0, 1.0, 1.0, 2.0]
    loads[2, 1] = [1.0, 2.0, 1.0, 4.0]
    made = plan(loads, Cluster(2, 1, 3), weights=[0.0, 1.0, 1.0])
    assert made.peak[0] == made.bound[0] == 0.0
    assert made.peak[1] >= made.bound[1] >= 4.0


def test_tables_that_would_not_fit_memory() -> None:
    """They are refused before anything is allocated."""
    loads = np.ones((1, 20_000))
    with pytest.raises(ClusterError, match="give 5,000 GPUs or fewer"):
        plan(loads, Cluster(20_000, 1, 1))
    with pytest.raises(ClusterError, match="20,000 slots and 20,000 experts"):
        check_pairs(20_000, 20_000, "slots")
