"""The parts of the benchmark script on their own: cells, turns, scores, optima, processes, bars."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bars
import cells
import contest
import naive
import numpy as np
import pytest
import race
import report
import score
import small
import startup

pytestmark = pytest.mark.long


def test_cells_are_chosen_by_name_and_glob() -> None:
    grid = [cells.custom(spec) for spec in cells.GRID]
    chosen = cells.choose(grid, "94x512:640/64,58x256:288/32*")
    assert [cell.name for cell in chosen] == [
        "58x256:288/32",
        "94x512:640/64",
        "58x256:288/32:8/4",
    ]
    last = chosen[-1]
    assert last.loads.shape == (58, 256)
    assert (last.num_slots, last.num_gpus, last.num_groups, last.num_nodes) == (288, 32, 8, 4)


def test_counts_of_a_spread() -> None:
    even, wide = cells.custom("40x64:96/8@0.1").loads, cells.custom("40x64:96/8@1.0").loads
    np.testing.assert_array_equal(even, even.round())
    assert even.sum(axis=1) == pytest.approx(500_000, rel=0.01)
    # From layer to layer the spread differs, by a factor of 0.7 to 1.3.
    for loads, spread in ((even, 0.1), (wide, 1.0)):
        spreads = np.log(loads).std(axis=1) / spread
        assert 0.5 < spreads.min() < 0.8
        assert 1.2 < spreads.max() < 1.6


def test_a_spread_too_wide_is_refused() -> None:
    with pytest.raises(ValueError, match="give a spread of at most 10"):
        cells.custom("2x8:12/4@10.5")


def test_recorded_loads_lose_their_empty_layers(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    dense = draw.integers(1, 100, (3, 256))
    dense[1] = 0
    windows = draw.integers(1, 100, (4, 2, 32))
    (tmp_path / "deepseek_v3").mkdir()
    (tmp_path / "deepseek_v3" / "chat.json").write_text(
        json.dumps({"logical_count": dense.tolist()})
    )
    np.savez(tmp_path / "drift.npz", counts=windows)
    np.savez(tmp_path / "tokens.npz", topk_ids=windows, lengths=windows[0, 0])
    found = {cell.name: cell for cell in cells.recorded(tmp_path)}
    for name in ("chat:288/32", "chat:320/64", "chat:288/144", "chat:432/144", "chat:288/32:8/4"):
        np.testing.assert_array_equal(found[name].loads, dense[[0, 2]])
    assert "chat:256/32" not in found, "no slot to spare"
    np.testing.assert_array_equal(found["drift_sum:64/32"].loads, windows.sum(axis=0))
    np.testing.assert_array_equal(found["drift_first:64/32"].loads, windows[0])
    assert all(cell.from_trace for cell in found.values())


@pytest.mark.parametrize("content", ["{}", "[1]", '{"logical_count": [[0, 0]]}', "{"])
def test_a_file_of_another_form_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "deepseek_v3").mkdir()
    (tmp_path / "deepseek_v3" / "chat.json").write_text(content)
    with pytest.raises(ValueError, match=r"chat\.json has"):
        cells.recorded(tmp_path)


class Clock:
    """A clock that stands still until somebody lets time pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(race, "time", clock)
    return clock


def test_runners_take_turns_after_one_call_each(clock: Clock) -> None:
    log: list[str] = []

    def runner(name: str, seconds: float) -> race.Runner:
        def call() -> str:
            log.append(name)
            clock.now += seconds
            if name == "fails later" and log.count(name) == 2:
                raise KeyError("second call")
            return name

        return race.Runner(name, tuple, call, ours=False)

    quick, slow, late = runner("quick", 0.0065), runner("slow", 0.03), runner("fails later", 0.03)
    race.race([quick, slow, late], 2, most_seconds=60.0)
    assert log[:3] == ["quick", "slow", "fails later"]
    turns = [(name, len(list(calls))) for name, calls in itertools.groupby(log[3:])]
    assert turns == [("quick", 4), ("slow", 1), ("fails later", 1), ("quick", 4), ("slow", 1)]
    assert quick.result == "quick"
    assert quick.median == quick.fastest == pytest.approx(0.0065)
    assert late.failed == "KeyError: 'second call'"


