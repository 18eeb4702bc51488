"""SGLang's server on CPUs: `python whole_sglang.py` and what `sglang.launch_server` takes.

Each process of the server is spawned, and so imports this file before it does anything. SGLang has
its EPLB for GPUs alone, so this fills in what is missing on CPUs, and nothing else:
- packages that its wheel needs and that are builds for GPUs, or for pictures and sound: modules in
  which any name is an empty class;
- `torch.cpu.empty_cache`;
- experts of other ranks: SGLang's experts in torch take every id for one of their own.

Where SGLANG_HELD names a folder, each rank writes there what it holds, at the start and whenever
its map changes, and the seconds of its longest step of EPLB.
"""

import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import torch
from longest import timed
from torch import Tensor
from torch.nn import functional

_NOT_HERE = {
    *("av", "cutlass", "decord", "gguf", "librosa", "sgl_kernel", "soundfile"),
    *("torchaudio", "torchvision"),
}


class _Empty(type):
    """An empty class, in which any name is another one."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Empty(name, (), {"__init__": lambda *_, **__: None})
        setattr(cls, name, made)
        return made


class _Module(types.ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    __getattr__ = _Empty.__getattr__


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules that are not here, for all but transformers, which does without them."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name.partition(".")[0] not in _NOT_HERE:
            return None
        frame = sys._getframe(1)
        while frame.f_back is not None and "importlib" in frame.f_globals["__name__"]:
            frame = frame.f_back
        if frame.f_globals["__name__"].startswith("transformers"):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


def own_experts(_: Any, layer: Any, x: Tensor, topk_output: Any, *__: Any, **___: Any) -> Tensor:
    """What this rank's experts add, of hidden states [tokens, H]."""
    weights, ids, *_ = topk_output
    added = torch.zeros_like(x)
    for slot in range(layer.num_local_experts):
        token, place = torch.nonzero(ids == slot, as_tuple=True)
        gate, up = functional.linear(x[token], layer.w13_weight[slot]).chunk(2, dim=-1)
        of_slot = functional.linear(functional.silu(gate) * up, layer.w2_weight[slot])
        added.index_add_(0, token, of_slot * weights[token, place, None].to(x.dtype))
    return added


def write_held(_: Any, runner: Any, *__: Any, **___: Any) -> None:
    """Write this rank's map and a digest of the weights in each slot, where the map has changed."""
    from sglang.srt.eplb.expert_location import get_global_expert_location_metadata

    phy2log = get_global_expert_location_metadata().physical_to_logical_map_cpu.tolist()
    if phy2log == getattr(runner, "held", None):
        return
    runner.held = phy2log
    digests = []
    for layer in runner.model.routed_experts_weights_of_layer.value.values():
        slots = [
            b"".join(each.numpy().tobytes() for each in slot) for slot in zip(*layer, strict=True)
        ]
        digests.append([hashlib.blake2b(slot, digest_size=8).hexdigest() for slot in slots])
    path = Path(os.environ["SGLANG_HELD"]) / f"{torch.distributed.get_rank()}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps([phy2log, digests]) + "\n")


def time_step(step: Any, *args: Any, **kwargs: Any) -> None:
    """A step of EPLB, whose seconds are written if they are the most."""
    rank = torch.distributed.get_rank()
    timed(os.environ["SGLANG_HELD"], rank, lambda: step(*args, **kwargs))


sys.meta_path.append(_Finder())
if not hasattr(torch.cpu, "empty_cache"):
    torch.cpu.empty_cache = lambda: None  # type: ignore[attr-defined]

from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: E402

_EXPERTS = "sglang.srt.layers.moe.fused_moe_native.moe_forward_native"
_STEP = "sglang.srt.eplb.eplb_manager.EPLBManager.on_forward_pass_end"
_PASS = "sglang.srt.model_executor.model_runner.ModelRunner.forward"
HookRegistry.register(_EXPERTS, own_experts, HookType.AROUND)
if "SGLANG_HELD" in os.environ:
    HookRegistry.register(_PASS, write_held, HookType.AFTER)
    HookRegistry.register(_STEP, time_step, HookType.AROUND)

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
