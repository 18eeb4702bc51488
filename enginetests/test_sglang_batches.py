"""EPLB_DISPATCH=batch in SGLang's own step from experts to slots, its metadata and its registry.

Stand-ins are those of test_sglang.py.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from sglang.srt.environ import envs
from sglang.srt.eplb import eplb_algorithms, expert_location, expert_location_dispatch
from sglang.srt.eplb.expert_location_dispatch import ExpertLocationDispatchInfo
from sglang.srt.model_executor import forward_context
from sglang.srt.plugins import hook_registry
from test_sglang import EXPERTS, GPUS, SLOTS, Locate, locate, start, steps

import eplb
from eplb.engines import sglang_batches
from eplb.engines.sglang import register
from eplb.torch import BatchDispatch

__all__ = ["locate"]

LAYERS = 8
TOKENS, K, PADS = 96, 8, 16
PADS_KNOWN = hasattr(forward_context.ForwardContext, "moe_num_token_non_padded")
"""From 0.5.23 on."""
SWITCH = next(name for name in sglang_batches._PAST_IT if hasattr(envs, name))
MANAGER = "sglang.srt.eplb.eplb_manager"


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch, switched_on: None) -> Iterator[Callable[[], None]]:
    """Registers the plug-in and makes SGLang's manager, as SGLang does."""
    theirs = {
        (module, name): getattr(module, name)
        for module, name in (
            (eplb_algorithms, "rebalance_experts"),
            (expert_location_dispatch, "topk_ids_logical_to_physical"),
            (expert_location.ExpertLocationMetadata, "update"),
        )
    }
    monkeypatch.setenv("EPLB_DISPATCH", "batch")

    def begun() -> None:
        manager = ModuleType(MANAGER)
        manager.EPLBManager = type("EPLBManager", (), {"__init__": lambda _: None})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, MANAGER, manager)
        register()
        hook_registry.HookRegistry.apply_hooks()
        manager.EPLBManager()

    with patch("eplb.engines.sglang.compile_kernels"):
        yield begun
    hook_registry.HookRegistry.reset()
    sglang_batches._started.clear()
    for (module, name), function in theirs.items():
        setattr(module, name, function)


