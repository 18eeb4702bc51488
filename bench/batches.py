"""Batches dispatched one by one: recorded tokens in steps of a running batch, and large batches.

It is a part of dispatch.py, which prints these tables and checks the bars.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bars import Bar
from numpy.typing import NDArray
from rich.table import Table

import eplb
from eplb.torch import BatchDispatch

__all__ = ["of_batches", "placed_for_batches"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_GPUS, _RANKS, _TOKENS, _EXPERTS = 8, 8, 32, 32
_LEAST = {40: (0.946, 0.996, 0.97), 48: (0.978, 0.993, 0.998)}
"""By slots: ranks for themselves, that over their fractions, and together."""
_PLACED = {40: (0.99, 0.943), 48: (0.999, 0.985)}
"""Where it is placed for batches, by slots: together, and ranks for themselves."""
_WINDOW, _NEXT = 3, 20
"""Steps of a window that is planned for, and steps after the last one that are scored."""
_LARGE_BATCH, _LARGE_K = 4096, 8
_REPEATS = 15


def steps_of(lengths: I64, at_once: int) -> I64:
    """Tokens [steps, at_once] of a running batch: a token of each of its sequences at each step,
    and the next sequence in line where one has ended, as long as there is one.
    """
    begins = np.cumsum(lengths) - lengths
    waiting = iter(range(len(lengths)))
    running = [[next(waiting), 0] for _ in range(at_once)]
    steps = []
    while True:
        steps.append([begins[sequence] + place for sequence, place in running])
        for entry in running:
            entry[1] += 1
            if entry[1] == lengths[entry[0]]:
                after = next(waiting, None)
                if after is None:
                    return np.array(steps)
                entry[:] = after, 0


def counted(ids: I64, num_experts: int) -> F64:
    """Tokens of each expert [..., E] in batches of ids [..., tokens, k]."""
    flat = ids.reshape(*ids.shape[:-2], -1)
    counts: F64 = (flat[..., None] == np.arange(num_experts)).sum(-2).astype(np.float64)
    return counts


def evenness(load: F64) -> float:
    """Mean over max of GPU loads [..., G], averaged."""
    return float((load.mean(-1) / load.max(-1)).mean())


def gpu_loads(dispatch: BatchDispatch, batches: I64, slots_per_gpu: int) -> F64:
    """Whole tokens of each GPU [batches, G] that a dispatcher makes of ids [batches, tokens, k]."""
    slots = np.stack([dispatch(torch.from_numpy(ids)).numpy() for ids in batches])
    return counted(slots // slots_per_gpu, dispatch.empty.shape[0] - 1)


def _steps(traces: Path, table: Table, bars: list[Bar]) -> None:
    """Decode steps of ranks, each for itself and together."""
    with np.load(traces / "gptoss20b_tokens.npz") as file:
        ids, lengths = file["topk_ids"], file["lengths"]
    steps = steps_of(lengths, _RANKS * _TOKENS)
    half = len(steps) // 2
    seen = np.stack([counted(ids[step].swapaxes(0, 1), _EXPERTS) for step in steps[:half]])
    windows = np.stack([part.sum(0) for part in np.array_split(seen, half // _WINDOW)])
    for slots, (least, of_fractions, together) in _LEAST.items():
        size = slots // _GPUS
        placement = eplb.plan(windows, eplb.Cluster(_GPUS, slots_per_gpu=size)).placement
        for name, later in (
            (f"next {_NEXT}", steps[half : half + _NEXT]),
            ("all later", steps[half::4]),
        ):
            batches = ids[later].astype(np.int64).transpose(2, 0, 1, 3)  # [L, steps, tokens, k]
            of_rank = batches.reshape(*batches.shape[:2], _RANKS, _TOKENS, -1)
            loads = counted(of_rank, _EXPERTS).transpose(1, 2, 0, 3)  # [steps, R, L, E]
            even = evenness(placement.gpu_load(loads.sum(1)))
            parts = evenness(placement.gpu_load(loads, "best").sum(1))
            of_all = evenness(placement.gpu_load(loads.sum(1), "best"))
            alone, joined = [], []
            for layer in range(placement.num_layers):
                dispatch = BatchDispatch(placement, layer)
                flat = of_rank[layer].reshape(-1, *of_rank.shape[-2:])
                load = gpu_loads(dispatch, flat, size)
                alone.append(evenness(load.reshape(len(later), _RANKS, -1).sum(1)))
                # Ranks that level together do what one does that has all their tokens.
                joined.append(evenness(gpu_loads(dispatch, batches[layer], size)))
            each, whole = float(np.mean(alone)), float(np.mean(joined))
            table.add_row(
                f"{slots}, {name}", f"{even:.4f}", f"{each:.4f}", f"{parts:.4f}",
                f"{each / parts:.4f}", f"{whole:.4f}", f"{of_all:.4f}",
            )  # fmt: skip
            if name.startswith("next"):
                for what, found, needed in (
                    ("ranks for themselves", each, least),
                    ("over their fractions", each / parts, of_fractions),
                    ("together", whole, together),
                ):
                    bars.append(
                        Bar(
                            f"{slots} slots, {what}",
                            f"at least {needed:g}",
                            f"{found:.4f}",
                            found >= needed,
                        )
                    )


def placed_for_batches(traces: Path, bars: list[Bar]) -> list[Table | str]:
    """The same steps by what was planned for, split best in fractions."""
    table = Table(
        "slots", "planned for", "next: together", "each rank", "all later: together", "each rank "
    )
    with np.load(traces / "gptoss20b_tokens.npz") as file:
        ids, lengths = file["topk_ids"], file["lengths"]
    steps = steps_of(lengths, _RANKS * _TOKENS)
    half = len(steps) // 2
    seen = np.stack([counted(ids[step].swapaxes(0, 1), _EXPERTS) for step in steps[:half]])
    windows = np.stack([part.sum(0) for part in np.array_split(seen, half // _WINDOW)])
    later = []
    for some in (steps[half : half + _NEXT], steps[half::4]):
        of_rank = ids[some].transpose(2, 0, 1, 3).reshape(24, len(some), _RANKS, _TOKENS, -1)
        later.append(counted(of_rank, _EXPERTS).transpose(1, 2, 0, 3))  # [steps, R, L, E]
    top_k = ids.shape[2]
    kinds: dict[str, dict[str, Any]] = {
        "an even split": {},
        "whole windows, split best": {"dispatch": "best"},
        "batches, together": {
            "dispatch": "best", "batch": eplb.Batch(_TOKENS, top_k, _RANKS, together=True)
        },
        "batches, each rank": {"dispatch": "best", "batch": eplb.Batch(_TOKENS, top_k, _RANKS)},
    }  # fmt: skip
    for slots, (least_together, least_each) in _PLACED.items():
        cluster = eplb.Cluster(_GPUS, slots_per_gpu=slots // _GPUS)
        for name, how in kinds.items():
            placement = eplb.plan(windows, cluster, **how).placement
            found = []
            for loads in later:
                found.append(evenness(placement.gpu_load(loads.sum(1), "best")))
                found.append(evenness(placement.gpu_load(loads, "best").sum(1)))
            table.add_row(str(slots), name, *(f"{each:.4f}" for each in found))
            if "batch" in how:
                at, least = (2, least_together) if how["batch"].together else (3, least_each)
                what = f"{slots} slots, placed for {name}, all later steps"
                bars.append(
                    Bar(what, f"at least {least:g}", f"{found[at]:.4f}", found[at] >= least)
                )
    return [table]


def _activated(traces: Path, table: Table, bars: list[Bar]) -> None:
    """The most experts that a GPU touches in small steps."""
    with np.load(traces / "gptoss20b_tokens.npz") as file:
        ids, lengths = file["topk_ids"].astype(np.int64), file["lengths"]
    for slots in _LEAST:
        size = slots // _GPUS
        for tokens in (16, 32, 64):
            steps = steps_of(lengths, tokens)
            half = len(steps) // 2
            thinned = steps[: half : max(1, half // 100)]
            seen = np.stack([counted(ids[step].swapaxes(0, 1), _EXPERTS) for step in thinned])
            windows = np.stack([part.sum(0) for part in np.array_split(seen, 16)])
            placement = eplb.plan(windows, eplb.Cluster(_GPUS, slots_per_gpu=size)).placement
            batches = ids[steps[half :: max(1, half // 40)]].transpose(2, 0, 1, 3)
            touched = [(counted(each, _EXPERTS) > 0).astype(np.float64) for each in batches]
            # A flow of whole numbers is as good as one of fractions, rounded up.
            peak = placement.gpu_load(np.stack(touched, 1), "best").max(-1)
            optimum = np.ceil(peak - 1e-9)
            ours, even = np.empty(optimum.shape), np.empty(optimum.shape)
            for layer, of_layer in enumerate(batches):
                dispatch = BatchDispatch(placement, layer, objective="activated")
                for i, batch in enumerate(of_layer):
                    ours[i, layer] = _most_touched(dispatch(torch.from_numpy(batch)).numpy(), size)
                    even[i, layer] = _most_touched(_evenly(placement, layer, batch), size)
            right = float((ours == optimum).mean())
            table.add_row(
                f"{slots}, {tokens}", f"{even.mean():.3f}", f"{ours.mean():.3f}",
                f"{optimum.mean():.3f}", f"{right:.2%}",
            )  # fmt: skip
            bars.append(
                Bar(
                    f"{slots} slots, steps of {tokens}, activated experts at the optimum",
                    "at least 95%",
                    f"{right:.2%}",
                    right >= 0.95,
                )
            )


def _most_touched(slots: I64, slots_per_gpu: int) -> int:
    """The most slots of one GPU that have tokens."""
    return int(np.bincount(np.unique(slots) // slots_per_gpu).max())


def _evenly(placement: eplb.Placement, layer: int, ids: I64) -> I64:
    """Slots of ids where the tokens of an expert take its copies in turn."""
    flat = ids.ravel()
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    place = np.arange(len(flat)) - np.searchsorted(ordered, ordered)
    copy = place % placement.logcnt[layer][ordered]
    slots = np.empty_like(flat)
    slots[order] = placement.log2phy[layer][ordered, copy]
    return slots


def drawn(rng: np.random.Generator, workload: F64, tokens: int, k: int) -> I64:
    """Ids [tokens, k] of tokens that choose experts by a workload [E], without replacement: by the
    order of what is added to the logarithms.
    """
    noise = rng.gumbel(size=(tokens, len(workload)))
    with np.errstate(divide="ignore"):
        scores = np.log(workload) + noise
    return np.argpartition(-scores, k, axis=1)[:, :k].astype(np.int64)


def _large(loads: F64, table: Table, bars: list[Bar]) -> None:
    """Large batches of other workloads [T, L, E] than the first, which is planned for."""
    cluster = eplb.Cluster(num_gpus=32, num_nodes=4, slots_per_gpu=9)
    placement = eplb.plan(loads[0], cluster).placement
    rng = np.random.default_rng(0)
    shape = (len(loads) - 1, placement.num_layers)
    over, over_even, times = np.empty(shape), np.empty(shape), np.empty(shape)
    for layer in range(placement.num_layers):
        dispatch = BatchDispatch(placement, layer)
        for i, workload in enumerate(loads[1:, layer]):
            ids = drawn(rng, workload, _LARGE_BATCH, _LARGE_K)
            batch = np.zeros((1, *loads.shape[1:]))
            batch[0, layer] = counted(ids, len(workload))
            best = placement.gpu_load(batch, "best")[0, layer].max()
            load = gpu_loads(dispatch, ids[None], cluster.slots_per_gpu)
            over[i, layer] = load.max() / best - 1.0
            over_even[i, layer] = placement.gpu_load(batch)[0, layer].max() / best - 1.0
            tensor = torch.from_numpy(ids)
            runs = []
            for _ in range(_REPEATS):
                begin = time.perf_counter()
                dispatch(tensor)
                runs.append(time.perf_counter() - begin)
            times[i, layer] = min(runs) * 1e3
    worst = float(over.max())
    table.add_row(
        "288 on 32", f"{over_even.mean():.2%}", f"{over.mean():.3%}", f"{worst:.2%}",
        f"{times.mean():.2f}",
    )  # fmt: skip
    for what, found, most, text in (
        ("peak over the optimum, mean", float(over.mean()), 0.005, "0.5%"),
        ("peak over the optimum, worst layer", worst, 0.015, "1.5%"),
    ):
        bars.append(
            Bar(f"{_LARGE_BATCH} tokens, {what}", f"at most {text}", f"{found:.3%}", found <= most)
        )
    milliseconds = float(times.mean())
    bars.append(
        Bar(
            f"{_LARGE_BATCH} tokens, ms a layer on one thread",
            "at most 2.5",
            f"{milliseconds:.2f}",
            milliseconds <= 2.5,
        )
    )


def _on_gpu(loads: F64, bars: list[Bar]) -> str:
    """Time of a large batch on a GPU, all layers in one CUDA graph; or that there is none."""
    if not torch.cuda.is_available():
        return "No GPU here: the time of a layer on one is not measured, and its bar not checked."
    cluster = eplb.Cluster(num_gpus=32, num_nodes=4, slots_per_gpu=9)
    placement = eplb.plan(loads[0], cluster).placement
    rng = np.random.default_rng(0)
    ids = [torch.from_numpy(drawn(rng, workload, _LARGE_BATCH, _LARGE_K)) for workload in loads[1]]
    expected = [BatchDispatch(placement, layer)(each) for layer, each in enumerate(ids)]
    on_gpu = [BatchDispatch(placement, layer, device="cuda") for layer in range(len(ids))]
    batches = [each.cuda() for each in ids]
    found = [way(each) for way, each in zip(on_gpu, batches, strict=True)]
    same = all(torch.equal(a, b.cpu()) for a, b in zip(expected, found, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for way, each in zip(on_gpu, batches, strict=True):
            way(each)
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    runs = []
    for _ in range(_REPEATS):
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        runs.append(begin.elapsed_time(end) * 1e3 / len(ids))
    name, took = torch.cuda.get_device_name(), min(runs)
    kind = "Triton's kernels" if on_gpu[0]._kernels is not None else "torch operations"
    bars.append(
        Bar(
            f"{_LARGE_BATCH} tokens, us a layer in a CUDA graph, {name}",
            "at most 100",
            f"{took:.1f}",
            took <= 100.0,
        )
    )
    bars.append(Bar(f"{_LARGE_BATCH} tokens, slots as on the CPU", "the same", str(same), same))
    return f"{name}: {took:.1f} us a layer in a CUDA graph, by {kind}"


def of_batches(traces: Path, loads: F64, bars: list[Bar]) -> list[Table | str]:
    """The tables, their bars, and a line about the GPU."""
    torch.set_num_threads(1)
    steps = Table(
        "slots, steps", "even split", "ranks for themselves", "in fractions", "over them",
        "together", "in fractions ",
    )  # fmt: skip
    activated = Table("slots, tokens", "most touched, even", "ours", "optimum", "at the optimum")
    large = Table(
        f"{_LARGE_BATCH} tokens", "even split over the optimum", "ours", "worst layer", "ms"
    )
    _steps(traces, steps, bars)
    _activated(traces, activated, bars)
    _large(loads, large, bars)
    return [steps, activated, large, _on_gpu(loads, bars)]
