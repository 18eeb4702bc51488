"""Presets are like the loads recorded from their models.

Tolerances are what is left of the fit: figures of a preset are means over seeds, those recorded are
of one model, whose layers are as chance had them.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from recorded import GPT_OSS, load_recorded, load_windows

from eplb import Cluster, LoadTrace, Placement, plan
from eplb.describe import drift, skew
from eplb.synthetic import PRESETS, trace, workloads

# The recorded file that each phase of the preset stands for.
RECORDED = {
    "decode-500": "decode_in500out1500",
    "decode-1800": "decode_in1800out100",
    "prefill-2048": "prefill_in2048",
    "prefill-512": "prefill_in512",
}

SEEDS = range(3)


def test_presets_have_the_shapes_of_their_models(traces: Path) -> None:
    for name, shape in (
        ("deepseek-v3", load_recorded(traces, "prefill_in512").shape),
        ("qwen3-235b", load_windows(traces, "qwen3_235b").shape),
        ("gpt-oss-20b", load_windows(traces, GPT_OSS).shape[1:]),
    ):
        preset = PRESETS[name]
        assert (preset.num_dense_layers + preset.num_layers, preset.num_experts) == shape


def test_deepseek_v3_phases_are_as_skewed_as_recorded(traces: Path) -> None:
    """Of each phase, means over layers and seeds; recorded layers, being few, vary by chance."""
    assert [phase.name for phase in PRESETS["deepseek-v3"].phases] == list(RECORDED)
    for number, file in enumerate(RECORDED.values()):
        real = skew(load_recorded(traces, file))
        made = skew(np.concatenate([workloads("deepseek-v3", seed=s).loads[number] for s in SEEDS]))
        assert made.spread.mean() == pytest.approx(real.spread.mean(), rel=0.04)
        assert made.top_fifth.mean() == pytest.approx(real.top_fifth.mean(), abs=0.035)
        assert made.hottest.mean() == pytest.approx(real.hottest.mean(), rel=0.17)
        assert made.spread.min() == pytest.approx(real.spread.min(), abs=0.1)
        assert made.spread.max() == pytest.approx(real.spread.max(), abs=0.1)
        assert made.idle.max() == 0


def test_deepseek_v3_phases_differ_as_recorded(traces: Path) -> None:
    real = drift(LoadTrace(np.stack([load_recorded(traces, file) for file in RECORDED.values()])))
    made = [drift(workloads("deepseek-v3", seed=seed)) for seed in SEEDS]
    for name, tolerance in (("correlation_of_pairs", 0.05), ("spread_of_pairs", 0.02)):
        found = np.mean([getattr(one, name) for one in made], axis=0)
        np.testing.assert_allclose(found, getattr(real, name), atol=tolerance)


def test_qwen3_is_as_skewed_as_recorded(traces: Path) -> None:
    recorded = load_windows(traces, "qwen3_235b")
    real = skew(recorded)
    tokens = round(recorded.sum(axis=-1).mean() / PRESETS["qwen3-235b"].top_k)
    for seed in SEEDS:
        counts = trace("qwen3-235b", num_windows=1, tokens_per_window=tokens, seed=seed).loads[0]
        # As the recorded ones were rounded, which lifts the idlest.
        made = skew(np.floor(counts / 1000.0) * 1000.0 + 500.0)
        assert made.top_fifth.mean() == pytest.approx(real.top_fifth.mean(), abs=0.015)
        assert made.hottest.mean() == pytest.approx(real.hottest.mean(), rel=0.08)
        assert made.idle.mean() == pytest.approx(real.idle.mean(), abs=1.5)
        assert made.spread.mean() == pytest.approx(real.spread.mean(), rel=0.03)


def test_gpt_oss_drifts_as_recorded(traces: Path) -> None:
    recorded = LoadTrace(load_windows(traces, GPT_OSS))
    tokens = round(recorded.loads[0, 0].sum() / PRESETS["gpt-oss-20b"].top_k)
    made = [
        trace("gpt-oss-20b", num_windows=len(recorded), tokens_per_window=tokens, seed=seed)
        for seed in range(8)
    ]
    real, drifts = drift(recorded), [drift(one) for one in made]
    found = np.mean([one.correlation for one in drifts], axis=0)
    # A recording holds few pairs of blocks of a domain 32 windows apart, and fewer 64.
    np.testing.assert_allclose(found[:5], real.correlation[:5], atol=0.06)
    np.testing.assert_allclose(found[5:], real.correlation[5:], atol=0.12)
    spread = np.mean([one.spread for one in drifts], axis=0)
    np.testing.assert_allclose(spread[:5], real.spread[:5], rtol=0.18)
    windows = np.mean([skew(one.loads).hottest.mean() for one in made])
    assert windows == pytest.approx(skew(recorded.loads).hottest.mean(), rel=0.08)
    whole = np.mean([skew(one.total()).hottest.mean() for one in made])
    assert whole == pytest.approx(skew(recorded.total()).hottest.mean(), rel=0.13)


# --- peak-to-average ratio against the cadence of plans ------------------------------------------

ITERATIONS = 6144
TOKENS = 710  # of an iteration
BLOCK = 32  # iterations that are drawn as one window, and shown by one of them
CADENCES = (256, 512, 1024, 2048, 4096)


def ratios(placement: Placement, loads: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T, L] max / mean GPU load."""
    load = placement.gpu_load(loads)
    found: NDArray[np.float64] = load.max(axis=-1) / load.mean(axis=-1)
    return found


