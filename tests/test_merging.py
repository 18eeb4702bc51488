"""Windows that are added up in time order until they differ by more than chance."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import eplb
from eplb import LoadsError, LoadTrace, OptionError, merging
from eplb.merging import FEWEST, Recording, alike, clear_change
from eplb.planning.backtest import expected_of
from eplb.planning.forecast import Recent

LAYERS, EXPERTS = 3, 32


def shares(rng: np.random.Generator) -> NDArray[np.float64]:
    share = rng.lognormal(0.0, 0.8, (LAYERS, EXPERTS))
    return np.asarray(share / share.sum(axis=1, keepdims=True))


def drawn(
    rng: np.random.Generator, share: NDArray[np.float64], windows: int, tokens: int
) -> NDArray[np.float64]:
    """Windows of so many tokens, drawn from shares [L, E] alike."""
    counts = np.stack([rng.multinomial(tokens, each, windows) for each in share], axis=1)
    return counts.astype(np.float64)


@pytest.mark.parametrize("tokens", [16, 4096])
def test_windows_of_one_load_are_merged_to_few(tokens: int) -> None:
    rng = np.random.default_rng(0)
    trace = LoadTrace(drawn(rng, shares(rng), 600, tokens), times=np.arange(600.0))
    merged = trace.merged()
    assert merged.num_windows == FEWEST
    assert np.array_equal(merged.total(), trace.total())
    assert merged.names[:2] == ("0", "50")
    assert merged.times is not None
    assert merged.times[1] == 50.0
    assert alike(merged.loads)
    assert merged.merging is not None
    assert merged.merging.recorded == 600
    assert merged.merging.words == (
        f"600 windows of about {tokens:,} routed tokens a layer were merged into 12 of about "
        f"{50 * tokens:,}: in so few tokens, windows differ mostly by chance "
        "(merge none keeps them apart)"
    )
    assert merged.merged() is merged


@pytest.mark.parametrize("tokens", [16, 64, 512])
def test_a_change_survives(tokens: int) -> None:
    """The load changes to and fro every 75 windows: hardly any window is of both."""
    rng = np.random.default_rng(1)
    both = shares(rng), shares(rng)
    loads = np.concatenate([drawn(rng, both[each % 2], 75, tokens) for each in range(8)])
    merged = LoadTrace(loads).merged().loads
    assert FEWEST < len(merged) <= 300
    assert not alike(merged)
    share = merged / merged.sum(axis=2, keepdims=True)
    away = [np.abs(share - each).sum(axis=(1, 2)) for each in both]
    between = np.abs(both[0] - both[1]).sum()
    assert (np.minimum(*away) < between / 2).mean() > 0.8


@pytest.mark.parametrize("late", [52, 60, 110])
def test_a_late_change_begins_a_window(late: int) -> None:
    """Of few tokens, a dozen windows would have it in the last one or two, half blurred."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        first = shares(rng)
        second = first * rng.lognormal(0.0, 0.6, first.shape)
        second /= second.sum(axis=1, keepdims=True)
        loads = np.concatenate([drawn(rng, first, 600 - late, 40), drawn(rng, second, late, 40)])
        merged = LoadTrace(loads).merged()
        assert merged.num_windows == FEWEST
        assert merged.merging is not None
        begin = int(merged.names[merged.merging.changed])
        assert abs(begin - (600 - late)) <= 5
        assert np.array_equal(merged.loads[merged.merging.changed :].sum(0), loads[begin:].sum(0))
        # It is planned for as if the recording had begun there.
        found = expected_of(LoadTrace(loads), eplb.Cluster(8, 1, 5))
        assert f"Loads changed clearly at window {begin}" in str(found.words)
        assert np.array_equal(found.scenarios.loads, [loads[begin:].sum(0)])
        assert merged.pick(range(12)).merging == merging.Merging(600, merged.merging.words)


