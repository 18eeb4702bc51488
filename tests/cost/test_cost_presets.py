"""Presets of GPUs and models: found by name, with sources, and as the page on cost has them."""

import re
from typing import Any

import pytest
from recorded import ROOT

from eplb.cost import Assumptions
from eplb.cost.gpus import GPUS, find_gpu
from eplb.cost.models import EXPERT_BYTES, MODELS, expert_bytes_of, find_model

PAGE = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")


import cost  # noqa: E402  # the path comes first


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("h100", "H100"),
        ("H100-SXM", "H100"),
        ("NVIDIA H200", "H200"),
        ("AMD MI300X", "MI300X"),
        ("Ascend-910C", "Ascend 910C die"),
        ("910b", "Ascend 910B"),
        ("GB300-NVL72", "GB300"),
    ],
)
def test_gpus_by_name(asked: str, found: str) -> None:
    assert find_gpu(asked) is GPUS[found]


@pytest.mark.parametrize("asked", ["deepseek-ai/DeepSeek-V3", "deepseek_v3", "DEEPSEEK V3"])
def test_models_by_name(asked: str) -> None:
    assert find_model(asked) is MODELS["DeepSeek-V3"]
    assert find_model("deepseek-ai/DeepSeek-V3.2") is MODELS["DeepSeek-V3"]
    assert find_model("zai-org/GLM-4.6") is MODELS["GLM-4.5"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("DeepSeek-V3", 671),
        ("DeepSeek-V4-Flash", 284),
        ("DeepSeek-V4-Pro", 1600),
        ("GLM-4.5", 355),
        ("GLM-5", 744),
        ("Kimi-K2", 1040),
        ("Kimi-K2.5", 1040),
        ("Kimi-K3", 2800),
        ("MiniMax-M2", 230),
        ("Mixtral-8x7B", 46.7),
        ("Qwen3-30B-A3B", 30.5),
        ("Qwen3.5-397B-A17B", 397),
        ("Qwen3-235B-A22B", 235),
        ("gpt-oss-120b", 117),
        ("gpt-oss-20b", 20.9),
    ],
)
def test_experts_are_nearly_all_of_a_models_weights(name: str, billions: float) -> None:
    """As many as its card says it has in all, but for attention, embeddings and shared experts."""
    model = MODELS[name]
    share = model.num_moe_layers * model.num_experts * model.expert_weights / billions / 1e9
    assert 0.9 < share < 1.0


def test_figures_have_sources() -> None:
    for gpu in GPUS.values():
        assert any("https://" in source for source in gpu.sources), gpu.name
        rates = [gpu.bf16, gpu.fp8, gpu.int8, gpu.fp4]
        assert all(rate is None or rate >= gpu.bf16 for rate in rates)
    assert all(model.source.startswith("https://") for model in MODELS.values())


def test_bytes_of_experts_are_those_of_the_models() -> None:
    assert EXPERT_BYTES["DeepSeek-V3"] == 7168 * 2048 * 3
    assert EXPERT_BYTES["gpt-oss-20b"] == 2880 * 2880 * 3 * 17 // 32
    for name, model in MODELS.items():
        assert expert_bytes_of(name) == model.expert_bytes
    assert expert_bytes_of("a model that nobody knows") is None


def test_page_has_the_presets_and_assumptions() -> None:
    none = "\N{EN DASH}"
    for gpu in GPUS.values():
        rates = [gpu.bf16, gpu.fp8, gpu.int8, gpu.fp4]
        cells = [none if rate is None else f"{rate / 1e12:g}" for rate in rates]
        cells.append(f"{gpu.memory_bandwidth / 1e12:g}")
        cells += [f"{each / 1e9:g}" for each in (gpu.link_bandwidth, gpu.network_bandwidth)]
        assert f"| {gpu.name} | {' | '.join(cells)} |" in PAGE
    for model in MODELS.values():
        figures = [model.num_layers, model.num_moe_layers, model.num_experts, model.top_k]
        figures += [model.hidden_size, model.expert_size]
        cells = [*map(str, figures), f"{model.bytes_per_weight:g}"]
        cells.append(f"{model.expert_bytes / 1e6:.1f} MB")
        cells.append(none if model.kv_bytes is None else f"{model.kv_bytes / 1e3:.1f} kB")
        assert f"| {model.name} | {' | '.join(cells)} |" in PAGE
    for name, default in vars(Assumptions()).items():
        said = {False: "no", None: "above 256 tokens a GPU", 25e-6: "25 µs"}
        assert f"| `{name}` | {said.get(default, default)} |" in PAGE


def test_page_says_how_far_off_the_estimates_are() -> None:
    rows = list(cost.published())
    for source in dict.fromkeys(row.source for row in rows):
        ratios = [row.ratio for row in rows if row.source == source]
        assert f"| {len(ratios)} | {min(ratios):.2f} to {max(ratios):.2f} |" in PAGE
    one_token, _, _, _, many_on_h20 = [row.ratio for row in cost.beyond()][1:]
    assert f"one token it is {1 - one_token:.0%} below".replace("%", " %") in PAGE
    assert f"{many_on_h20 - 1:.0%} too long".replace("%", " %") in PAGE


def test_page_has_the_throughput_of_whole_steps() -> None:
    for service in cost.services():
        assert f"{round(service.estimated, -2):,.0f}" in PAGE
        assert f"{service.published:,}" in PAGE


def test_python_of_the_page_runs() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block, "cost.md", "exec"), names)
    assert names["found"].speedup > 1.0
    assert names["in_int4"].expert_bytes < names["find_model"]("Kimi-K2").expert_bytes