def serve(locate: Locate, algorithm: str = "dynamic", backend: str = "none") -> Any:
    """The metadata that a server starts with, set as SGLang's own."""
    moe = {"ep_dispatch_algorithm": algorithm, "moe_a2a_backend": backend}
    running = locate(
        expert_location.ExpertLocationMetadata.init_by_mapping, start(), moe_ep_rank=3, **moe
    )
    expert_location.set_global_expert_location_metadata(running)
    execution = SimpleNamespace(moe=SimpleNamespace(**moe, elastic_ep_backend=None))
    for module in (expert_location_dispatch, sys.modules["sglang.srt.runtime_context"]):
        vars(module)["get_exec"] = lambda: execution
    return running


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `serve` sets is set back; and a model of few layers."""
    monkeypatch.setattr("test_sglang.LAYERS", LAYERS)
    for module in (expert_location_dispatch, sys.modules["sglang.srt.runtime_context"]):
        monkeypatch.setattr(module, "get_exec", vars(module)["get_exec"])


def batch(seed: int) -> torch.Tensor:
    """Experts of tokens, of which the last rows pad, and are all of one expert."""
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0.0, 1.0, EXPERTS)
    rows = [rng.choice(EXPERTS, K, replace=False, p=share / share.sum()) for _ in range(TOKENS)]
    ids = torch.from_numpy(np.stack(rows)).to(torch.int32)
    ids[-PADS:] = 7
    return ids


@pytest.fixture
def padded() -> Iterator[None]:
    """A forward pass of a batch of which SGLang knows how many rows are real."""
    real = torch.tensor(TOKENS - PADS)
    context = forward_context.ForwardContext(None, *([lambda: real] if PADS_KNOWN else []))
    before = forward_context.set_forward_context(context)
    yield
    forward_context.set_forward_context(before)


def to_slots(ids: torch.Tensor, layer: int) -> torch.Tensor:
    info = ExpertLocationDispatchInfo.init_new(layer)
    slots: torch.Tensor = expert_location_dispatch.topk_ids_logical_to_physical(ids, info)
    return slots


def check(running: Any, ids: torch.Tensor, slots: torch.Tensor, layer: int) -> None:
    """Every token goes to its experts, in the way of a dispatcher made for what runs now."""
    phy2log = running.physical_to_logical_map_cpu
    assert slots.dtype == ids.dtype
    assert torch.equal(phy2log[layer][slots.long()], ids.long())
    made = eplb.Placement(phy2log, EXPERTS, eplb.Cluster(GPUS, 1, SLOTS // GPUS))
    expected = BatchDispatch(made, layer, lasting=True)(ids[:-PADS] if PADS_KNOWN else ids)
    assert torch.equal(slots[:-PADS], expected[: TOKENS - PADS])


@pytest.mark.parametrize(("algorithm", "backend"), [("dynamic", "none"), ("static", "deepep")])
def test_batches_go_to_their_experts_before_and_after_a_rebalance(
    algorithm: str,
    backend: str,
    begin: Callable[[], None],
    padded: None,
    locate: Locate,
    traces: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    running = serve(locate, algorithm, backend)
    begin()
    assert caplog.text.count("each batch is split over copies by its own tokens") == 1
    ids = batch(0)
    own = expert_location_dispatch.topk_ids_logical_to_physical.__wrapped__
    check(running, ids, to_slots(ids, 5), 5)
    for layers in ([5, 6], list(range(LAYERS))):
        new = locate(
            expert_location.ExpertLocationMetadata.init_by_eplb, steps(traces)[:, -LAYERS:]
        )
        before = running.physical_to_logical_map_cpu.clone()
        running.update(new, layers)
        assert not torch.equal(running.physical_to_logical_map_cpu[5], before[5]) or layers[0] == 0
        for layer in (5, 2):
            check(running, ids, to_slots(ids, layer), layer)
    # The busiest GPU has less to do than by SGLang's own choice.
    info = ExpertLocationDispatchInfo.init_new(2)
    ours, theirs = (
        torch.bincount(
            each[: -PADS if PADS_KNOWN else None].flatten().long() // (SLOTS // GPUS),
            minlength=GPUS,
        ).max()
        for each in (to_slots(ids, 2), own(ids, info))
    )
    assert ours < theirs


def test_compiled_code_goes_by_the_placement_that_runs(
    begin: Callable[[], None], padded: None, locate: Locate, traces: Path
) -> None:
    running = serve(locate)
    begin()
    ids = batch(1)

    def masked(ids: torch.Tensor, info: Any) -> torch.Tensor:
        """As SGLang's `_biased_grouped_topk_postprocess`, which it compiles."""
        slots: torch.Tensor = expert_location_dispatch.topk_ids_logical_to_physical(ids, info)
        slots[-PADS:, :] = -1
        return slots

    compiled = torch.compile(masked, dynamic=True, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for layer in (4, 7):
            slots = compiled(ids, ExpertLocationDispatchInfo.init_new(layer))
            assert torch.equal(slots[:-PADS], to_slots(ids, layer)[:-PADS])
            assert (slots[-PADS:] == -1).all()
        new = locate(
            expert_location.ExpertLocationMetadata.init_by_eplb, steps(traces)[:, -LAYERS:]
        )
        running.update(new, list(range(LAYERS)))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("switch", f"with {SWITCH}, {sglang_batches._PAST_IT[SWITCH]} takes experts to slots by"),
        ("arguments", "topk_ids_logical_to_physical takes topk_ids, layer; known is"),
        ("elastic", "does not go with elastic expert parallelism"),
        ("trial", "none is left"),
        ("batch", "experts are numbered 0 to 255"),
    ],
)
def test_where_it_cannot_the_engine_chooses(
    what: str,
    said: str,
    begin: Callable[[], None],
    locate: Locate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    serve(locate)
    name = "topk_ids_logical_to_physical"
    ids, own = batch(2), getattr(expert_location_dispatch, name)
    if what == "elastic":
        expert_location_dispatch.get_exec().moe.elastic_ep_backend = "nixl"
    if what == "arguments":
        monkeypatch.setattr(expert_location_dispatch, name, lambda topk_ids, layer: topk_ids)
    if what == "trial":
        monkeypatch.setattr("eplb.engines.batches._tried", none_is_left)
    with getattr(envs, SWITCH).override(what == "switch"):
        begin()
    if what == "arguments":
        monkeypatch.setattr(expert_location_dispatch, name, own)
    if what == "batch":
        monkeypatch.setattr("eplb.torch.batch.BatchDispatch._check", refuse)
    info = ExpertLocationDispatchInfo.init_new(3)
    assert torch.equal(to_slots(ids, 3), own(ids, info))
    assert said in caplog.text
    assert "SGLang's own choice of copies" in caplog.text
    assert ("by its own tokens" in caplog.text) == (what == "batch")


def none_is_left(_: Any) -> None:
    """A trial of a dispatcher on a rank that lacks memory."""
    raise MemoryError("none is left")


def refuse(*_: Any) -> None:
    """What a dispatcher says of ids that are no experts."""
    raise eplb.EplbError("topk_ids has 300: experts are numbered 0 to 255, and -1 pads")
