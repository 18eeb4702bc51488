"""GPUs by name: how fast they compute, read their memory and reach each other.

Rates are dense peaks as vendors state them, in operations and bytes a second; what of them a
program reaches is an assumption (`eplb.cost.Assumptions`). Bandwidths between GPUs are of one
direction; data sheets add both. For another GPU or network, `dataclasses.replace` a preset or make
a `Gpu`.
"""

from dataclasses import dataclass
from typing import Any, get_args

from eplb.checks import find_named, real_number
from eplb.cost.models import NumberFormat
from eplb.errors import OptionError

__all__ = ["GPUS", "Gpu", "find_gpu"]

_T, _G = 1e12, 1e9

_STANDS_IN: dict[str, tuple[NumberFormat, ...]] = {
    "fp4": ("fp4", "fp8", "int8", "bf16"),
    "fp8": ("fp8", "int8", "bf16"),
    "int8": ("int8", "fp8", "bf16"),
    "bf16": ("bf16",),
}
"""What a GPU computes in where it lacks a format: one as wide, or the next wider."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, as one rank of expert parallelism, and its way to the others.

    Attributes:
        name: of the GPU.
        memory_bandwidth: bytes a second from its own memory.
        link_bandwidth: bytes a second to GPUs of its node, one direction.
        network_bandwidth: bytes a second to other nodes, one direction.
        bf16: dense peak in operations a second, a multiplication and an addition being two.
        fp8: the same; None where it has no such units, as for the others.
        int8: the same.
        fp4: the same.
        sources: where the figures are from, each by name and address.

    Raises:
        OptionError: a rate that is not above 0.
    """

    name: str
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    bf16: float
    fp8: float | None = None
    int8: float | None = None
    fp4: float | None = None
    sources: tuple[str, ...] = ("given",)

    def __post_init__(self) -> None:
        for name in ("memory_bandwidth", "link_bandwidth", "network_bandwidth"):
            real_number(getattr(self, name), name, "bytes a second")
        for name in get_args(NumberFormat):
            if name == "bf16" or getattr(self, name) is not None:
                real_number(getattr(self, name), name, "operations a second")

    def rate(self, number_format: NumberFormat) -> tuple[float, NumberFormat]:
        """Dense peak for a number format, and the format computed in: another where it lacks it.

        Raises:
            OptionError: an unknown number format.
        """
        if number_format not in _STANDS_IN:
            formats = ", ".join(_STANDS_IN)
            raise OptionError(f"number_format is {number_format!r}: give one of {formats}")
        has = [name for name in _STANDS_IN[number_format] if getattr(self, name) is not None]
        rate: float = getattr(self, has[0])
        return rate, has[0]


_H100 = (
    "bf16, fp8, int8, memory, links (900 GB/s both ways): NVIDIA H100 Tensor Core GPU data sheet, "
    "SXM, rates there are with sparsity, twice these: https://www.nvidia.com/en-us/data-center/h100/"
)
_CX7 = (
    "network: one ConnectX-7 of 400 Gb/s a GPU, as in DGX H100, H200 and B200: "
    "https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html"
)
_CX8 = (
    "network: one ConnectX-8 of 800 Gb/s a GPU: "
    "https://www.nvidia.com/en-us/data-center/gb300-nvl72/"
)
_GB300 = (
    "bf16, fp8, fp4, memory, links (1.8 TB/s both ways), dense: Verda, GB300 NVL72: "
    "https://verda.com/blog/gb300-nvl72-architecture"
)
_ASSUMED_400G = "network: one adapter of 400 Gb/s a GPU, assumed: servers differ"
_ASCEND = (
    "all: device profiles of Huawei's simulator msmodeling, tensor_cast/device.py: "
    "https://gitcode.com/Ascend/msmodeling"
)