@cache
def replay(preset: str) -> dict[tuple[int, int], float]:
    """Mean ratio by number of GPUs and cadence (0: never planned), as the recorded were taken.

    Until the first plan, experts lie in order, without redundancy. A plan is made from the last
    iterations, with as many redundant experts as GPUs; it is put in place a layer an iteration.
    """
    top_k = PRESETS[preset].top_k
    windows = trace(preset, num_windows=ITERATIONS // BLOCK, tokens_per_window=BLOCK * TOKENS,
                    num_dense_layers=0)  # fmt: skip
    blocks = windows.loads
    num_blocks, num_layers, num_experts = blocks.shape
    shares = blocks / blocks.sum(axis=-1, keepdims=True)
    shown = np.random.default_rng(0).multinomial(TOKENS * top_k, shares).astype(np.float64)
    iteration = np.arange(num_blocks)[:, None] * BLOCK + BLOCK // 2
    in_order = np.tile(np.arange(num_experts), (num_layers, 1))
    found = {}
    for num_gpus in (32, 64, 128, 256):
        plain = Placement(in_order, num_experts, Cluster.with_slots(num_experts, num_gpus))
        never = ratios(plain, shown)
        found[num_gpus, 0] = never.mean()
        cluster = Cluster.with_slots(num_experts + num_gpus, num_gpus)
        for cadence in CADENCES:
            current = never.copy()
            for begin in range(cadence, ITERATIONS, cadence):
                seen = blocks[(begin - cadence) // BLOCK : begin // BLOCK].sum(axis=0)
                # Until the next plan is in place everywhere.
                coming = slice(begin // BLOCK, (begin + cadence + num_layers) // BLOCK + 1)
                in_place = iteration[coming] >= begin + np.arange(num_layers)
                planned = ratios(plan(seen, cluster).placement, shown[coming])
                current[coming][in_place] = planned[in_place]
            found[num_gpus, cadence] = current.mean()
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    ("preset", "dataset"),
    [
        ("deepseek-v3", "ShareGPT"),
        ("deepseek-v3", "WildChat"),
        ("deepseek-v3", "LmSys"),
        ("deepseek-v3-mix", "Mix"),
    ],
)
def test_ratio_against_cadence_is_as_recorded(traces: Path, preset: str, dataset: str) -> None:
    """Each within 12 % of the recorded, and 5 % on average."""
    rows = json.loads((traces / "dsr1_par_statistics.json").read_text())["rows"]
    made = replay(preset)
    away = [
        made[row["ep"], row["cadence"]] / row["mean_par"] - 1.0
        for row in rows
        if row["dataset"] == dataset
    ]
    assert len(away) >= 12
    assert np.abs(away).max() < 0.12
    assert np.abs(away).mean() < 0.05