@pytest.mark.parametrize("tokens", [16, 256])
def test_drift_is_no_change(tokens: int) -> None:
    """Nor is a load that comes again, one that nothing changes, or layers that are idle."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        at = np.arange(600)[:, None, None]
        first, change = np.log(shares(rng)), rng.normal(size=(LAYERS, EXPERTS)) * 0.6
        steps = rng.normal(size=(600, LAYERS, EXPERTS)) * 0.03
        for logs in (
            first + at / 300 * change,
            first + np.cumsum(steps, axis=0),
            first + (at // 50 % 2) * change,
            first + 0 * at,
        ):
            share = np.exp(logs)
            loads = rng.poisson(share / share.sum(axis=2, keepdims=True) * tokens)
            loads[::3, 0] = 0
            loads[:, 1] = 0
            merged = LoadTrace(loads.astype(float)).merged()
            assert merged.merging is not None
            assert merged.merging.changed == 0


def test_what_differs_clearly_stays_apart(traces: Path) -> None:
    recorded = eplb.load_trace(traces / "gptoss20b_domains_2048.npz")
    assert recorded.num_windows == 105
    assert recorded.merging is not None
    assert recorded.merging.words is None


def test_what_is_no_count_of_tokens_stays_apart() -> None:
    rng = np.random.default_rng(2)
    counts = drawn(rng, shares(rng), 40, 16)
    assert LoadTrace(counts).merged().num_windows == FEWEST
    # Means are no whole numbers, windows all alike are no samples, and few windows are few.
    assert LoadTrace(counts / 7.0).merged().num_windows == 40
    assert LoadTrace(np.repeat(counts[:1], 40, axis=0)).merged().num_windows == 40
    assert LoadTrace(counts[:FEWEST]).merged().num_windows == FEWEST
    assert not alike(counts / 7.0)
    assert not alike(counts[:1])


def test_tokens_that_eight_ranks_have_counted_are_one_each() -> None:
    rng = np.random.default_rng(3)
    counts = drawn(rng, shares(rng), 40, 16)
    assert alike(counts)
    assert alike(8.0 * counts)
    assert not alike(np.concatenate([counts, 8.0 * drawn(rng, shares(rng), 40, 16)]))


def test_chance_is_what_multinomial_numbers_vary_by() -> None:
    """Against the definition, in plain loops."""
    rng = np.random.default_rng(4)
    loads = drawn(rng, shares(rng), 5, 20)
    loads[1, 2] = 0.0
    loads[3] *= 3.0
    found = expected = 0.0
    for layer in range(LAYERS):
        total = loads[:, layer].sum(axis=0)
        share = total / total.sum()
        for window in loads[:, layer]:
            if tokens := window.sum():
                found += ((window / tokens - share) ** 2).sum()
                expected += (share * (1 - share)).sum() * (1 / tokens - 1 / total.sum())
    assert merging._differ(loads, 1).ratio == pytest.approx(found / expected)
    many = merging._differ(drawn(rng, shares(rng), 400, 20), 1)
    assert many.ratio == pytest.approx(1.0, abs=3.0 * many.deviation)
    assert many.next_ratio == pytest.approx(1.0, abs=0.1)


def test_memory_does_not_grow_with_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are counted, whatever pieces windows come in; and nothing is lost."""
    monkeypatch.setattr(merging, "_LEAST_KEPT", 64)
    monkeypatch.setattr(merging, "_MEMORY", 0)
    rng = np.random.default_rng(5)
    loads = drawn(rng, shares(rng), 5000, 16)
    names = [str(number) for number in range(5000)]
    found = []
    for size in (1, 7, 600, 5000):
        recording = Recording()
        for at in range(0, 5000, size):
            recording.add(loads[at : at + size].astype(np.int32), names[at : at + size])
            assert recording._num_kept <= 64
            assert len(recording._sums) <= 64
        found.append(recording.finish())
    for merged, starts, _, _ in found:
        assert np.array_equal(merged, found[0][0])
        assert starts == found[0][1]
        assert np.array_equal(merged.sum(axis=0), loads.sum(axis=0))


