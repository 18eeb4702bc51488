"""LoadTrace: windows that are checked, immutable, picked and added up."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from eplb import LoadsError, LoadTrace

LOADS = np.arange(24.0).reshape(4, 2, 3)


def test_windows_have_names_and_the_rest_may_be_unknown() -> None:
    trace = LoadTrace(LOADS)
    assert (trace.num_windows, trace.num_layers, trace.num_experts) == (4, 2, 3)
    assert len(trace) == 4
    assert trace.names == ("0", "1", "2", "3")
    assert (trace.times, trace.top_k, trace.model) == (None, None, None)
    assert repr(trace) == "LoadTrace(4 windows, 2 layers, 3 experts)"
    assert repr(LoadTrace(np.ones((1, 1, 3)))) == "LoadTrace(1 window, 1 layer, 3 experts)"


def test_one_window_may_have_two_axes() -> None:
    assert LoadTrace(LOADS[0].tolist()).loads.shape == (1, 2, 3)


def test_dense_layers_have_no_load_in_any_window() -> None:
    loads = np.zeros((2, 3, 4))
    loads[1, 1, 2] = 1.0
    loads[:, 2] = 5.0
    assert LoadTrace(loads).dense.tolist() == [True, False, False]


@pytest.mark.parametrize("kind", ["array", "view", "tensor"])
def test_nobody_can_change_it(kind: str) -> None:
    array = LOADS.copy()
    trace = LoadTrace({"array": array, "view": array[:], "tensor": torch.from_numpy(array)}[kind])
    array[:] = 0.0
    assert np.array_equal(trace.loads, LOADS)
    for mine in (trace.loads, trace.dense):
        with pytest.raises(ValueError, match="read-only"):
            mine[0] = 1.0


def test_what_is_read_only_is_not_copied() -> None:
    array = LOADS.copy()
    array.flags.writeable = False
    assert np.shares_memory(LoadTrace(array).loads, array)
    assert np.shares_memory(LoadTrace(array).pick(slice(1, 3)).loads, array)


def test_picked_windows_keep_what_belongs_to_them() -> None:
    trace = LoadTrace(LOADS, ["a", "b", "c", "d"], np.array([1.0, 2.0, 4.0, 8.0]), 2, "tiny")
    picked = trace.pick([3, 1])
    assert np.array_equal(picked.loads, LOADS[[3, 1]])
    assert picked.names == ("d", "b")
    assert picked.times is not None
    assert picked.times.tolist() == [8.0, 2.0]
    assert (picked.top_k, picked.model) == (2, "tiny")
    assert trace.pick(slice(None)) == trace
    assert trace.pick(slice(-1, None)).names == ("d",)


def test_merged_windows_are_sums_and_a_rest_is_left_out() -> None:
    trace = LoadTrace(np.repeat(LOADS, 2, axis=0)[:7], times=np.arange(7.0))
    merged = trace.merged(2)
    assert np.array_equal(merged.loads, 2.0 * LOADS[:3])
    assert merged.names == ("0", "2", "4")
    assert merged.times is not None
    assert merged.times.tolist() == [0.0, 2.0, 4.0]
    assert np.array_equal(trace.merged(7).loads[0], trace.total())


def test_equal_traces_are_equal() -> None:
    assert LoadTrace(LOADS) == LoadTrace(LOADS.copy())
    assert hash(LoadTrace(LOADS)) == hash(LoadTrace(LOADS.copy()))
    different = (
        LoadTrace(LOADS + 1.0),
        LoadTrace(LOADS, "abcd"),
        LoadTrace(LOADS, times=np.arange(4.0)),
        LoadTrace(LOADS, top_k=2),
        LoadTrace(LOADS, model="tiny"),
        "a trace",
    )
    for other in different:
        assert LoadTrace(LOADS) != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loads": [1.0, 2.0]}, r"loads have shape \(2,\): give windows, layers and experts"),
        ({"loads": np.zeros((0, 2, 3))}, r"loads are empty, shape \(0, 2, 3\)"),
        ({"loads": -LOADS}, r"loads\[0, 0, 1\] is -1.0"),
        ({"loads": LOADS, "names": ["a"]}, "1 names for 4 windows: give one for each"),
        ({"loads": LOADS, "times": [1.0]}, r"times have shape \(1,\): give seconds"),
        ({"loads": LOADS, "times": [1.0, 2.0, 3.0, np.nan]}, "give seconds"),
        ({"loads": LOADS, "top_k": 4}, "top_k is 4: give 1 to 3"),
        ({"loads": LOADS, "top_k": "2"}, "top_k is '2': give a whole number"),
        ({"loads": LOADS, "top_k": 2.5}, "top_k is 2.5: give a whole number"),
        ({"loads": LOADS, "times": list("abcd")}, "times are no numbers: give seconds"),
        ({"loads": LOADS, "names": 5}, "names are 5: give one for each window"),
    ],
)
def test_wrong_traces(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(LoadsError, match=message):
        LoadTrace(**arguments)  # type: ignore[arg-type]  # that is what is tested


def test_windows_that_are_not_there() -> None:
    trace = LoadTrace(LOADS)
    with pytest.raises(LoadsError, match="a window's number is 4: give 0 to 3"):
        trace.pick([0, 4])
    with pytest.raises(LoadsError, match="no window is given"):
        trace.pick([])
    for size in (0, 5):
        with pytest.raises(LoadsError, match=f"windows to add up is {size}: give 1 to "):
            trace.merged(size)
    wrong: Any = [0.0]
    with pytest.raises(LoadsError, match=r"a window's number is 0\.0: give a whole number"):
        trace.pick(wrong)
    wrong = 3
    with pytest.raises(LoadsError, match="windows are 3: give a slice or their numbers"):
        trace.pick(wrong)
    wrong = "2"
    with pytest.raises(LoadsError, match="windows to add up is '2': give a whole number"):
        trace.merged(wrong)


def test_a_view_of_what_can_be_written_is_copied() -> None:
    array = LOADS.copy()
    view = array[:]
    view.flags.writeable = False
    trace = LoadTrace(view)
    array[:] = 0.0
    assert np.array_equal(trace.loads, LOADS)
    whole = np.frombuffer(LOADS.tobytes()).reshape(LOADS.shape)
    assert np.shares_memory(LoadTrace(whole).loads, whole)
    buffer = bytearray(LOADS.tobytes())
    filled = np.frombuffer(memoryview(buffer).toreadonly()).reshape(LOADS.shape)
    assert np.shares_memory(LoadTrace(filled).loads, filled)
    filled = np.frombuffer(buffer)
    filled.flags.writeable = False
    assert not np.shares_memory(LoadTrace(filled.reshape(LOADS.shape)).loads, filled)


def test_pickled_it_cannot_be_changed_either() -> None:
    trace = LoadTrace(LOADS, times=np.arange(4.0))
    assert not trace.dense.any()
    again = pickle.loads(pickle.dumps(trace))
    assert again == trace
    for mine in (again.loads, again.times, again.dense):
        with pytest.raises(ValueError, match="read-only"):
            mine[0] = 1.0


def test_a_name_cannot_command_a_terminal() -> None:
    assert repr(LoadTrace(LOADS, model="M\x1b[31m\n")) == (
        "LoadTrace(4 windows of M\\x1b[31m\\n, 2 layers, 3 experts)"
    )


def test_sources_stay_with_some_windows_and_are_not_compared() -> None:
    windows = np.arange(12.0).reshape(3, 2, 2)
    ranks = np.ones((4, 2, 2))
    trace = LoadTrace(windows, sources=ranks)
    assert trace == LoadTrace(windows)
    for each in (trace.pick([0, 2]), trace.merged(3), trace.merged("none"), trace.merged()):
        assert each.sources is not None
        assert each.sources.tolist() == ranks.tolist()
        assert not each.sources.flags.writeable
    for wrong in (np.ones((2, 2)), np.ones((4, 2, 3))):
        with pytest.raises(LoadsError, match=r"sources have shape .* \[R, 2, 2\]"):
            LoadTrace(windows, sources=wrong)
    with pytest.raises(LoadsError, match="-1"):
        LoadTrace(windows, sources=-ranks)