_SOURCES: dict[str, tuple[str, ...]] = {
    "H100": (_H100, _CX7),
    "H200": (
        "bf16, fp8, int8, memory, links (900 GB/s both ways): NVIDIA H200 Tensor Core GPU data "
        "sheet, SXM, rates there are with sparsity, twice these: "
        "https://www.nvidia.com/en-us/data-center/h200/",
        _CX7,
    ),
    "H800": (
        "links and network: DeepSeek, Insights into DeepSeek-V3, section 4.3: "
        "https://arxiv.org/abs/2505.09343",
        f"the rest as H100: {_H100}",
    ),
    "B200": (
        "bf16, fp8, int8, fp4, memory, links (1.8 TB/s both ways): NVIDIA HGX specifications, HGX "
        "B200, an eighth of the board's dense rates: https://www.nvidia.com/en-us/data-center/hgx/",
        _CX7,
    ),
    "B300": (_GB300, _CX8),
    "GB200": (
        "bf16, fp8, int8, fp4, memory, links (1.8 TB/s both ways): B200 as in GB200, at 1,200 W: "
        "https://glennklockwood.com/garden/processors/B200; others give less, as 4.5 PFLOPS in fp8 "
        "and 7.7 TB/s: https://verda.com/blog/gb300-nvl72-architecture",
        "network: one ConnectX-7 a GPU, as in MLPerf's system: "
        "https://github.com/mlcommons/inference_results_v6.1",
    ),
    "GB300": (_GB300, _CX8),
    "H20": (
        "bf16, int8, memory, links (900 GB/s both ways); fp8 as int8: "
        "https://willitrunai.com/es/gpus/h20-96gb",
        _ASSUMED_400G,
    ),
    "A100": (
        "bf16, int8, memory, links (600 GB/s both ways): A100 80 GB SXM, after NVIDIA's data "
        "sheet: https://glennklockwood.com/garden/processors/A100",
        "network: one adapter of 200 Gb/s a GPU, as in DGX A100: "
        "https://geektopia.es/es/technology/2020/05/14/noticias/nvidia-anuncia-el-servidor-"
        "dgx-a100-ocho-tesla-a100-desde-200-000-dolares.html",
    ),
    "MI300X": (
        "bf16, fp8, int8, memory, links (7 of 128 GB/s both ways): AMD Instinct MI300X data "
        "sheet: https://www.amd.com/content/dam/amd/en/documents/"
        "instinct-tech-docs/data-sheets/amd-instinct-mi300x-data-sheet.pdf",
        _ASSUMED_400G,
    ),
    "MI325X": (
        "memory: AMD Instinct MI325X: "
        "https://www.amd.com/en/products/accelerators/instinct/mi300/mi325x.html",
        "the rest as MI300X, of the same CDNA 3: "
        "https://docs.vultr.com/inference-cookbook/rocm/getting-started/hardware-requirements",
    ),
    "MI355X": (
        "fp8: 256 compute units, 8,192 operations a clock each: https://news.lavx.hu/article/"
        "isscc-2026-amd-s-mi355x-doubles-throughput-with-fewer-compute-units-and-"
        "challenges-nvidia-s-gb200; at 2.4 GHz: https://wccftech.com/amd-instinct-mi350-"
        "gpuai-hardware-powerhouse-3nm-3d-chiplet-cdna-4-185-billion-transistors-1400w-tbp-"
        "over-4000b-llm-support//amp/",
        "fp4 (10 PFLOPS), memory: https://www.theregister.com/2025/06/12/amd_mi355x/; bf16 half of "
        "fp8, int8 as fp8",
        "links: 7 of 153.6 GB/s both ways: "
        "https://humeconsulting.co/amd-mi355x-strong-node-level-inference-but-not-yet-rack-scale",
        _ASSUMED_400G,
    ),
    "Ascend 910B": (
        _ASCEND,
        "profile ATLAS_800_A2_376T_64G; others of this name are slower",
    ),
    "Ascend 910C die": (
        _ASCEND,
        "profile ATLAS_800_A3_752T_128G_DIE, one of two dies; nodes of a CloudMatrix 384 are "
        "joined by the same bus: https://arxiv.org/abs/2506.12708",
    ),
}

_ROWS: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = (
    # Memory in TB/s, links and network in GB/s; then bf16, fp8, int8 and fp4 in TFLOPS.
    ("H100", (3.35, 450, 50), (989, 1979, 1979, None)),
    ("H200", (4.8, 450, 50), (989, 1979, 1979, None)),
    # An H100 with fewer links: the machine of DeepSeek's published times.
    ("H800", (3.35, 200, 50), (989, 1979, 1979, None)),
    ("B200", (8.0, 900, 50), (2250, 4500, 4500, 9000)),
    # INT8 units are few, so whole numbers are taken to be computed in FP8.
    ("B300", (7.7, 900, 100), (2250, 4500, None, 14000)),
    # 72 of them are joined by one NVLink: a rack is one node.
    ("GB200", (8.0, 900, 50), (2500, 5000, 5000, 10000)),
    ("GB300", (8.0, 900, 100), (2500, 5000, None, 15000)),
    ("H20", (4.0, 450, 50), (148, 296, 296, None)),
    ("A100", (2.039, 300, 25), (312, None, 624, None)),
    ("MI300X", (5.3, 448, 50), (1307.4, 2614.9, 2614.9, None)),
    ("MI325X", (6.0, 448, 50), (1307.4, 2614.9, 2614.9, None)),
    ("MI355X", (8.0, 537.6, 50), (2516.6, 5033.2, 5033.2, 10066.3)),
    ("Ascend 910B", (1.6, 196, 25), (353.9, None, 752, None)),
    # Engines see each of its two dies as a device.
    ("Ascend 910C die", (1.6, 196, 196), (353.9, None, 752, None)),
)


def _gpu(name: str, bandwidths: Any, rates: Any) -> Gpu:
    memory, link, network = bandwidths
    bf16, fp8, int8, fp4 = (rate and rate * _T for rate in rates)
    figures = memory * _T, link * _G, network * _G, bf16, fp8, int8, fp4
    return Gpu(name, *figures, sources=_SOURCES[name])


GPUS: dict[str, Gpu] = {name: _gpu(name, *figures) for name, *figures in _ROWS}
"""GPUs by name."""

_ALSO = {
    "H100 SXM": "H100",
    "H200 SXM": "H200",
    "HGX B200": "B200",
    "HGX B300": "B300",
    "GB200 NVL72": "GB200",
    "GB300 NVL72": "GB300",
    "A100 SXM": "A100",
    "Ascend 910B2": "Ascend 910B",
    "Ascend 910C": "Ascend 910C die",
    "910B": "Ascend 910B",
    "910C": "Ascend 910C die",
}


_INSTEAD = (
    "an eplb.cost.Gpu with its memory_bandwidth, link_bandwidth, network_bandwidth "
    "and bf16, and fp8, int8 and fp4 where it has them"
)


def find_gpu(name: str, instead: str = _INSTEAD) -> Gpu:
    """The figures of a GPU by its name; case, spaces and the vendor do not matter.

    Args:
        name: such as "H100".
        instead: what the message of an error tells a user to give for a GPU that is not known.

    Raises:
        OptionError: the name is not known. The message has the nearest name and all known ones.
    """
    return find_named(name, GPUS, "GPU", instead, _ALSO)