def test_who_is_slow_gets_fewer_turns(clock: Clock) -> None:
    def runner(seconds: float) -> race.Runner:
        def call() -> None:
            clock.now += seconds

        return race.Runner("slow", tuple, call, ours=False)

    slow, slower, slowest = runner(0.75), runner(1.5), runner(3.0)
    race.race([slow, slower, slowest], 9, most_seconds=2.0)
    # The first call of the last two is long enough to count.
    assert [len(one.seconds) for one in (slow, slower, slowest)] == [3, 2, 1]


def test_groups_parted_in_every_way_once() -> None:
    least = score.least_node_load(np.array([[5.0, 4.0, 3.0, 3.0, 2.0, 1.0]]), 6, 3)
    assert least is not None
    assert least.tolist() == [6.0]
    ways = score._ways(8, 4)
    assert ways is not None
    assert len(ways) == 105
    assert score.least_node_load(np.ones((1, 32)), 32, 4) is None, "too many ways to try"


@pytest.mark.parametrize(("num_experts", "num_gpus", "slots"), [(4, 3, 2), (3, 2, 3), (2, 5, 1)])
def test_optimum_is_the_best_of_all_placements(num_experts: int, num_gpus: int, slots: int) -> None:
    draw = np.random.default_rng(num_experts)
    for loads in (draw.lognormal(0.0, 1.5, num_experts), np.ones(num_experts)):
        every = placements(num_experts, num_gpus, slots)
        least = min(max(naive.gpu_loads(phy2log, loads.tolist(), num_gpus)) for phy2log in every)
        assert small.optimum(loads, num_gpus, slots) == pytest.approx(least, rel=1e-12)


def placements(num_experts: int, num_gpus: int, slots: int) -> Iterator[tuple[int, ...]]:
    """Every phy2log of one layer with all experts and none twice on a GPU."""
    sets = itertools.combinations(range(num_experts), slots)
    for of_gpu in itertools.product(list(sets), repeat=num_gpus):
        phy2log = tuple(itertools.chain.from_iterable(of_gpu))
        if len(set(phy2log)) == num_experts:
            yield phy2log


def test_small_layers_tell_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    true = small.optimum
    monkeypatch.setattr(small, "optimum", lambda *layer: 1.5 * true(*layer))
    too_high = small.solve(8)
    assert too_high.peaks_below == 8
    monkeypatch.setattr(small, "optimum", lambda *layer: 0.5 * true(*layer))
    too_low = small.solve(8)
    assert too_low.bounds_above == 8
    assert too_low.within_1_percent == too_low.optimal == 0.0
    assert too_low.worst >= 1.0


def test_growth_is_time_per_slot() -> None:
    (growth,) = contest.grow("3x8:16/4", "3x8:32/8", [1], 2)
    assert growth.first_ns > 0.0
    assert growth.ratio == pytest.approx(growth.large_ns / growth.first_ns)


def test_fresh_processes_tell_what_they_load(tmp_path: Path) -> None:
    light = startup._run(startup._IMPORT, str(tmp_path))
    assert light["seconds"] > 0.0
    assert light["heavy"] == []
    heavy = startup._run("import typer\n" + startup._IMPORT, str(tmp_path))
    assert "typer" in heavy["heavy"]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        startup._run("1 / 0", str(tmp_path))


def good_report() -> report.Report:
    """A report that meets every bar, some of them just so."""
    fast = {"seed": 80.0}
    ours = report.Row("ours, 2 threads", ours=True, ms=1.0, fastest_ms=1.0, ratio=fast,
                      fastest_ratio=fast, balancedness=0.9995, duplicates=0, gap_mean=0.0005,
                      gap_worst=0.005, even_gap_mean=0.001, even_gap_worst=0.005,
                      groups_kept=True, node_gap=0.0, same_plan=True)  # fmt: skip
    seed = report.Row("seed", ours=False, ms=80.0, fastest_ms=80.0, balancedness=0.9999)
    machine = report.Machine(2, {}, 2)
    cell = report.CellReport("58x256:288/32", 58, 256, 288, 32, 1, 1, 0.01, [ours, seed])
    growth = report.Growth("ours", "first", "large", 10.0, 40.0, 4.0)
    layers = small.Small(500, 0.95, 0.9, 0.05, 0, 0, 196.666, 196.666)
    return report.Report(machine, ["seed"], [cell], [growth], layers,
                         startup.Startup(0.1, (), 1.0, 1.0, 20.0, 20.0, 20.0, 0.1))  # fmt: skip


