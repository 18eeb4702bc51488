"""`plan` for several windows: expected peak and bound, efforts, and loads not seen before."""

from functools import partial
from random import Random
from typing import Any, NamedTuple, get_args

import naive
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import Cell, cells, grouped_cells, layer_loads

from eplb import Cluster, Placement, Plan, plan
from eplb.planning.problem import Effort, check_problem

EFFORTS: tuple[Effort, ...] = get_args(Effort)
ROUNDING = 1e-9

every_effort = pytest.mark.parametrize("effort", EFFORTS)


class Windows(NamedTuple):
    """What a plan for several windows is made from: loads [T, L, E]."""

    loads: NDArray[np.float64]
    weights: list[float] | None
    cell: Cell
    effort: Effort

    def plan(self, **options: Any) -> Plan:
        given_options = {"weights": self.weights, "effort": self.effort} | options
        return plan(self.loads, self.cell.cluster, num_groups=self.cell.num_groups, **given_options)

    def weight(self) -> list[float]:
        return [1.0] * len(self.loads) if self.weights is None else self.weights

    def layers(self) -> list[list[list[float]]]:
        """The windows [T, E] of each layer."""
        layers: list[list[list[float]]] = self.loads.transpose(1, 0, 2).tolist()
        return layers


@st.composite
def several_windows(draw: st.DrawFn, kind: st.SearchStrategy[Cell]) -> Windows:
    """Windows for a cell: alike or not, some of them or of their layers without load."""
    cell = draw(kind)
    num_layers, num_experts = cell.loads.shape
    num_windows = draw(st.integers(2, 5))
    layer = st.one_of(layer_loads(num_experts), st.just([0.0] * num_experts))
    drawn = [[draw(layer) for _ in range(num_layers)] for _ in range(num_windows - 1)]
    loads = np.stack([cell.loads, *map(np.array, drawn)])
    weights = draw(
        st.one_of(
            st.none(),
            st.lists(
                st.integers(0, 3).map(float), min_size=num_windows, max_size=num_windows
            ).filter(any),
        )
    )
    assume(loads[np.array(weights or [1.0] * num_windows) > 0.0].any())
    return Windows(loads, weights, cell, draw(st.sampled_from(EFFORTS)))


def is_loaded(windows: Windows) -> NDArray[np.bool_]:
    """[L] whether a layer has any load in a window that counts."""
    counts = np.array(windows.weight()) > 0.0
    loaded: NDArray[np.bool_] = windows.loads[counts].max(axis=(0, 2)) > 0.0
    return loaded


def mean_of(windows: Windows) -> NDArray[np.float64]:
    """[L, E] what the planner starts from: to the last bit, on which searches may turn."""
    return check_problem(windows.loads, windows.cell.cluster, 1, windows.weights, 1).loads


def check(made: Plan, windows: Windows) -> None:
    """What holds of every plan for windows."""
    cluster, placement = windows.cell.cluster, made.placement
    num_experts = windows.loads.shape[2]
    # The planner's own placement is trusted: here it is checked.
    assert placement == Placement(placement.phy2log, num_experts, cluster)
    assert (made.bound <= made.peak).all()
    loaded = is_loaded(windows)
    assert np.array_equal(made.bound > 0.0, loaded)
    assert np.array_equal(made.peak > 0.0, loaded)
    for layer in np.flatnonzero(loaded):
        of_layer, weights = windows.layers()[layer], windows.weight()
        slots = placement.phy2log[layer].tolist()
        expected = naive.expected_peak(slots, of_layer, weights, cluster.num_gpus)
        assert made.peak[layer] == pytest.approx(expected, rel=ROUNDING)
        levelled, _ = naive.scaled(of_layer, weights)
        assert made.bound[layer] >= sum(levelled[0]) / cluster.num_gpus * (1.0 - ROUNDING)
    # Nothing is known of the other layers: they are laid out as one window without load is.
    alone = plan(np.zeros(windows.loads.shape[1:]), cluster, num_groups=windows.cell.num_groups)
    assert np.array_equal(placement.phy2log[~loaded], alone.placement.phy2log[~loaded])


