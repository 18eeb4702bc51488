"""Batches on the device: against plain Python, by what must hold, compiled, and refused."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_batch import naive_slots
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import eplb
from eplb.torch import BatchDispatch
from eplb.torch.copies import Room
from eplb.torch.level import level

SMALL = eplb.Placement(np.array([[0, 1, 0, 2]]), 3, eplb.Cluster(num_gpus=2, slots_per_gpu=2))
CLUSTER = eplb.Cluster(num_gpus=8, slots_per_gpu=6)


@dataclass(frozen=True)
class Running:
    """What an engine runs: unlike an `eplb.Placement`, it may have empty slots."""

    phy2log: NDArray[np.int64]
    num_experts: int
    cluster: eplb.Cluster
    log2phy: Any = None
    logcnt: Any = None


@st.composite
def cases(draw: st.DrawFn) -> tuple[Running, torch.Tensor]:
    """A layer whose copies may share a GPU, whose slots may be empty, and a padded batch."""
    num_gpus, size = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    num_experts = draw(st.integers(1, num_gpus * size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    row = np.r_[
        np.arange(num_experts), rng.integers(-1, num_experts, num_gpus * size - num_experts)
    ]
    tokens, k = draw(st.integers(0, 40)), draw(st.integers(1, 4))
    skew = rng.dirichlet(np.full(num_experts + 1, 0.5))
    ids = rng.choice(np.arange(-1, num_experts), (tokens, k), p=skew)
    cluster = eplb.Cluster(num_gpus=num_gpus, slots_per_gpu=size)
    return Running(rng.permutation(row)[None], num_experts, cluster), torch.from_numpy(ids)


def recorded_batch(tokens: int, k: int, num_experts: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0.0, 1.0, num_experts)
    drawn = rng.gumbel(size=(tokens, num_experts)) + np.log(share)
    return torch.from_numpy(np.argsort(-drawn, axis=1)[:, :k].copy())


def planned(num_experts: int, num_gpus: int, size: int, layers: int = 1) -> eplb.Placement:
    loads = np.random.default_rng(5).lognormal(0.0, 1.0, (layers, num_experts))
    return eplb.plan(loads, eplb.Cluster(num_gpus=num_gpus, slots_per_gpu=size)).placement


@given(cases(), st.sampled_from(["tokens", "activated"]), st.integers(0, 45))
@settings(max_examples=60)
def test_slots_are_those_of_plain_python(
    case: tuple[Running, torch.Tensor], objective: Any, real: int
) -> None:
    running, ids = case
    row, num_gpus = running.phy2log[0].tolist(), running.cluster.num_gpus
    padded = ids.clone()
    padded[real:] = -1
    expected = naive_slots(
        row, num_gpus, running.num_experts, padded.tolist(), activated=objective == "activated"
    )
    dispatch = BatchDispatch(running, 0, objective=objective)
    slots = dispatch(ids.to(torch.int32), torch.tensor(real))
    assert slots.dtype == torch.int32
    assert slots.tolist() == expected
    assert dispatch(padded).tolist() == expected
    # By torch operations, where kernels are for a CPU.
    assert dispatch._by_operations(ids, torch.tensor(real)).tolist() == expected


@pytest.mark.parametrize(("num_experts", "num_gpus", "size"), [(32, 8, 6), (64, 16, 5)])
def test_peaks_are_near_the_optimum(num_experts: int, num_gpus: int, size: int) -> None:
    placement = planned(num_experts, num_gpus, size)
    dispatch = BatchDispatch(placement, 0)
    for seed in range(20):
        ids = recorded_batch(256, 4, num_experts, seed)
        slots = dispatch(ids)
        assert (placement.phy2log[0][slots] == ids.numpy()).all()
        peak = torch.bincount(slots.reshape(-1) // size, minlength=num_gpus).max().item()
        counts = torch.bincount(ids.reshape(-1), minlength=num_experts)
        bound = np.ceil(eplb.dispatch(placement, counts[None].numpy()).bound[0] - 1e-9)
        assert bound <= peak <= bound + 1


def test_an_expert_of_an_activated_batch_has_one_copy_and_gpus_few_experts() -> None:
    placement = planned(32, 8, 6)
    dispatch = BatchDispatch(placement, 0, objective="activated")
    least = 0
    for seed in range(40):
        ids = recorded_batch(12, 4, 32, seed)
        slots = dispatch(ids)
        used = {(int(e), int(p)) for e, p in zip(ids.ravel(), slots.ravel(), strict=True)}
        assert len(used) == len(set(ids.ravel().tolist()))
        touched = np.bincount([slot // 6 for _, slot in used], minlength=8).max()
        active = np.bincount(ids.ravel(), minlength=32) > 0
        # Whole flows are as good as fractions here, rounded up.
        optimum = np.ceil(eplb.dispatch(placement, active[None].astype(float)).bound[0] - 1e-9)
        assert touched >= optimum
        least += touched == optimum
    assert least >= 38


def addresses(dispatch: BatchDispatch) -> list[tuple[int, torch.Size]]:
    return [(each.data_ptr(), each.shape) for each in dispatch.buffers()]


def test_an_update_dispatches_for_another_placement_by_the_same_arrays() -> None:
    placements = [planned(32, 8, 6, layers=3), eplb.Placement.contiguous(3, 32, CLUSTER)]
    lasting = BatchDispatch(placements[1], 2, lasting=True)
    where = addresses(lasting)
    ids = recorded_batch(256, 4, 32, 1)
    for placement in (*placements, placements[0]):
        lasting.update(placement)
        assert addresses(lasting) == where
        assert torch.equal(lasting(ids), BatchDispatch(placement, 2)(ids))


@given(cases(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
@settings(max_examples=20)
def test_copies_that_there_is_no_room_for_are_not_used(
    case: tuple[Running, torch.Tensor], width: int, classes: int, rows: int
) -> None:
    running, ids = case
    room = Room(min(width, running.cluster.num_gpus), classes, rows)
    with patch("eplb.torch.batch.usual_room", lambda *_: room):
        dispatch = BatchDispatch(running, 0, lasting=True)
    slots = dispatch(ids)
    real = ids >= 0
    assert torch.equal(torch.as_tensor(running.phy2log[0])[slots[real]], ids[real])
    assert (slots[~real] == -1).all()
    assert dispatch.gpus.shape == (classes * rows, room.width)


def test_what_cannot_be_updated_is_said() -> None:
    with pytest.raises(eplb.OptionError, match="make it lasting"):
        BatchDispatch(SMALL, 0).update(SMALL)
    lasting = BatchDispatch(SMALL, 0, lasting=True)
    with pytest.raises(eplb.OptionError, match=r"\(32, 48, 8\): this dispatch is for layer 0"):
        lasting.update(planned(32, 8, 6))


def test_layers_have_arrays_of_the_same_shapes() -> None:
    placement = planned(16, 4, 6, layers=5)
    shapes = {
        (*(tuple(each.shape) for each in BatchDispatch(placement, layer).buffers()),)
        for layer in range(5)
    }
    assert len(shapes) == 1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
@pytest.mark.filterwarnings("default")
def test_compiled_slots_are_the_same(backend: str) -> None:
    placement = planned(32, 8, 6, layers=2)
    for layer in range(2):
        dispatch = BatchDispatch(placement, layer)
        compiled = torch.compile(dispatch, fullgraph=True, dynamic=False, backend=backend)
        for seed, real in ((1, 64), (2, 40)):
            ids = recorded_batch(64, 4, 32, seed)
            assert torch.equal(compiled(ids, torch.tensor(real)), dispatch(ids, torch.tensor(real)))


def test_a_trace_of_it_is_no_constant() -> None:
    """What records operations records the kernels of a CPU too."""
    dispatch = BatchDispatch(planned(32, 8, 6), 0)
    ids, others = (recorded_batch(64, 4, 32, seed) for seed in (1, 2))
    traced = make_fx(dispatch)(ids)
    assert torch.equal(traced(others), dispatch(others))


def test_levels_wait_for_nothing() -> None:
    """No value is read on the host: tensors without values do."""
    dispatch = BatchDispatch(planned(32, 8, 6), 0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        counts = mode.from_tensor(torch.ones(32, dtype=torch.int64))
        found = level(
            counts,
            dispatch.gpus,
            dispatch.experts,
            dispatch._ends,
            dispatch.alone,
            dispatch.most,
            dispatch.empty,
        )
    assert found.shape == dispatch.gpus.shape


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[3]]), "topk_ids has 3: experts are numbered 0 to 2, and -1 pads"),
        (torch.tensor([[-2]]), "topk_ids has -2"),
        (torch.tensor([1, 2]), r"topk_ids are torch.Size\(\[2\]\): give a tensor \[tokens, k\]"),
        ([[1]], "topk_ids are list"),
        (torch.tensor([[1.0]]), "topk_ids have type torch.float32: give int16, int32 or int64"),
        (torch.zeros(1, 1, dtype=torch.int64, device="meta"), "topk_ids are on meta"),
        (torch.zeros(1, dtype=torch.int64).expand(1 << 20, 16), "give fewer than 16777216"),
    ],
)
def test_wrong_ids_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(eplb.OptionError, match=message):
        BatchDispatch(SMALL, 0)(ids)


@pytest.mark.parametrize(
    "number", [torch.tensor([1, 2]), torch.tensor(1.0), torch.tensor(True), -1, 1.5, "1"]
)
def test_wrong_numbers_of_tokens_are_refused(number: Any) -> None:
    message = "num_tokens is no tensor of one whole number|num_tokens is .*give "
    with pytest.raises(eplb.OptionError, match=message):
        BatchDispatch(SMALL, 0)(torch.tensor([[1], [2]]), number)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(eplb.OptionError, match="layer is 1: give 0 to 0"):
        BatchDispatch(SMALL, 1)
    with pytest.raises(eplb.OptionError, match="give one of tokens, activated"):
        BatchDispatch(SMALL, 0, objective="peak")  # type: ignore[arg-type]
    with pytest.raises(eplb.OptionError, match="group is 'world': give a process group"):
        BatchDispatch(SMALL, 0, group="world")
    gone = Running(np.array([[0, 1, -1, -1]]), 3, SMALL.cluster)
    with pytest.raises(eplb.PlacementError, match="layer 0 has no slot for expert 2"):
        BatchDispatch(gone, 0)


def test_without_torch_a_hint_is_given() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport eplb.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "dispatch on the device needs torch: pip install torch" in done.stderr