def over_spreads(ours: float, seed: float) -> report.Report:
    """A report of the cell with no spare slot alone, at every spread."""
    good = good_report()
    rows = [
        replace(row, balancedness=balancedness)
        for row, balancedness in zip(good.cells[0].rows, (ours, seed), strict=True)
    ]
    made = [replace(good.cells[0], name=f"36x128:128/8@{at}", rows=rows) for at in cells.SPREADS]
    return replace(good, cells=made)


def test_balancedness_over_spreads_is_judged_where_all_are_there() -> None:
    what = "balancedness, 36x128:128/8, mean over spreads"
    for ours, met in ((0.99960, True), (0.99959, False)):
        found = over_spreads(ours, 0.99960)
        assert [bar.met for bar in bars.judge(found) if bar.what == what] == [met]
    assert what not in [bar.what for bar in bars.judge(replace(found, cells=found.cells[:2]))]


@pytest.mark.parametrize(
    ("what", "part", "change"),
    [
        ("speed over seed, 58x256:288/32, ours, 2 threads", "row", {"ratio": {"seed": 79.0}}),
        ("speed over seed, 58x256:288/32, ours, 2 threads", "row", {"fastest_ratio": {"seed": 79}}),
        ("balancedness", "row", {"balancedness": 0.9994}),
        ("duplicates", "row", {"duplicates": 1}),
        ("groups on nodes", "row", {"groups_kept": False}),
        ("groups on nodes", "row", {"node_gap": 0.01}),
        ("gap, GPUs of 5 slots, bound = mean", "row", {"even_gap_mean": 0.0011}),
        ("gap, GPUs of 5 slots, bound = mean", "row", {"even_gap_worst": 0.0051}),
        ("plan on any number of threads", "row", {"same_plan": False}),
        ("plans made", "row", {"failed": "ValueError: no"}),
        ("speed over seed, 58x256:288/32, ours, 2 threads", "cell", {"others": 0.5}),
        ("time per slot, ours, large over first", "growth", {"ratio": 4.1}),
        ("500 small layers within 1 % of the optimum", "small", {"within_1_percent": 0.94}),
        ("peaks below the optimum, bounds above it", "small", {"bounds_above": 1}),
        ("peak of FlashLB's example", "small", {"example_peak": 196.68}),
        ("import eplb", "startup", {"import_only": 0.11}),
        ("loaded by import eplb", "startup", {"heavy_modules": ("numba",)}),
        ("import and first plan, kernels on disk", "startup", {"first_plan": 1.1}),
        ("import and first plan, never compiled", "startup", {"never_compiled": 20.1}),
        ("the same, every kernel needed", "startup", {"first_hard_plan": 1.1}),
        ("the same, every kernel compiled", "startup", {"never_compiled_hard": 20.1}),
        ("eplb.warmup(), never compiled", "startup", {"warmup": 20.1}),
    ],
)
def test_each_bar_is_missed_by_what_it_is_about(
    what: str, part: str, change: dict[str, Any]
) -> None:
    good = good_report()
    assert all(bar.met for bar in bars.judge(good))
    (cell,), (growth,) = good.cells, good.growth
    if part == "row":
        rows = [replace(cell.rows[0], **change), cell.rows[1]]
        changed = replace(good, cells=[replace(cell, rows=rows)])
    elif part == "cell":
        changed = replace(good, cells=[replace(cell, **change)])
    elif part == "growth":
        changed = replace(good, growth=[replace(growth, **change)])
    else:
        changed = replace(good, **{part: replace(getattr(good, part), **change)})
    assert [bar.what for bar in bars.judge(changed) if not bar.met] == [what]


def test_the_least_of_a_best_split_is_that_of_all_placements() -> None:
    """Gone through in two ways; no plan is below it."""
    draw = np.random.default_rng(4)
    for num_experts, num_gpus, size in ((3, 2, 2), (5, 3, 2), (4, 2, 3), (4, 5, 1)):
        windows = draw.lognormal(0.0, 1.0, (2, num_experts))
        found = small._least_levelled(windows, small._held_within(num_experts, num_gpus, size))
        least = naive.levelled_optimum(windows.tolist(), num_gpus, size)
        assert found == pytest.approx(least, rel=1e-12)
    rows = list(small.near_best(seed=0, number=60, effort="fast"))
    assert [row.num_windows for row in rows] == [1, 3]
    assert all(row.below == 0 and row.within_1_percent > 0.9 for row in rows)