def same(one: Plan, other: Plan) -> bool:
    return (
        one.placement == other.placement
        and one.peak.tobytes() == other.peak.tobytes()
        and one.bound.tobytes() == other.bound.tobytes()
    )


@given(st.one_of(cells(), grouped_cells()), st.sampled_from(EFFORTS), st.integers(0, 2))
def test_one_window_that_counts_is_planned_alone(cell: Cell, effort: Effort, at: int) -> None:
    assume(cell.loads.any())
    planned = partial(plan, cluster=cell.cluster, num_groups=cell.num_groups, effort=effort)
    alone = planned(cell.loads)
    assert same(planned(cell.loads[None]), alone)
    assert same(planned(cell.loads[None], weights=[0.3]), alone)
    loads = np.stack([cell.loads[:, ::-1] + 1.0] * 3)
    loads[at] = cell.loads
    assert same(planned(loads, weights=[0.7 * (window == at) for window in range(3)]), alone)


def test_more_effort_for_one_window_is_worse_in_no_layer() -> None:
    rng = np.random.default_rng(5)
    for num_experts, cluster in ((16, Cluster(8, 1, 3)), (64, Cluster(16, 1, 5))):
        loads = rng.lognormal(size=(30, num_experts))
        fast, default, thorough = (plan(loads, cluster, effort=effort).peak for effort in EFFORTS)
        assert (default <= fast).all()
        assert (thorough <= default).all()
        assert default.mean() < fast.mean()
        assert same(plan(loads, cluster), plan(loads, cluster, effort="default"))


# Any windows.


@given(several_windows(cells()))
def test_every_plan(windows: Windows) -> None:
    made = windows.plan()
    check(made, windows)
    assert made.placement.num_duplicates == 0


@given(several_windows(grouped_cells()))
def test_every_plan_with_groups_on_nodes(windows: Windows) -> None:
    made = windows.plan()
    check(made, windows)
    assert made.placement.num_duplicates == 0
    num_nodes, num_groups = windows.cell.cluster.num_nodes, windows.cell.num_groups
    group_of_slot = made.placement.phy2log // (windows.loads.shape[2] // num_groups)
    for of_layer in group_of_slot.reshape(-1, num_nodes, group_of_slot.shape[1] // num_nodes):
        nodes = [set(node) for node in of_layer.tolist()]
        # Each group is on one node, and equally many on each.
        assert sorted(group for node in nodes for group in node) == list(range(num_groups))
        assert {len(node) for node in nodes} == {num_groups // num_nodes}


@every_effort
@pytest.mark.parametrize("slots_per_gpu", [1, 3])
def test_no_spare_slots(effort: Effort, slots_per_gpu: int) -> None:
    rng = np.random.default_rng(slots_per_gpu)
    cluster = Cluster(4, 1, slots_per_gpu)
    loads = rng.lognormal(size=(3, 4, cluster.num_slots))
    made = plan(loads, cluster, effort=effort)
    check(made, Windows(loads, None, Cell(loads[0], cluster), effort))
    assert (made.placement.logcnt == 1).all()


@every_effort
@pytest.mark.parametrize("slots_per_gpu", [4, 5, 11])
def test_more_slots_on_a_gpu_than_experts(effort: Effort, slots_per_gpu: int) -> None:
    """Every GPU can hold each expert: each window is then as even as can be."""
    loads = np.array([[[8.0, 4.0, 2.0, 1.0], [0.0] * 4], [[0.0, 0.0, 5.0, 0.0], [0.0] * 4]])
    cluster = Cluster(3, 1, slots_per_gpu)
    made = plan(loads, cluster, effort=effort)
    check(made, Windows(loads, None, Cell(loads[0], cluster), effort))
    assert made.peak == pytest.approx([10.0 / 3.0, 0.0])
    assert made.gap == pytest.approx([0.0, 0.0], abs=1e-12)
    assert made.placement.num_duplicates == 2 * 3 * (slots_per_gpu - 4)


def test_experts_of_the_same_windows_are_parted() -> None:
    """Four experts are busy in turn, two by two: on their sum alone, any pairing is as good."""
    loads = np.array([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]])
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [0, 2, 3, 1]):
        made = plan(loads[:, :, order], Cluster(2, 1, 2), effort="fast")
        assert made.peak.tolist() == made.bound.tolist() == [1.0]