def test_of_a_long_recording_the_rest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short rest goes to the window before it, a long one is a window."""
    monkeypatch.setattr(merging, "_LEAST_KEPT", 8)
    monkeypatch.setattr(merging, "_MEMORY", 0)
    loads = np.full((31, 1, 2), 0.5)
    for windows, sizes in ((21, [4, 4, 4, 4, 5]), (22, [4, 4, 4, 4, 4, 2])):
        recording = Recording()
        recording.add(loads[:windows], list(map(str, range(windows))))
        merged, _, _, told = recording.finish()
        assert merged.sum(axis=2).ravel().tolist() == sizes
        assert told.words is not None
        assert "more are not kept" in told.words


def test_windows_added_up_as_asked_for() -> None:
    trace = LoadTrace(np.arange(24.0).reshape(4, 2, 3), list("abcd"))
    everything = trace.merged("all")
    assert np.array_equal(everything.loads[0], trace.total())
    assert everything.names == ("a",)
    kept = trace.merged("none")
    assert kept == trace
    assert kept.merged() is kept
    assert kept.merged(3).names == ("a",)
    with pytest.raises(OptionError, match="merge is 'some': give auto, none, all or a number"):
        merging.check_merge("some")
    with pytest.raises(LoadsError, match="the number of windows to add up is -2: give 1 or more"):
        merging.check_merge("-2")
    assert merging.check_merge("12") == 12


def test_a_plan_for_passes_of_few_tokens_is_for_all_of_them() -> None:
    """Of an array it is for what was given."""
    rng = np.random.default_rng(6)
    share = shares(rng)
    loads = drawn(rng, share, 600, 16)
    cluster = eplb.Cluster(8, 1, 5)
    made = eplb.plan(LoadTrace(loads), cluster)
    whole = eplb.plan(loads.sum(axis=0), cluster).placement.balancedness(share)
    assert made.placement.balancedness(share) == whole
    assert len(made.notes) == 2
    assert made.notes[0].startswith("600 windows of about 16 routed tokens")
    assert "the sum of 12 windows, which differ by chance alone" in made.notes[1]
    last = eplb.plan(loads[-32:], cluster)
    assert not last.notes
    assert last.placement.balancedness(share) < whole - 0.03


def test_recorded_tokens_cut_into_passes(traces: Path) -> None:
    """16 tokens each: merged, plans are better on what comes than for the last 32 passes."""
    with np.load(traces / "gptoss20b_tokens.npz") as file:
        ids = file["topk_ids"][: 16 * 4200].reshape(4200, 16 * 24, 4)
    passes = np.zeros((4200, 24, 32))
    rows = np.tile(np.arange(24), 16)
    for number, chosen in enumerate(ids):
        np.add.at(passes[number], (rows[:, None], chosen), 1.0)
    cluster = eplb.Cluster(8, 1, 5)
    gains = []
    for now in range(600, 4200, 600):
        later = passes[now : now + 100].sum(axis=0)
        merged = LoadTrace(passes[now - 600 : now]).merged().loads
        assert len(merged) < 600
        scores = []
        for loads in (passes[now - 600 : now], merged):
            expected = Recent()(loads)
            made = eplb.plan(expected.loads, cluster, weights=expected.weights)
            scores.append(made.placement.balancedness(later))
        gains.append(scores[1] - scores[0])
    assert np.mean(gains) > 0.0


def naive_change(apart: NDArray[np.float64], chance: float) -> int:
    """The first change from which each window is further from all before than others are."""
    number = len(apart)
    for each in range(6, number - 1):
        across = min(apart[i, j] for i in range(each - 1) for j in range(each, number))
        novel = [min(apart[: w - 1, w]) for w in range(2, each - 1)]
        since = [min(apart[each:w, w]) for w in range(each + 1, number)]
        other = max(*novel, *since)
        if chance:
            other = max(other, chance, 2.0 * other - 4.0 * chance)
        if across > 1.75 * other:
            return each
    return 0


def _column(apart: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    return apart[:window, window]


@pytest.mark.parametrize("chance", [0.0, 0.3])
def test_a_change_is_found_without_all_distances(chance: float) -> None:
    """As where they are all compared, and where nothing changed the last window's are enough."""
    draw = np.random.default_rng(7)
    changed = 0
    for case in range(400):
        number = int(draw.integers(5, 34))
        apart = draw.random((number, number)) - chance
        begin = int(draw.integers(number))
        apart[:begin, begin:] += draw.choice([0.0, 1.0, 2.0, 5.0])
        found = clear_change(number, partial(_column, apart), chance)
        assert found == naive_change(apart, chance), case
        changed += found > 0
    assert changed > 50
    columns = [np.ones(window) for window in range(32)]
    columns[1:-1] = [np.array([])] * 30
    assert clear_change(32, lambda window: columns[window]) == 0, "the last one is enough"
