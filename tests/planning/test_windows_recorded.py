"""Plans for recorded windows, scored on windows that they have not seen."""

from pathlib import Path

import numpy as np
from recorded import DEEPSEEK_V3, GPT_OSS, load_recorded, load_windows

from eplb import Cluster, plan


def test_held_out_workloads_of_deepseek_v3(traces: Path) -> None:
    windows = np.stack([load_recorded(traces, name) for name in DEEPSEEK_V3])
    cluster = Cluster(32, 1, 9)
    gains = []
    for held_out in range(len(windows)):
        others = np.delete(windows, held_out, axis=0)
        of_windows, of_sum = plan(others, cluster), plan(others.sum(axis=0), cluster)
        gains.append(
            of_windows.placement.balancedness(windows[held_out])
            - of_sum.placement.balancedness(windows[held_out])
        )
    assert np.mean(gains) >= 0.05


def test_next_windows_of_gpt_oss(traces: Path) -> None:
    windows = load_windows(traces, GPT_OSS)
    cluster = Cluster(8, 1, 5)
    gains = []
    for now in range(32, len(windows), 8):
        past = windows[now - 32 : now]
        of_windows, of_sum = plan(past, cluster), plan(past.sum(axis=0), cluster)
        gains.append(
            of_windows.placement.balancedness(windows[now])
            - of_sum.placement.balancedness(windows[now])
        )
    assert np.mean(gains) >= 0.03


def test_the_order_of_windows_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    windows, weights = rng.gamma(0.5, size=(5, 2, 24)), np.array([1.0, 2.0, 1.0, 3.0, 0.5])
    cluster = Cluster(4, 1, 8)
    order = rng.permutation(5)
    first = plan(windows, cluster, weights=weights)
    again = plan(windows[order], cluster, weights=weights[order])
    assert again.placement == first.placement
    assert again.peak.tolist() == first.peak.tolist()