def test_an_expert_that_is_busy_in_one_window_gets_replicas_for_it() -> None:
    """On the mean the last expert has the least load; the one slot to spare is best spent on it."""
    loads = np.ones((2, 1, 8))
    loads[:, 0, 7] = [2.0, 0.0]
    windows = Windows(loads, None, Cell(loads[0], Cluster(3, 1, 3)), "default")
    assert plan(mean_of(windows), Cluster(3, 1, 3)).placement.logcnt[0, 7] == 1
    assert plan(loads, Cluster(3, 1, 3)).placement.logcnt[0].tolist() == [1] * 7 + [2]


def test_windows_without_load_count_for_nothing_in_their_layers() -> None:
    """Layer by layer: windows 0 and 2 have none in layer 0, window 1 none in layer 1."""
    loads = np.random.default_rng(0).lognormal(size=(3, 2, 16))
    loads[[0, 2, 1], [0, 0, 1]] = 0.0
    cluster = Cluster(8, 1, 3)
    windows = Windows(loads, [0.2, 0.5, 0.3], Cell(loads[0], cluster), "default")
    made = windows.plan()
    check(made, windows)
    # In layer 0 all that counts is one window: the expected peak is that window's.
    peaks = made.placement.gpu_load(loads).max(axis=-1)
    assert made.peak[0] == pytest.approx(peaks[1, 0])
    totals = loads.sum(axis=2)[:, 1]
    mean = 0.4 * totals[0] + 0.6 * totals[2]
    ratios = peaks[:, 1] / np.where(totals > 0.0, totals, 1.0)
    assert made.peak[1] == pytest.approx(mean * (0.4 * ratios[0] + 0.6 * ratios[2]))


def test_weights_count() -> None:
    """Each of two windows is the better balanced, the more it counts."""
    loads = np.random.default_rng(4).lognormal(size=(2, 40, 16))
    cluster = Cluster(8, 1, 3)
    scores = np.array(
        [
            [made.placement.balancedness(window) for window in loads]
            for made in (plan(loads, cluster, weights=[w, 1.0 - w]) for w in (0.01, 0.5, 0.99))
        ]
    )
    assert (np.diff(scores[:, 0]) > 0.04).all()
    assert (np.diff(scores[:, 1]) < -0.04).all()


def test_windows_count_by_how_uneven_they_are_not_by_their_tokens() -> None:
    loads = np.random.default_rng(1).lognormal(size=(3, 20, 16))
    cluster = Cluster(8, 1, 3)
    made = plan(loads, cluster)
    more = plan(loads * np.array([1000.0, 1.0, 0.02])[:, None, None], cluster)
    totals = loads.sum(axis=2)
    mean_more = (1000.0 * totals[0] + totals[1] + 0.02 * totals[2]) / 3.0
    ratio = (more.peak / mean_more) / (made.peak / totals.mean(axis=0))
    # Where changes are alike, rounding chooses, and the search goes on from there.
    assert ratio == pytest.approx(1.0, rel=0.1)
    assert ratio.mean() == pytest.approx(1.0, rel=0.01)


# The bound.


