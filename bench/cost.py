"""The roofline of `eplb.cost` beside published times of expert layers, as ratios.

    python bench/cost.py --check

One set of assumptions, the defaults, stands for all of them; only whether a fused kernel lets
tokens travel while experts compute is told, as it is told by the source. Nothing is run here.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from options import OneLineParser
from rich.table import Table
from tables import console_for_tables

from eplb.cluster import Cluster
from eplb.cost import estimate
from eplb.cost.gpus import GPUS, Gpu
from eplb.cost.models import MODELS, Model
from eplb.cost.roofline import DEFAULTS, Assumptions, LayerTime, layer_time
from eplb.placement import Placement

__all__ = ["FAR", "Published", "Service", "beyond", "published", "services"]

FAR = 0.15
"""An estimate is met where it lies within this of the published time."""

GROUPED = (
    "DeepGEMM, README.md of the first releases (2025; in the file's history), grouped GEMMs for "
    "MoE models, contiguous and masked: https://github.com/deepseek-ai/DeepGEMM"
)
DEEPEP = (
    "DeepEP, docs/legacy.md, low-latency kernels, latencies of dispatch and of combine, added: "
    "https://github.com/deepseek-ai/DeepEP/blob/main/docs/legacy.md"
)
MEGA = (
    "DeepGEMM pull request 316, Mega MoE on 8 GPUs: "
    "https://github.com/deepseek-ai/DeepGEMM/pull/316"
)
VLLM = (
    "vLLM pull request 49636, kernel times on 8 B200, column dg, taken for DeepGEMM's Mega MoE: "
    "https://github.com/vllm-project/vllm/pull/49636"
)
SGL = (
    "SGLang's DeepGEMM, pull request 36, fused kernel on 8 H20: "
    "https://github.com/sgl-project/DeepGEMM/pull/36"
)
OVERVIEW = (
    "DeepSeek-V3/R1 inference system overview, averages of a day; of prefill, the 56.3 % that the "
    "cache answers are taken off: https://github.com/deepseek-ai/open-infra-index/blob/main/"
    "202502OpenSourceWeek/day_6_one_more_thing_deepseekV3R1_inference_system_overview.md"
)

_MXFP4 = 17 / 32
_V3 = MODELS["DeepSeek-V3"]
_V3_MXFP4 = replace(_V3, bytes_per_weight=_MXFP4)
# Sizes as the sources of the times give them; layers do not matter here.
_V4_FLASH = replace(_V3_MXFP4, name="DeepSeek-V4-Flash", num_experts=256, top_k=6, hidden_size=4096)
_V4_PRO = replace(_V3_MXFP4, name="DeepSeek-V4-Pro", num_experts=384, top_k=6, expert_size=3072)
_H20 = Gpu("H20", 4.0e12, 450e9, 50e9, bf16=148e12, fp8=296e12)
_FUSED = replace(DEFAULTS, overlapped=True)


@dataclass(frozen=True)
class Published:
    """A published time, and the estimate of the same.

    Attributes:
        what: was timed.
        seconds: published.
        estimated: seconds, by the roofline.
        source: of the time, by name and address.
        set_factors: whether the assumptions' figures were chosen with this table in sight.
    """

    what: str
    seconds: float
    estimated: float
    source: str
    set_factors: bool = False

    @property
    def ratio(self) -> float:
        """Estimated over published."""
        return self.estimated / self.seconds


def published() -> Iterator[Published]:
    """Times that the roofline is held to."""
    # Groups, tokens of each, then 1e12 operations a second of gate and up, and of down.
    for groups, each, up, down in (
        (4, 8192, 1297, 1099),
        (8, 4096, 1288, 1093),
        (1, 1024, 1233, 925),
        (2, 512, 1040, 916),
        (4, 256, 932, 815),
    ):
        operations = 2.0 * groups * each * _V3.expert_weights
        seconds = operations * (2 / 3 / up + 1 / 3 / down) / 1e12
        found = _layer("H800", _V3, groups * each, groups, num_gpus=1)
        what = f"H800, DeepSeek-V3, products of {groups} experts with {each} tokens each"
        yield Published(what, seconds, float(found.experts), GROUPED, set_factors=True)
    for num_gpus, dispatch, combine in (
        (8, 77, 114),
        (16, 118, 195),
        (32, 155, 273),
        (64, 173, 314),
        (128, 192, 369),
        (256, 194, 360),
    ):
        found = _layer("H800", _V3, 128 * _V3.top_k, 0, num_gpus, num_gpus // 8)
        what = f"{num_gpus} H800, DeepSeek-V3, dispatch and combine of 128 tokens a GPU"
        seconds = (dispatch + combine) / 1e6
        yield Published(what, seconds, float(found.exchange), DEEPEP, set_factors=True)
    for source, model, times in (
        (MEGA, _V4_FLASH, {512: 146.5, 8192: 1283.1, 32768: 4855.5}),
        (MEGA, _V4_PRO, {512: 369.6, 8192: 2818.5, 32768: 10655.2}),
        (VLLM, _V4_PRO, {512: 376.9, 1024: 492.1, 2048: 899.1, 4096: 1591.8, 8192: 3144.2}),
        (VLLM, _V3_MXFP4, {512: 282.6, 1024: 465.0, 2048: 809.4}),
    ):
        for tokens, microseconds in times.items():
            yield _fused("B200", model, tokens, microseconds, source)


def beyond() -> Iterator[Published]:
    """Times that the roofline misses: where it is not to be trusted."""
    yield _fused("B200", _V4_FLASH, 1, 56.5, MEGA)
    yield _fused("B200", _V4_PRO, 1, 108.1, MEGA)
    for tokens, microseconds in {8: 170.8, 64: 184.4}.items():
        yield _fused("B200", _V3_MXFP4, tokens, microseconds, VLLM)
    in_fp8 = replace(_V4_FLASH, bytes_per_weight=1.0)
    for tokens, microseconds in {512: 874.0, 8192: 9812.0}.items():
        yield _fused(_H20, in_fp8, tokens, microseconds, SGL)


@dataclass(frozen=True)
class Service:
    """Tokens a second of a node: published, of unknown batches, and estimated for the batch given.

    Attributes:
        what: it is.
        published: tokens a second of a node.
        estimated: the same.
    """

    what: str
    published: int
    estimated: float


def services() -> Iterator[Service]:
    """Whole steps of DeepSeek's service with even loads: an order, no check."""
    for what, nodes, slots, tokens, said in (
        ("prefill on 32 H800, 8,192 tokens a GPU", 4, 9, 8192, 32_200),
        ("decoding on 144 H800, 128 tokens a GPU", 18, 2, 128, 14_800),
    ):
        cluster = Cluster(8 * nodes, nodes, slots)
        placement = Placement.contiguous(1, _V3.num_experts, cluster)
        for sure in (DEFAULTS, _FUSED):
            found = estimate(
                placement,
                placement.logcnt,
                "H800",
                _V3,
                tokens_per_gpu=tokens,
                assumptions=sure,
            )
            named = f"{what}, overlapped" if sure.overlapped else what
            yield Service(named, said, found.tokens_per_second / nodes)


