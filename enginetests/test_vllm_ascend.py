"""vllm-ascend's own code, from its wheel: its table of dispatch, and its reader of placements.

The file that has them is run alone, with stand-ins for what it imports from vLLM and does not use
here: the rest of the package needs an NPU.
"""

import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from recorded import DEEPSEEK_V3, load_recorded

import eplb
from eplb.dispatching.rules import TABLES

FILE = Path(
    os.environ.get("ENGINES", ".venv/engines"), "vllm-ascend/vllm_ascend/eplb/core/eplb_utils.py"
)
LAYER = "vllm.model_executor.layers.fused_moe.layer"


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The engine's module."""
    logger, layer = ModuleType("vllm.logger"), ModuleType(LAYER)
    logger.logger = logging.getLogger("vllm_ascend")  # type: ignore[attr-defined]
    layer.determine_expert_map = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.logger", logger)
    monkeypatch.setitem(sys.modules, LAYER, layer)
    spec = importlib.util.spec_from_file_location("ascend_eplb_utils", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def where(row: Any, num_experts: int, num_gpus: int) -> torch.Tensor:
    """The engine's map [ranks, E]: the place of an expert among a rank's slots, -1 for none."""
    found = torch.full((num_gpus, num_experts), -1, dtype=torch.int32)
    for gpu, slots in enumerate(np.reshape(row, (num_gpus, -1))):
        for place, expert in enumerate(slots):
            found[gpu, expert] = place
    return found


@pytest.mark.parametrize(("slots", "gpus"), [(288, 32), (320, 64), (288, 144)])
def test_rule_of_dispatch_is_the_engines_own(
    theirs: Any, traces: Path, slots: int, gpus: int
) -> None:
    """Slot for slot, from ranks all over."""
    loads = load_recorded(traces, DEEPSEEK_V3[0])[::29]
    placement = eplb.plan(loads, eplb.Cluster(gpus, 1, slots // gpus)).placement
    table = TABLES["ascend"](placement.log2phy, placement.cluster)
    for layer, row in enumerate(placement.phy2log):
        experts = where(row, 256, gpus)
        for rank in (0, 1, gpus // 2):
            made = theirs.generate_log2phy_map(experts, rank)
            assert made.tolist() == table[layer, rank].tolist()


def test_it_reads_our_file(theirs: Any, traces: Path, tmp_path: Path) -> None:
    loads = load_recorded(traces, DEEPSEEK_V3[0])
    loads = loads[loads.any(axis=1)]
    placement = eplb.plan(loads, eplb.Cluster(32, 4, 9)).placement
    path = tmp_path / "expert_map.json"
    eplb.save_placement(placement, path, to="ascend")
    for layer, row in enumerate(placement.phy2log):
        found, slots = theirs.expert_file_to_tensor(path, layer)
        assert slots == 288
        assert found.reshape(-1).tolist() == row.tolist()