@settings(max_examples=25)
@given(
    st.sampled_from([(4, 2, 2, 1), (4, 2, 3, 1), (5, 3, 2, 1), (6, 4, 2, 2)]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.sampled_from(EFFORTS),
)
def test_bound_is_proven(
    shape: tuple[int, int, int, int], num_windows: int, tied: bool, seed: int, effort: Effort
) -> None:
    """Every placement of tiny layers, two replicas of an expert on a GPU and all."""
    num_experts, num_gpus, slots_per_gpu, num_nodes = shape
    rng = np.random.default_rng(seed)
    size = (num_windows, 1, num_experts)
    loads = rng.integers(0, 4, size) + 0.0 if tied else rng.lognormal(0.0, 1.5, size)
    loads[:, 0, rng.integers(num_experts)] += 0.25
    weights = rng.integers(1, 4, num_windows).astype(float).tolist()
    cluster = Cluster(num_gpus, num_nodes, slots_per_gpu)
    groups = num_experts if num_nodes > 1 else 1
    made = plan(loads, cluster, num_groups=groups, weights=weights, effort=effort)
    best = naive.windows_optimum(loads[:, 0].tolist(), weights, num_gpus, slots_per_gpu, num_nodes)
    assert made.bound[0] <= best * (1.0 + ROUNDING)
    assert best <= made.peak[0] * (1.0 + ROUNDING)


@every_effort
def test_bound_counts_the_largest_replica_of_each_window(effort: Effort) -> None:
    loads = np.array([[[6.0, 1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0, 6.0]]])
    # With one slot to spare, one of two experts of 3.5 in the mean stays whole.
    made = plan(loads, Cluster(5, 1, 1), effort=effort)
    assert (made.peak.tolist(), made.bound.tolist()) == ([4.5], [3.5])
    # With two to spare, each window could cut its hot expert in three.
    made = plan(loads, Cluster(6, 1, 1), effort=effort)
    assert (made.peak.tolist(), made.bound.tolist()) == ([3.0], [2.0])


# Quality.


def random_windows(
    num_windows: int, num_layers: int, num_experts: int, drift: float
) -> NDArray[np.float64]:
    """[T, L, E] skewed loads that differ from window to window."""
    rng = np.random.default_rng(num_experts)
    usual = rng.lognormal(0.0, 0.7, (num_layers, num_experts))
    return usual * rng.lognormal(0.0, drift, (num_windows, num_layers, num_experts))


QUALITY_CELLS = [
    (16, Cluster(8, 1, 3), 1),
    (32, Cluster(16, 1, 3), 1),
    (32, Cluster(8, 1, 5), 1),
    (32, Cluster(8, 2, 5), 8),
]
quality_cells = pytest.mark.parametrize(("num_experts", "cluster", "num_groups"), QUALITY_CELLS)


@quality_cells
def test_more_effort_is_better_on_average(
    num_experts: int, cluster: Cluster, num_groups: int
) -> None:
    loads = random_windows(5, 100, num_experts, 0.5)
    fast, default, thorough = (
        plan(loads, cluster, num_groups=num_groups, effort=effort).peak.mean() for effort in EFFORTS
    )
    assert thorough < default < fast


@every_effort
@quality_cells
def test_better_than_the_plan_of_the_mean(
    num_experts: int, cluster: Cluster, num_groups: int, effort: Effort
) -> None:
    loads = random_windows(5, 50, num_experts, 0.5)
    windows = Windows(loads, None, Cell(loads[0], cluster, num_groups), effort)
    made = windows.plan()
    of_mean = plan(mean_of(windows), cluster, num_groups=num_groups, effort=effort).placement
    assert made.peak.mean() < peaks_of(of_mean, windows).mean() * 0.97


def peaks_of(placement: Placement, windows: Windows) -> NDArray[np.float64]:
    """[L] the expected peak of a placement."""
    num_gpus = windows.cell.cluster.num_gpus
    peaks = [
        naive.expected_peak(slots, layer, windows.weight(), num_gpus)
        for slots, layer in zip(placement.phy2log.tolist(), windows.layers(), strict=True)
    ]
    return np.array(peaks)


@every_effort
@quality_cells
@pytest.mark.parametrize("drift", [0.0, 0.01, 0.2, 1.0])
def test_never_worse_than_the_plan_of_the_mean(
    num_experts: int, cluster: Cluster, num_groups: int, effort: Effort, drift: float
) -> None:
    """Plans for windows start from it."""
    loads = random_windows(3, 5, num_experts, drift)
    windows = Windows(loads, [1.0, 3.0, 2.0], Cell(loads[0], cluster, num_groups), effort)
    of_mean = plan(mean_of(windows), cluster, num_groups=num_groups, effort=effort).placement
    assert (windows.plan().peak <= peaks_of(of_mean, windows) * (1.0 + ROUNDING)).all()


@pytest.mark.parametrize("effort", ["default", "thorough"])
@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_no_worse_with_few_slots_and_windows_alike(effort: Effort, drift: float) -> None:
    loads = random_windows(3, 50, 16, drift)
    cell = Cell(loads[0], Cluster(8, 1, 3))
    windows = Windows(loads, None, cell, effort)
    of_mean = plan(mean_of(windows), cell.cluster, effort=effort).placement
    peaks, of_mean_peaks = windows.plan().peak, peaks_of(of_mean, windows)
    assert peaks.mean() <= of_mean_peaks.mean() * (1.0 + ROUNDING)
    # The mean is searched where that promises more than a search for the windows has found.
    assert (peaks <= of_mean_peaks * 1.01).all()


# The same bytes.


@pytest.mark.parametrize("num_groups", [1, 8])
@every_effort
def test_layers_are_planned_on_their_own(num_groups: int, effort: Effort) -> None:
    rng = np.random.default_rng(8)
    loads = np.concatenate([rng.lognormal(size=(4, 4, 16)), rng.integers(0, 3, (4, 3, 16))], axis=1)
    loads[2, 1] = 0.0
    options: dict[str, Any] = {
        "num_groups": num_groups,
        "weights": [0.1, 0.4, 0.2, 0.3],
        "effort": effort,
    }
    cluster = Cluster(8, 4, 3)
    together = plan(loads, cluster, **options)
    for threads in (1, 2, 3):
        assert same(plan(loads, cluster, threads=threads, **options), together)
    for layer in range(loads.shape[1]):
        alone = plan(loads[:, layer : layer + 1], cluster, **options)
        assert np.array_equal(alone.placement.phy2log[0], together.placement.phy2log[layer])
        assert alone.peak[0] == together.peak[layer]
        assert alone.bound[0] == together.bound[layer]
    backwards = plan(loads[:, ::-1], cluster, **options)
    assert np.array_equal(backwards.placement.phy2log[::-1], together.placement.phy2log)


@given(several_windows(cells()), st.sampled_from([2.0**-900, 2.0**-20, 4.0, 2.0**30]))
def test_units_change_nothing(windows: Windows, factor: float) -> None:
    made = windows.plan()
    scaled = windows._replace(loads=windows.loads * factor).plan()
    assert scaled.placement == made.placement
    assert np.array_equal(scaled.peak, made.peak * factor)
    assert np.array_equal(scaled.bound, made.bound * factor)
    assert same(windows.plan(weights=[weight * factor for weight in windows.weight()]), made)


@given(several_windows(cells()), st.randoms(use_true_random=False))
def test_order_of_windows_changes_nothing(windows: Windows, random: Random) -> None:
    order = list(range(len(windows.loads)))
    random.shuffle(order)
    weights = None if windows.weights is None else [windows.weights[at] for at in order]
    shuffled = windows._replace(loads=windows.loads[order], weights=weights)
    assert same(shuffled.plan(), windows.plan())


@given(several_windows(cells()), st.integers(0, 5))
def test_windows_that_count_for_nothing_change_nothing(windows: Windows, at: int) -> None:
    """One without load, and one of weight 0."""
    at %= len(windows.loads) + 1
    empty = np.insert(windows.loads, at, 0.0, axis=0)
    weights = None if windows.weights is None else np.insert(windows.weights, at, 1.0).tolist()
    assert same(windows._replace(loads=empty, weights=weights).plan(), windows.plan())
    ignored = np.insert(windows.loads, at, 7.0, axis=0)
    weights = np.insert(windows.weight(), at, 0.0).tolist()
    weighed = windows._replace(weights=windows.weight())
    assert same(windows._replace(loads=ignored, weights=weights).plan(), weighed.plan())


# Recorded loads that were not planned for.
