"""TensorRT-LLM's placement: the YAML of its `MoeLoadBalancerConfig`.

Read off TensorRT-LLM 1.0.0rc4, `llmapi/llm_args.py`, and of the same schema in its main branch:
`num_slots`, `layer_updates_per_iter` (0 is a placement that stays) and `initial_global_assignments`
by the model's number of a layer, slots in the order of ranks. Any other key is refused there, and
a MoE layer that is missing is a KeyError when the model is built.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, MissingExtraError
from eplb.files import write_text
from eplb.formats.placements.layout import Layout, number_of, rows_of
from eplb.formats.safe import reading, unique_keys
from eplb.placement import Placement

_ASSIGNMENTS = "initial_global_assignments"
_CONFIG = "moe_config"
KEYS = {"num_slots", _ASSIGNMENTS, "layer_updates_per_iter"}


def write_assignments(
    placement: Placement, path: Path, moe: NDArray[np.bool_], numbers: Sequence[int]
) -> None:
    """Write the configuration of a placement that stays."""
    lines = [
        f"num_slots: {placement.cluster.num_slots}",
        "layer_updates_per_iter: 0",
        f"{_ASSIGNMENTS}:",
    ]
    lines += [
        f"  {numbers[layer]}: {placement.phy2log[layer].tolist()}"
        for layer in np.flatnonzero(moe).tolist()
    ]
    write_text(path, "\n".join(lines) + "\n")


def read_yaml(path: Path, text: bytes) -> Any:
    """What a YAML file holds: plain values, no tags, each key once, and no numbers of base 60."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "formats", f"reading {path}") from None
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]  # the compiled one, where there is a compiler
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
            """Each key once: yaml itself would keep the last."""
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            unique_keys([(str(key), None) for key in keys])
            return super().construct_mapping(node, deep=deep)

    def number(loader: Any, node: Any) -> Any:
        """Numbers of base 60, which YAML 1.1 has, take time with the square of their length."""
        base60 = ":" in node.value
        return node.value if base60 else base.yaml_constructors[node.tag](loader, node)

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", number)
    with reading("YAML"):
        try:
            return yaml.load(text, Loader=Loader)
        except yaml.MarkedYAMLError as error:
            line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
            raise ValueError(f"{str(error.problem)[:80]}{line}") from None


def read_assignments(content: dict[Any, Any]) -> Layout:
    """The assignments in a balancer's configuration, or in an engine's that holds one."""
    num_gpus = None
    if _CONFIG in content:
        num_gpus = number_of(content, "moe_expert_parallel_size")
        outer = content[_CONFIG]
        inner = outer.get("load_balancer") if isinstance(outer, dict) else None
        if isinstance(inner, str):
            raise FormatError(f"names another file in {_CONFIG}.load_balancer: give that one")
        if not isinstance(inner, dict):
            raise FormatError(f"has no {_CONFIG}.load_balancer")
        content = inner
    others = sorted(str(key)[:40] for key in content if key not in KEYS)
    if others:
        raise FormatError(f"has the key {others[0]!r}: TensorRT-LLM takes {sorted(KEYS)}")
    num_slots = number_of(content, "num_slots")
    if num_slots is None:
        raise FormatError("has no num_slots, which TensorRT-LLM needs")
    updates = content.get("layer_updates_per_iter", 0)
    if type(updates) is not int or updates < 0:
        raise FormatError("layer_updates_per_iter is no number from 0 on")
    given = content.get(_ASSIGNMENTS)
    if not isinstance(given, dict) or not given:
        raise FormatError(f"has no {_ASSIGNMENTS} by layer: the engine lays experts out by itself")
    by_layer: dict[int, Any] = {}
    for key, row in given.items():
        layer = _layer(key)
        if layer in by_layer:
            raise FormatError(f"{_ASSIGNMENTS} has layer {layer} twice")
        by_layer[layer] = row
    layers = sorted(by_layer)
    names = [f"{_ASSIGNMENTS}[{layer}]" for layer in layers]
    rows = rows_of([by_layer[layer] for layer in layers], names)
    if rows.shape[1] != num_slots:
        raise FormatError(f"{names[0]} has {rows.shape[1]} slots, and num_slots is {num_slots}")
    return Layout("tensorrt-llm", rows, names, layers, num_gpus=num_gpus)


def _layer(key: Any) -> int:
    """A layer's number; JSON has it in quotes, which the engine's own parser undoes."""
    if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10:
        return int(key)
    if type(key) is not int or not 0 <= key < 10**9:
        raise FormatError(f"{_ASSIGNMENTS} has {str(key)[:40]!r}, expected layer numbers")
    return key
