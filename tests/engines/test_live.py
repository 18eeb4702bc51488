"""What plug-ins are made of, without an engine: settings, history, the placement that runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from eplb import Cluster, Pins, Placement, plan
from eplb.checks import Budget
from eplb.engines.live import (
    Call,
    History,
    next_placement,
    running_placement,
    windows_to_plan_for,
)
from eplb.engines.ranks import agreed_on
from eplb.engines.settings import Settings, is_on, settings_from, unknown_variables
from eplb.errors import EplbError, OptionError, PlacementError

CALL = Call(num_slots=12, num_groups=1, num_nodes=1, num_gpus=4)


def window(
    number: int, shape: tuple[int, int] = (2, 8)
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.random.default_rng(number).lognormal(0.0, 1.0, shape)


def shown(
    history: History, loads: np.ndarray[tuple[int, int], np.dtype[np.float64]], call: Call = CALL
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    history.see(call, loads.shape, scaling=False)
    return history.add(call, loads)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_plugins_load_without_their_engine(engine: str) -> None:
    code = (
        f"import sys, eplb.engines.{engine} as plugin\n"
        f"assert not {{'torch', 'numba', '{engine}'}} & set(sys.modules), sys.modules.keys()\n"
        "plugin.register()\n"  # nobody asked for it
        "import os; os.environ['EPLB_POLICY'] = 'eplb'\n"
        "plugin.register()\n"
        "plugin.register()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"No module named '{engine}'" in done.stderr
    assert "stays" in done.stderr


@pytest.mark.parametrize("text", ["eplb", " EPLB "])
def test_switched_on(text: str) -> None:
    assert is_on({"EPLB_POLICY": text})


@pytest.mark.parametrize("environment", [{}, {"EPLB_POLICY": ""}, {"EPLB_POLICY": "Default"}])
def test_switched_off(environment: dict[str, str]) -> None:
    assert not is_on(environment)


def test_pins_of_a_file(tmp_path: Path) -> None:
    """Ranks compare what it says, and plans keep it."""
    path = tmp_path / "pins.json"
    path.write_text('{"gpus": {"2": 1}}')
    found = settings_from({"EPLB_PINS": str(path)})
    assert found.pins == Pins(gpus={2: 1})
    assert agreed_on(found)["EPLB_PINS"] == "{'gpus': {'2': [1]}}"
    assert agreed_on(Settings())["EPLB_PINS"] == "none"
    cluster = Cluster(2, 1, 3)
    made = next_placement(np.ones((1, 1, 4)), cluster, None, None, found)
    assert np.flatnonzero(made[0] == 2).tolist()[0] >= 3
    assert np.count_nonzero(made == 2) == 1
    path.write_text('{"gpus": ')
    with pytest.raises(EplbError, match=r"pins.json"):
        settings_from({"EPLB_PINS": str(path)})


def test_what_is_said_is_done() -> None:
    said = settings_from(
        {
            "EPLB_WINDOWS": "3",
            "EPLB_MAX_MOVES": "40",
            "EPLB_EFFORT": "thorough",
            "EPLB_THREADS": "2",
            "EPLB_RECORD": "/there",
            "EPLB_RECORD_FILES": "7",
            "EPLB_DISPATCH": "table",
            "EPLB_ROLE": " prefill ",
            "EPLB_CONTROL": "/asks",
            "EPLB_METRICS": "/metrics",
            "HOME": "/",
        }
    )
    assert (said.windows, said.effort, said.threads, said.record_files) == (3, "thorough", 2, 7)
    assert (str(said.record), said.dispatch, said.role) == ("/there", "table", "prefill")
    assert said.max_moves.of(58 * 288) == 40
    assert (str(said.control), str(said.metrics)) == ("/asks", "/metrics")
    assert settings_from({}) == Settings()


@pytest.mark.parametrize(
    ("text", "most"), [("none", None), ("0", 0), ("2.5%", 25), ("100%", 1000), (" 0% ", 0)]
)
def test_budgets(text: str, most: int | None) -> None:
    assert settings_from({"EPLB_MAX_MOVES": text}).max_moves.of(1000) == most


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EPLB_POLICY", "on"),
        ("EPLB_WINDOWS", "0"),
        ("EPLB_WINDOWS", "65"),
        ("EPLB_WINDOWS", "many"),
        ("EPLB_MAX_MOVES", "-1"),
        ("EPLB_MAX_MOVES", "101%"),
        ("EPLB_MAX_MOVES", "nan%"),
        ("EPLB_MAX_MOVES", "5 percent"),
        ("EPLB_EFFORT", "some"),
        ("EPLB_THREADS", "1.5"),
        ("EPLB_RECORD_FILES", ""),
        ("EPLB_DISPATCH", "best"),
        ("EPLB_ROLE", "../decode"),
        ("EPLB_ROLE", "d" * 33),
    ],
)
def test_what_does_not_do_is_named(name: str, text: str) -> None:
    check = is_on if name == "EPLB_POLICY" else settings_from
    with pytest.raises(OptionError, match=name) as raised:
        check({name: text})
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_misspelt_variables_are_found() -> None:
    assert unknown_variables({"EPLB_WINDOW": "8", "EPLB_WINDOWS": "8", "PATH": ""}) == [
        "EPLB_WINDOW"
    ]


def test_history_is_bounded_and_in_order() -> None:
    history = History(3)
    for number in range(5):
        windows = shown(history, window(number))
    assert np.array_equal(windows, [window(2), window(3), window(4)])


def test_history_of_one_model_is_not_that_of_another() -> None:
    history = History(3)
    others = [(CALL, (1, 8)), (Call(16, 1, 1, 4), (2, 8)), (Call(12, 2, 1, 4), (2, 8))]
    for number in range(1, 4):
        assert len(shown(history, window(number))) == number
        for call, shape in others:
            assert len(shown(history, window(number, shape), call)) == number


@pytest.mark.parametrize(
    "call",
    [
        Call(15, 1, 1, 5),
        Call(9, 1, 1, 3),
        Call(12, 1, 2, 4),
    ],
)
def test_history_ends_where_ranks_are_others(call: Call) -> None:
    history = History(3)
    for each in (CALL, call, CALL):
        for shape in ((2, 8), (1, 8)):
            assert len(shown(history, window(0, shape), each)) == 1


def test_a_call_for_the_ranks_before_may_come_late() -> None:
    grown = Call(18, 1, 1, 6)
    histories = []
    for late in (False, True):
        history = History(3)
        for call in [CALL, grown][:: -1 if late else 1]:
            history.see(call, (2, 8), scaling=call == grown)
            history.add(call, window(call.num_gpus))
        histories.append(shown(history, window(0), grown))
    assert np.array_equal(histories[0], [window(6), window(0)])
    assert np.array_equal(histories[1], histories[0])


def test_history_ends_where_slots_are_empty() -> None:
    history = History(3)
    shown(history, window(0))
    history.see(CALL, (2, 8), scaling=True)
    assert len(history.add(CALL, window(1))) == 1


def test_ranks_to_come_hold_nothing() -> None:
    old = np.full((2, 12), -1)
    old[:, :9] = np.arange(9) % 8
    running = running_placement(old, 8, 3)
    assert running is not None
    assert running.cluster == Cluster(3, 1, 3)
    assert np.array_equal(running.phy2log, old[:, :9])


def test_ranks_to_go_still_hold_theirs() -> None:
    old = np.tile(np.arange(12) % 8, (2, 1))
    running = running_placement(old, 8, 3)
    assert running is not None
    assert running.cluster.num_gpus == 4


@pytest.mark.parametrize("empty", [slice(0, 3), slice(11, 12), slice(0, 12)])
def test_holes_that_nothing_explains_leave_no_placement(empty: slice) -> None:
    old = np.tile(np.arange(12) % 8, (2, 1))
    old[:, empty] = -1
    assert running_placement(old, 8, 3) is None


def test_contradictions_are_named() -> None:
    with pytest.raises(PlacementError, match="do not divide over ranks of 3"):
        running_placement(np.zeros((2, 11), np.int64), 8, 3)
    with pytest.raises(EplbError, match="experts are numbered 0 to 7"):
        running_placement(np.tile(np.arange(12), (2, 1)), 8, 3)


def test_an_idle_window_counts_little() -> None:
    cluster = Cluster(4, 1, 3)
    windows = np.stack([window(0) * 1e6, window(1)])
    current = Placement.contiguous(2, 8, cluster)
    answer = next_placement(windows, cluster, 1, current, Settings())
    weighted = Placement(answer, 8, cluster).balancedness(windows[0])
    assert weighted > plan(windows, cluster, effort="fast").placement.balancedness(windows[0])


def workloads(number: int) -> NDArray[np.float64]:
    """[number, L, E] shares of experts in different workloads."""
    drawn = np.random.default_rng(3).lognormal(7.0, 1.0, (number, 2, 16))
    return np.asarray(drawn / drawn.sum(axis=2, keepdims=True))


def drawn(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """As many tokens in each window, drawn by shares."""
    return np.random.default_rng(4).poisson(1e5 * shares).astype(float)


def test_the_last_window_counts_more_where_loads_last() -> None:
    lasting = drawn(np.repeat(workloads(4), 4, axis=0))
    found, weights = windows_to_plan_for(lasting)
    assert np.array_equal(found, lasting)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[-1] > 4 * weights[0]
    # Windows of one interval, as SGLang's: the next one is as long as all of them.
    np.testing.assert_allclose(windows_to_plan_for(lasting, 16)[1], 1 / 16, rtol=0.01)
    np.testing.assert_allclose(weights[:-1], weights[0], rtol=0.01)
    in_turn = drawn(np.tile(workloads(4), (4, 1, 1)))
    np.testing.assert_allclose(windows_to_plan_for(in_turn)[1], 1 / 16, rtol=0.01)
    noise = np.random.default_rng(5).uniform(0.8, 1.2, (16, 2, 16)) * workloads(1)
    assert windows_to_plan_for(drawn(noise / noise.sum(axis=2, keepdims=True)))[1][-1] < 0.15
    few = np.concatenate([lasting[:-1], lasting[-1:] / 1000])
    assert windows_to_plan_for(few)[1][-1] < 0.01
    for number in (1, 2):
        np.testing.assert_allclose(
            windows_to_plan_for(lasting[2 : 2 + 2 * number : 2])[1], 1 / number, rtol=0.01
        )


def test_layers_without_load_and_windows_alike_say_nothing_of_what_lasts() -> None:
    idle = np.zeros((3, 2, 16))
    idle[:, 0] = drawn(workloads(3))[:, 0]
    assert np.isfinite(windows_to_plan_for(idle)[1]).all()
    same = drawn(np.repeat(workloads(1), 5, axis=0))
    found, weights = windows_to_plan_for(same)
    assert np.array_equal(found, same.sum(axis=0, keepdims=True))
    assert weights.tolist() == [1.0]


def test_moves_keep_to_the_budget_but_at_the_start() -> None:
    cluster = Cluster(4, 1, 3)
    windows = window(0)[None]
    start = Placement.contiguous(2, 8, cluster)
    settings = Settings(max_moves=Budget(moves=2))
    first = Placement(next_placement(windows, cluster, 1, start, settings), 8, cluster)
    assert first.moves_from(start) > 2
    later = window(9)[None]
    second = Placement(next_placement(later, cluster, 1, first, settings), 8, cluster)
    assert 0 < second.moves_from(first) <= 2
    # Ranks come and go: what has to move, moves.
    more = Cluster(5, 1, 3)
    third = Placement(next_placement(later, more, 1, second, settings), 8, more)
    assert third.moves_from(second) > 2
    fewer = Cluster(3, 1, 3)
    fourth = Placement(next_placement(later, fewer, 1, third, settings), 8, fewer)
    assert fourth.num_duplicates == 0


def test_layers_without_load_stay() -> None:
    cluster = Cluster(4, 1, 3)
    windows = window(0)[None].copy()
    windows[:, 1] = 0.0
    start = Placement.contiguous(2, 8, cluster)
    first = next_placement(windows, cluster, 1, start, Settings())
    assert np.array_equal(first[1], start.phy2log[1])
    second = next_placement(windows, cluster, 1, Placement(first, 8, cluster), Settings())
    assert np.array_equal(second[1], start.phy2log[1])