def _fused(
    gpu: str | Gpu, model: Model, tokens: int, microseconds: float, source: str
) -> Published:
    """Dispatch, experts and combine in one kernel on 8 GPUs of a node."""
    each = 8.0 * tokens * model.top_k / model.num_experts
    active = model.num_experts / 8 * -np.expm1(-each)
    found = _layer(gpu, model, tokens * model.top_k, active, 8, assumptions=_FUSED)
    name = gpu if isinstance(gpu, str) else gpu.name
    what = f"8 {name}, {model.name}, expert layer, {tokens} tokens a GPU"
    return Published(what, microseconds / 1e6, float(found.seconds), source)


def _layer(
    gpu: str | Gpu,
    model: Model,
    tokens: float,
    active: float,
    num_gpus: int,
    num_nodes: int = 1,
    assumptions: Assumptions = DEFAULTS,
) -> LayerTime:
    """Every GPU has the same to do: the sources route evenly."""
    return layer_time(
        np.array([float(tokens)]),
        np.array([float(active)]),
        GPUS[gpu] if isinstance(gpu, str) else gpu,
        model,
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        assumptions=assumptions,
    )


def _table(rows: list[Published], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for heading in ("published us", "estimate us", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("factors")
    for row in rows:
        table.add_row(
            row.what,
            f"{row.seconds * 1e6:,.1f}",
            f"{row.estimated * 1e6:,.1f}",
            f"{row.ratio:.2f}",
            "set by" if row.set_factors else "checked",
        )
    return table


def main() -> int:
    """Print estimate beside published."""
    parser = OneLineParser(prog="bench/cost.py", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--check", action="store_true", help=f"exit with 1 if one is further off than {FAR:.0%}"
    )
    options = parser.parse_args()
    rows, misses = list(published()), list(beyond())
    console = console_for_tables()
    console.print(_table(rows, "estimates beside published times"))
    console.print(_table(misses, "known misses: a handful of tokens, and a GPU short of units"))
    steps = Table(
        "tokens/s of a node", title="DeepSeek's service, even loads", title_justify="left"
    )
    for heading in ("published", "estimate"):
        steps.add_column(heading, justify="right")
    for service in services():
        steps.add_row(service.what, f"{service.published:,}", f"{service.estimated:,.0f}")
    console.print(steps)
    for source in dict.fromkeys((*(row.source for row in (*rows, *misses)), OVERVIEW)):
        console.print(source, markup=False)
    far = [row for row in rows if abs(row.ratio - 1.0) > FAR]
    print(f"{len(rows) - len(far)} of {len(rows)} within {FAR:.0%}")
    return 1 if options.check and far else 0


if __name__ == "__main__":
    sys.exit(main())
