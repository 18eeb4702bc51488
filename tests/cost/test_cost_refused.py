"""What estimates and their figures refuse, in one line that says what would do."""

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import eplb
from eplb.cost import Assumptions, estimate, layer_time, seconds_saved
from eplb.cost.gpus import GPUS
from eplb.cost.models import Model

TINY = Model("tiny", 3, 2, 8, 2, 64, 32, 1.0, "fp8", 1.0)
H200: Any = GPUS["H200"]
CLUSTER = eplb.Cluster(4, 2, 3)
SOUND = {"loads": np.ones((2, 8)), "gpu": H200, "model": TINY, "tokens_per_gpu": 8}


def with_(of: Any, **changes: Any) -> Any:
    """Figures with what no type checker would let through."""
    return replace(of, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "H300"}, r"GPU 'H300' is not known: the nearest is 'H\d00'; known are H100, H200"),
        ({"gpu": "abacus"}, "is not known: known are H100"),
        ({"model": "DeepSeek-V5"}, "the nearest is 'DeepSeek-V3'; .*num_moe_layers"),
        ({"model": "gpt-oss-20b"}, "placement has 8 experts, gpt-oss-20b has 32: give"),
        ({"tokens_per_gpu": 0}, "tokens_per_gpu is 0: give a number of tokens, above 0"),
        ({"tokens_per_gpu": math.nan}, "tokens_per_gpu is nan: give"),
        ({"tokens_per_gpu": "many"}, "tokens_per_gpu is 'many': give"),
        ({"loads": np.zeros((2, 8))}, "loads are all 0: there is no time to estimate"),
        ({"loads": np.ones(8)}, r"loads have shape \(8,\): give layers and experts"),
        ({"loads": np.ones((3, 8))}, "the placement has 2 layers of 8 experts"),
        ({"loads": -np.ones((2, 8))}, r"loads\[0, 0\] is -1.0"),
    ],
)
def test_estimates_refuse(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = SOUND | changes
    placement = eplb.Placement.contiguous(2, 8, CLUSTER)
    with pytest.raises(eplb.EplbError, match=message) as caught:
        estimate(placement, given.pop("loads"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: with_(H200, memory_bandwidth=-1.0),
            "memory_bandwidth is -1.0: give a number of",
        ),
        (lambda: with_(H200, bf16=None), "bf16 is None: give a number of operations a second"),
        (lambda: with_(H200, fp8=math.inf), "fp8 is inf: give"),
        (lambda: H200.rate("fp64"), "number_format is 'fp64': give one of fp4, fp8, int8, bf16"),
        (lambda: with_(TINY, top_k=9), "top_k is 9: a layer has 8 experts"),
        (lambda: with_(TINY, num_moe_layers=4), "num_moe_layers is 4: the model has 3 layers"),
        (lambda: with_(TINY, hidden_size=0), "hidden_size is 0: give 1 or more"),
        (lambda: with_(TINY, expert_size=True), "expert_size is True: give a whole number"),
        (
            lambda: with_(TINY, bytes_per_weight=0),
            "bytes_per_weight is 0: give a number of bytes",
        ),
        (lambda: with_(TINY, number_format="int3"), "number_format is 'int3': give one of bf16"),
        (lambda: Assumptions(compute_efficiency=1.5), "compute_efficiency is 1.5: give a share"),
        (lambda: Assumptions(expert_share=0), "expert_share is 0: give a share, above 0"),
        (lambda: Assumptions(exchange_latency=-1e-6), "exchange_latency is -1e-06: give a number"),
        (
            lambda: layer_time(np.ones(1), np.ones(1), H200, TINY, num_gpus=6, num_nodes=4),
            "6 GPUs do not divide over 4 nodes",
        ),
        (
            lambda: seconds_saved([2.0], [3.0], [2.5], CLUSTER, H200, TINY, tokens_per_gpu=1),
            "peak_after has a load above the total, or another shape",
        ),
    ],
)
def test_figures_refuse(make: Any, message: str) -> None:
    with pytest.raises(eplb.EplbError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)
