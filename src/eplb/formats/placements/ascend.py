"""vllm-ascend's placement: `expert_map.json`.

Read off vllm-ascend (`eplb/core/eplb_utils.py`, August 2026): its reader takes MoE layers by their
position in `layer_list` and devices by theirs in `device_list`, and looks at no `layer_id` or
`device_id`. Its maps have one slot for an expert on a device, so a second copy there would shift
all slots behind it.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import counted
from eplb.errors import FormatError, PlacementError
from eplb.files import write_text
from eplb.formats.placements.layout import Layout, number_of, rows_of
from eplb.placement import Placement

KEYS = {"moe_layer_count", "layer_list"}


def write_expert_map(
    placement: Placement, path: Path, moe: NDArray[np.bool_], _numbers: Sequence[int]
) -> None:
    """Write the MoE layers, a device a line."""
    by_gpu = placement.phy2log.reshape(placement.num_layers, placement.cluster.num_gpus, -1)[moe]
    _check_single(np.flatnonzero(moe), by_gpu)
    layers = []
    for position, gpus in enumerate(by_gpu.tolist()):
        devices = ",\n".join(
            json.dumps({"device_id": gpu, "device_expert": experts})
            for gpu, experts in enumerate(gpus)
        )
        layers.append(
            f'{{"layer_id": {position}, "device_count": {len(gpus)}, "device_list": [\n{devices}]}}'
        )
    text = ",\n".join(layers)
    write_text(path, f'{{"moe_layer_count": {len(layers)}, "layer_list": [\n{text}]}}\n')


def read_expert_map(content: dict[str, Any]) -> Layout:
    """The MoE layers in their order, with numbers where `layer_id` has more than their position."""
    layers = content.get("layer_list")
    if not isinstance(layers, list) or not layers:
        raise FormatError("has no layer_list with layers in it")
    count = number_of(content, "moe_layer_count")
    if count != len(layers):
        raise FormatError(
            f"moe_layer_count is {count}, and layer_list has {counted(len(layers), 'layer')}"
        )
    num_gpus = 0
    rows: list[Any] = []
    names: list[str] = []
    for number, layer in enumerate(layers):
        place = f"layer_list[{number}]"
        devices = layer.get("device_list") if isinstance(layer, dict) else None
        if not isinstance(devices, list) or not devices:
            raise FormatError(f"{place} has no device_list with devices in it")
        told = number_of(layer, "device_count")
        if told is not None and told != len(devices):
            raise FormatError(f"{place} has device_count {told}, and {len(devices)} devices")
        num_gpus = num_gpus or len(devices)
        if len(devices) != num_gpus:
            raise FormatError(f"{place} has {len(devices)} devices, layer_list[0] has {num_gpus}")
        for device, entry in enumerate(devices):
            rows.append(entry.get("device_expert") if isinstance(entry, dict) else None)
            names.append(f"{place}.device_list[{device}].device_expert")
    by_device = rows_of(rows, names)
    return Layout(
        "ascend",
        by_device.reshape(len(layers), -1),
        [f"layer_list[{number}]" for number in range(len(layers))],
        _numbers_of(layers),
        num_gpus=num_gpus,
    )


def _numbers_of(layers: list[dict[str, Any]]) -> list[int]:
    """Numbers in the model that layers say they have; none where these are positions."""
    ids = [layer.get("layer_id") for layer in layers]
    numbers = [each for each in ids if type(each) is int and each >= 0]
    rising = len(numbers) == len(ids) and all(low < high for low, high in pairwise(numbers))
    return numbers if rising and numbers[-1] >= len(ids) else []


def _check_single(layers: NDArray[np.intp], by_gpu: NDArray[np.int64]) -> None:
    held = np.sort(by_gpu, axis=2)
    twice = np.argwhere(held[:, :, 1:] == held[:, :, :-1])
    if twice.size:
        layer, gpu, slot = twice[0]
        raise PlacementError(
            f"layer {layers[layer]} has expert {held[layer, gpu, slot]} twice on GPU {gpu}: "
            "vllm-ascend holds an expert once on a device; plan with fewer slots"
        )
