"""Estimates of time: against a plain oracle, their properties, and what they refuse."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import eplb
from eplb.cost import Assumptions, estimate, layer_time, saving, seconds_saved
from eplb.cost.gpus import GPUS, Gpu
from eplb.cost.models import MODELS, Model

TINY = Model("tiny", 3, 2, 8, 2, 64, 32, 1.0, "fp8", 1.0)
H200 = GPUS["H200"]

numbers = st.floats(0.0, 1e5, allow_nan=False)
assumptions = st.builds(
    Assumptions,
    compute_efficiency=st.floats(0.1, 1.0),
    memory_efficiency=st.floats(0.1, 1.0),
    link_efficiency=st.floats(0.1, 1.0),
    network_efficiency=st.floats(0.1, 1.0),
    exchange_latency=st.floats(0.0, 1e-3),
    overlapped=st.booleans(),
    one_copy_per_node=st.booleans(),
)


def oracle(
    tokens: list[float],
    active: list[float],
    gpu: Gpu,
    model: Model,
    shape: tuple[int, int],
    sure: Assumptions,
) -> float:
    """Seconds of a layer, one GPU after another."""
    num_gpus, num_nodes = shape
    if not any(tokens):
        return 0.0
    weights = 3 * model.hidden_size * model.expert_size
    slowest = dict.fromkeys(("experts", "travel", "together"), 0.0)
    for count, read in zip(tokens, active, strict=True):
        rate = gpu.fp8 or gpu.int8 or gpu.bf16
        compute = 2 * weights * count / (rate * sure.compute_efficiency)
        a_token = model.dispatch_bytes * model.hidden_size + 2 * 2 * model.expert_size
        a_token += model.dispatch_bytes * model.expert_size + 2 * model.hidden_size
        moved = read * weights * model.bytes_per_weight + count * a_token
        memory = moved / (gpu.memory_bandwidth * sure.memory_efficiency)
        experts = math.hypot(compute, memory)
        on_node = num_gpus // num_nodes
        near, far = (on_node - 1) / num_gpus, (num_gpus - on_node) / num_gpus
        if sure.one_copy_per_node:
            others = num_nodes - 1
            missed = others * (1 - 1 / num_nodes) ** model.top_k
            near, far = (num_gpus - 1) / num_gpus, (others - missed) / model.top_k
        carried = count * model.hidden_size * (model.dispatch_bytes + model.combine_bytes)
        travel = max(
            carried * near / (gpu.link_bandwidth * sure.link_efficiency),
            carried * far / (gpu.network_bandwidth * sure.network_efficiency),
        )
        together = math.hypot(experts, travel)
        for name, value in (("experts", experts), ("travel", travel), ("together", together)):
            slowest[name] = max(slowest[name], value)
    latency = 2 * sure.exchange_latency if num_gpus > 1 else 0.0
    if sure.overlapped:
        return slowest["together"] + latency
    return slowest["experts"] + slowest["travel"] + latency


@given(
    work=st.lists(st.tuples(numbers, st.floats(0.0, 8.0)), min_size=1, max_size=6),
    name=st.sampled_from(sorted(GPUS)),
    model=st.sampled_from([TINY, MODELS["DeepSeek-V3"]]),
    shape=st.sampled_from([(1, 1), (8, 1), (8, 2), (16, 16)]),
    sure=assumptions,
)
def test_layer_is_that_of_the_oracle(
    work: list[tuple[float, float]],
    name: str,
    model: Model,
    shape: tuple[int, int],
    sure: Assumptions,
) -> None:
    tokens, active = [pair[0] for pair in work], [pair[1] for pair in work]
    found = layer_time(
        np.array(tokens),
        np.array(active),
        GPUS[name],
        model,
        num_gpus=shape[0],
        num_nodes=shape[1],
        assumptions=sure,
    )
    expected = oracle(tokens, active, GPUS[name], model, shape, sure)
    assert float(found.seconds) == pytest.approx(expected, rel=1e-9)


def random_loads(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).gamma(0.5, 100.0, shape)


def placement_on(cluster: eplb.Cluster, num_layers: int = 2) -> eplb.Placement:
    return eplb.Placement.contiguous(num_layers, 8, cluster)


CLUSTER = eplb.Cluster(4, 2, 3)


def test_estimate_is_the_layers_of_its_gpus() -> None:
    """Loads scaled to the batch, each layer by the oracle; the step has as many as the model."""
    placement, loads = placement_on(CLUSTER), random_loads(2, 8)
    sure = Assumptions(one_copy_per_node=False)
    found = estimate(placement, loads, H200, TINY, tokens_per_gpu=50, assumptions=sure)
    expected = []
    for layer in range(2):
        scaled = loads[layer] * (50 * 4 * TINY.top_k) / loads[layer].sum()
        slots = [
            scaled[expert] / placement.logcnt[layer, expert]
            for expert in placement.phy2log[layer].tolist()
        ]
        gpus = [slots[3 * gpu : 3 * gpu + 3] for gpu in range(4)]
        active = [sum(1 - math.exp(-slot) for slot in gpu) for gpu in gpus]
        expected.append(oracle([sum(gpu) for gpu in gpus], active, H200, TINY, (4, 2), sure))
    assert found.layer_seconds.tolist() == pytest.approx(expected)
    assert found.moe_seconds == pytest.approx(sum(expected))
    even, read = 50.0 * TINY.top_k, 2 * (1 - math.exp(-50 * 4 * 2 / 8))
    balanced = oracle([even] * 4, [read] * 4, H200, TINY, (4, 2), sure)
    assert found.balanced_layer_seconds == pytest.approx(balanced)
    assert found.rest_seconds == pytest.approx(2 * balanced)
    assert found.tokens_per_second == pytest.approx(200 / (sum(expected) + 2 * balanced))


@given(st.floats(1e-3, 1e6))
def test_unit_of_loads_does_not_matter(unit: float) -> None:
    loads = random_loads(2, 8)
    placement = placement_on(CLUSTER)
    first = estimate(placement, loads, H200, TINY, tokens_per_gpu=100)
    second = estimate(placement, loads * unit, H200, TINY, tokens_per_gpu=100)
    assert second.step_seconds == pytest.approx(first.step_seconds)


@pytest.mark.parametrize(
    "better",
    [
        replace(H200, memory_bandwidth=9.6e12),
        replace(H200, link_bandwidth=9e11),
        replace(H200, network_bandwidth=1e11),
        replace(H200, fp8=4e15),
    ],
)
@pytest.mark.parametrize("tokens_per_gpu", [16, 100_000])
def test_a_better_gpu_is_never_slower(better: Gpu, tokens_per_gpu: int) -> None:
    placement, loads = placement_on(CLUSTER), random_loads(2, 8)
    now = estimate(placement, loads, H200, TINY, tokens_per_gpu=tokens_per_gpu)
    then = estimate(placement, loads, better, TINY, tokens_per_gpu=tokens_per_gpu)
    if better.link_bandwidth > H200.link_bandwidth:
        # Between two nodes the network is the slower way.
        assert then.moe_seconds == now.moe_seconds
    else:
        assert then.moe_seconds < now.moe_seconds


def test_windows_are_averaged_and_those_without_load_left_out() -> None:
    placement, loads = placement_on(CLUSTER), random_loads(3, 2, 8)
    alone = [estimate(placement, window, H200, TINY, tokens_per_gpu=64) for window in loads]
    mean = np.mean([each.moe_seconds for each in alone])
    with_idle = np.concatenate([loads, np.zeros((2, 2, 8))])
    found = estimate(placement, with_idle, H200, TINY, tokens_per_gpu=64)
    assert found.moe_seconds == pytest.approx(mean)
    assert found.layer_seconds == pytest.approx(np.mean([e.layer_seconds for e in alone], axis=0))


def test_a_layer_idle_in_one_window_is_averaged_over_the_others() -> None:
    placement, loads = placement_on(CLUSTER), random_loads(2, 2, 8)
    loads[1, 0] = 0.0
    alone = [estimate(placement, window, H200, TINY, tokens_per_gpu=64) for window in loads]
    found = estimate(placement, loads, H200, TINY, tokens_per_gpu=64)
    assert found.layer_seconds[0] == pytest.approx(alone[0].layer_seconds[0])
    assert found.moe_seconds == pytest.approx((alone[0].moe_seconds + alone[1].moe_seconds) / 2)
    assert alone[1].moe_seconds == pytest.approx(2 * alone[1].layer_seconds[1])


def test_dense_layers_take_no_time_and_missing_ones_the_mean() -> None:
    loads = random_loads(2, 8)
    dense = np.vstack([np.zeros((1, 8)), loads])
    first = estimate(placement_on(CLUSTER), loads, H200, TINY, tokens_per_gpu=64)
    second = estimate(placement_on(CLUSTER, 3), dense, H200, TINY, tokens_per_gpu=64)
    assert second.layer_seconds[0] == 0.0
    assert second.moe_seconds == pytest.approx(first.moe_seconds)
    part = estimate(placement_on(CLUSTER, 1), loads[:1], H200, TINY, tokens_per_gpu=64)
    assert part.moe_seconds == pytest.approx(2 * part.layer_seconds[0])
    assert any("1 layer with load, and the model has 2" in word for word in part.words)


def test_even_loads_are_the_balanced_layer() -> None:
    cluster = eplb.Cluster(4, 2, 2)
    found = estimate(placement_on(cluster), np.ones((2, 8)), H200, TINY, tokens_per_gpu=64)
    assert found.layer_seconds.tolist() == pytest.approx([found.balanced_layer_seconds] * 2)
    assert found.moe_seconds == pytest.approx(found.rest_seconds)


def test_saved_seconds_are_the_difference_of_estimates() -> None:
    """With many tokens every slot is read, as `seconds_saved` takes it to be."""
    first = placement_on(CLUSTER)
    second = eplb.Placement(np.roll(first.phy2log, 1, axis=1), 8, CLUSTER)
    loads = random_loads(2, 8) + 5.0
    sides = [estimate(each, loads, H200, TINY, tokens_per_gpu=1e5) for each in (first, second)]
    found = seconds_saved(
        first.gpu_load(loads).max(-1),
        second.gpu_load(loads).max(-1),
        loads.sum(-1),
        CLUSTER,
        H200,
        TINY,
        tokens_per_gpu=1e5,
    )
    expected = sides[0].layer_seconds - sides[1].layer_seconds
    assert found.tolist() == pytest.approx(expected.tolist())
    assert found.sum() == pytest.approx(saving(*sides).seconds)


def test_saved_seconds_of_nothing() -> None:
    peaks = np.array([[3.0, 0.0], [1.0, 2.0]])
    total = np.array([[9.0, 0.0], [4.0, 5.0]])
    same = seconds_saved(peaks, peaks, total, CLUSTER, H200, TINY, tokens_per_gpu=128)
    assert same.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    less = seconds_saved(peaks, peaks / 2, total, CLUSTER, H200, TINY, tokens_per_gpu=128)
    assert (less[total > 0] > 0).all()
    assert less[0, 1] == 0.0
    assert (
        seconds_saved(peaks / 2, peaks, total, CLUSTER, H200, TINY, tokens_per_gpu=128) == -less
    ).all()


def test_a_plan_for_recorded_loads_saves_time(traces: Path) -> None:
    files = sorted((traces / "deepseek_v3").glob("*.json"))
    loads = np.array([json.loads(file.read_text())["logical_count"] for file in files])
    cluster = eplb.Cluster.with_slots(288, 32, 4)
    plan = eplb.plan(loads, cluster)
    contiguous = eplb.Placement.contiguous(61, 256, cluster)
    for gpu in GPUS:
        before, after = (
            estimate(each, loads, gpu, "DeepSeek-V3", tokens_per_gpu=128)
            for each in (contiguous, plan.placement)
        )
        found = saving(before, after)
        assert found.seconds > 0.0
        # A balanced step is half expert layers; nothing can save more than what is above it.
        assert 1.0 < found.speedup < before.step_seconds / (2 * before.rest_seconds)
        assert (after.layer_seconds[:3] == 0.0).all()
        assert str(found).startswith("Estimate:")
        assert str(found).endswith(f"{found.seconds * 1e3:.2f} ms saved in a step")
        lost = str(saving(after, before))
        assert lost.endswith(f"{found.seconds * 1e3:.2f} ms lost in a step")
        assert "% fewer)" in lost


def test_batches_settle_how_tokens_cross() -> None:
    placement, loads = placement_on(CLUSTER), random_loads(2, 8)
    for tokens, once in ((256, False), (257, True)):
        found = estimate(placement, loads, H200, TINY, tokens_per_gpu=tokens)
        assert found.assumptions.one_copy_per_node is once
        said = Assumptions(one_copy_per_node=not once)
        kept = estimate(placement, loads, H200, TINY, tokens_per_gpu=tokens, assumptions=said)
        assert kept.assumptions == said


def test_estimates_say_what_they_assume() -> None:
    placement, loads = placement_on(CLUSTER), random_loads(2, 8)
    sure = Assumptions(compute_efficiency=0.5, overlapped=True)
    found = estimate(placement, loads, "910C", TINY, tokens_per_gpu=64, assumptions=sure)
    text = "\n".join(found.words)
    assert "estimate from a roofline, not a measurement" in text
    assert "50% of the INT8 peak" in text
    assert "no units: INT8 stands in" in text
    assert "Tokens travel while experts compute." in text
    assert "4 x Ascend 910C die on 2 nodes serve tiny" in text
    assert str(found).startswith("Estimate: ")


def test_savings_compare_like_with_like() -> None:
    placement, loads = placement_on(CLUSTER), random_loads(2, 8)
    here = estimate(placement, loads, H200, TINY, tokens_per_gpu=64)
    for there, message in (
        (estimate(placement, loads, "H100", TINY, tokens_per_gpu=64), "differ in their GPU"),
        (
            estimate(placement, loads, H200, TINY, tokens_per_gpu=65),
            "differ in their tokens_per_gpu",
        ),
        (
            estimate(placement_on(eplb.Cluster(4, 1, 3)), loads, H200, TINY, tokens_per_gpu=64),
            "differ in their number of nodes: 2 and 1",
        ),
    ):
        with pytest.raises(eplb.OptionError, match=message):
            saving(here, there)


def test_import_is_light() -> None:
    code = "import sys, eplb.cost; print(sorted({'numba', 'torch', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
