"""What plug-ins hand to engines that look up which copy a token goes to."""

import numpy as np
import pytest

from eplb import Cluster, Placement, dispatch, plan
from eplb.engines.settings import Settings
from eplb.engines.tables import entries_by_slot, rows_of_slots, slots_by_rank
from eplb.errors import EplbError

CLUSTER = Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=3)


def placed() -> tuple[Placement, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    windows = np.random.default_rng(0).lognormal(0.0, 1.0, (3, 2, 8))
    return plan(windows, CLUSTER).placement, windows


def test_slots_are_those_of_the_table_for_the_windows() -> None:
    placement, windows = placed()
    for threads in (1, 2):
        slots = slots_by_rank(placement.log2phy.copy(), windows, CLUSTER, Settings(threads=threads))
        assert slots is not None
        assert np.array_equal(slots, dispatch(placement, windows).table(effort="fast"))


def test_windows_that_differ_by_chance_count_as_one() -> None:
    placement, windows = placed()
    drawn = np.random.default_rng(1).poisson(windows[:1] * 1e4, (5, *windows.shape[1:]))
    alike = np.array(drawn, np.float64)
    slots = slots_by_rank(placement.log2phy.copy(), alike, CLUSTER, Settings(threads=1))
    assert slots is not None
    assert np.array_equal(slots, dispatch(placement, alike.sum(axis=0)).table(effort="fast"))


def test_no_slots_where_copies_are_left_out() -> None:
    placement, windows = placed()
    log2phy = placement.log2phy.copy()
    log2phy[1, :, 1:] = -1
    assert slots_by_rank(log2phy, windows, CLUSTER, Settings()) is None
    with pytest.raises(EplbError):
        slots_by_rank(placement.log2phy.copy(), windows[..., :-1], CLUSTER, Settings())


def test_slots_stand_in_rows_as_often_as_half_way_to_the_split() -> None:
    placement, windows = placed()
    phy2log = placement.phy2log.copy()
    best, even = (dispatch(placement, windows, rule=rule).split for rule in ("best", "even"))
    split = (best + even) / 2.0
    for room in (4, 1024):
        entries = entries_by_slot(phy2log, windows, CLUSTER, room, Settings(threads=1))
        rows, counts = rows_of_slots(phy2log, entries, 8)
        assert counts.max() == room
        for layer, expert in np.ndindex(counts.shape):
            slots = np.flatnonzero(phy2log[layer] == expert)
            length = room if len(slots) > 1 else 1
            row = rows[layer, expert]
            assert counts[layer, expert] == (row >= 0).sum() == length
            taken = np.bincount(row[:length], minlength=phy2log.shape[1])
            assert taken.sum() == taken[slots].sum()
            assert np.abs(taken / length - split[layer])[slots].max() < 1.0 / length
