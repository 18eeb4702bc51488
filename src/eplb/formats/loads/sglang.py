"""SGLang's loads: dumps of its expert recorder.

Read off SGLang 0.5.23, `eplb/expert_distribution.py`. The recorder's modes `stat` and `stat_approx`
save logical counts of each step, already added up over ranks; its modes `per_pass` and `per_token`
save a file a rank with the physical counts of each forward pass. The only time that is known is
that of writing a file, which its name tells.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, LoadsError
from eplb.formats.loads.bare import Bare
from eplb.formats.safe import check_size, load_pt, naming, tensor_array
from eplb.formats.windows import Steps, Windows, check_model
from eplb.loads import LoadTrace, check_values

_ROUTED = "routed_experts"
_PHYSICAL = "global_physical_count"
_TOKENS = "topk_ids_of_layer"

_DUMP = re.compile(r"expert_distribution_recorder_(\d+(?:\.\d+)?)(?:_\d+)?", re.ASCII)


class NothingRecordedError(FormatError):
    """A dump without a token: written while nothing was served."""


@dataclass(frozen=True, eq=False)
class Passes:
    """What one rank recorded: one file of the modes `per_pass` and `per_token`.

    Attributes:
        path: the file.
        keys: [R] forward pass and rank of each record.
        records: [R] what each has of counts or of tokens, mapped: it is looked at when added up.
        phy2log: [L, P] the placement that was there when the file was written.
    """

    path: Path
    keys: list[tuple[int, int]]
    records: list[dict[str, Any]]
    phy2log: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """L and E."""
        return len(self.phy2log), int(self.phy2log.max()) + 1

    def loads(self, number: int) -> NDArray[np.float64]:
        """[L, E] tokens of a record."""
        place = f"records[{number}]"
        with naming(self.path):
            counts = _physical_counts(self.records[number], place, self.phy2log.shape)
        num_layers, num_experts = self.shape
        # Counts of all layers are added up at once, each layer into experts of its own.
        experts = (self.phy2log + num_experts * np.arange(num_layers)[:, None]).ravel()
        size = num_layers * num_experts
        loads = np.bincount(experts, weights=counts.ravel(), minlength=size)
        return loads.reshape(num_layers, num_experts).astype(np.float64, copy=False)


def read_pt(path: Path) -> Steps | Passes | Bare:
    """Loads in a `.pt` file: a recorder's dump, or a bare tensor as vllm-ascend's tool reads it."""
    content = load_pt(path)
    if not isinstance(content, dict):
        return _bare(content, "the file")
    if "records" in content:
        return _read_passes(path, content)
    if _ROUTED in content:
        return _bare(content[_ROUTED], _ROUTED)
    if "logical_count" not in content:
        keys = ", ".join(repr(key)[:40] for key in list(content)[:5]) or "none"
        raise FormatError(f"expected the key 'logical_count' or 'records', found {keys}")
    counts = tensor_array(content["logical_count"], "logical_count")
    return _steps(path, counts)


def dump_time(path: Path) -> float | None:
    """Seconds since 1970 at which the recorder wrote a file, as its name tells."""
    match = _DUMP.fullmatch(path.stem)
    return float(match[1]) if match and np.isfinite(float(match[1])) else None


def joined(parts: Iterable[Passes], windows: Windows) -> LoadTrace:
    """The trace of all passes: what the ranks recorded of each, added up.

    Recording starts and stops on each rank between two passes, not at the same pass on all: passes
    at either end of a recording that some ranks lack are left out.
    """
    found: dict[int, dict[int, tuple[Passes, int]]] = {}
    first = None
    for part in parts:
        first = first or part
        with naming(part.path):
            check_model(part.shape, first.shape, first.path)
            for number, (pass_id, rank) in enumerate(part.keys):
                seen = found.setdefault(pass_id, {})
                _check_fits(part, seen, pass_id, rank)
                seen[rank] = part, number
    assert first is not None  # there is a file at least
    with naming(first.path.parent):
        chosen = _whole_passes({pass_id: set(seen) for pass_id, seen in found.items()})
    times = _times([_first_time(part for part, _ in found[each].values()) for each in chosen])
    counted = np.zeros((0, 0, 0))
    for at, pass_id in enumerate(chosen):
        of_ranks = [found[pass_id][rank] for rank in sorted(found[pass_id])]
        loads = np.stack([part.loads(number) for part, number in of_ranks])
        counted = counted + loads if at else loads
        time = None if times is None else times[at : at + 1]
        windows.add(loads.sum(axis=0)[None], [str(pass_id)], time)
    windows.count(counted)
    return windows.finish(layers=tuple(range(first.shape[0])))


def _bare(value: Any, name: str) -> Bare:
    array = tensor_array(value, name)
    check_size(name, array.size)
    return Bare(array, name)


def _steps(path: Path, counts: NDArray[Any]) -> Steps:
    """Windows of [L, E], or of a buffer [T, L, E] of which the steps that were used are taken."""
    buffer = counts.ndim == 3
    counts = counts[None] if counts.ndim == 2 else counts
    if counts.ndim != 3:
        raise LoadsError(
            f"loads have shape {counts.shape}: give windows, layers and experts [T, L, E]"
        )
    check_values(counts)
    # Numbers of 0 or more: a maximum is found sooner than whether any is not 0.
    used = counts.reshape(len(counts), -1).max(axis=1) > 0
    if not used.any():
        what = f"all {len(counts)} steps are unused" if buffer else "has no token"
        raise NothingRecordedError(f"{what}: nothing was recorded")
    steps = _in_order(used)
    runs = np.split(steps, np.flatnonzero(np.diff(steps) != 1) + 1)
    return Steps(
        [counts[run[0] : run[-1] + 1] for run in runs],
        list(map(str, steps)),
        _times([dump_time(path)] * len(steps)),
        # The recorder has a row for each hidden layer.
        tuple(range(counts.shape[1])),
    )


def _in_order(used: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Numbers of the steps of a buffer that were used, the oldest first where that can be told.

    A dump empties a circular buffer, and the next step goes where it would have gone anyway: what
    follows may begin late in the buffer and end early in it. The gap between is then the only one.
    """
    gaps = np.flatnonzero(used[:-1] & ~used[1:])
    steps = np.flatnonzero(used)
    if used[0] and used[-1] and len(gaps) == 1:
        return np.roll(steps, -(int(gaps[0]) + 1))
    return steps


def _times(times: list[float | None]) -> list[float] | None:
    """Times of the windows, if each has its own: files tell when they were written, not steps."""
    known = [time for time in times if time is not None]
    if len(known) < len(times) or (np.diff(known) <= 0).any():
        return None
    return known


def _read_passes(path: Path, content: dict[Any, Any]) -> Passes:
    name = "last_physical_to_logical_map"
    phy2log = tensor_array(content.get(name), name)
    if phy2log.ndim != 2 or not phy2log.size or phy2log.dtype.kind not in "iu":
        raise FormatError(f"{name} is no map of layers and physical experts [L, P]")
    num_physical = phy2log.shape[1]
    if not 0 <= phy2log.min() <= phy2log.max() < num_physical:
        raise FormatError(f"{name} has experts outside 0 to {num_physical - 1}")
    records = content["records"]
    if not isinstance(records, list) or not records:
        raise FormatError("records are no list, or empty: nothing was recorded")
    keys, kept = [], []
    for number, record in enumerate(records):
        place = f"records[{number}]"
        if not isinstance(record, dict):
            raise FormatError(f"{place} is {type(record).__name__}, expected a dict")
        for key in ("forward_pass_id", "rank"):
            if type(record.get(key)) is not int or record[key] < 0:
                raise FormatError(f"{place} has no number {key!r}, from 0 on")
        keys.append((record["forward_pass_id"], record["rank"]))
        kept.append({key: record[key] for key in (_PHYSICAL, _TOKENS) if key in record})
    return Passes(path, keys, kept, phy2log.astype(np.int64))


def _physical_counts(record: dict[Any, Any], place: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Counts [L, P] of a record, from its tokens where it has none."""
    if _PHYSICAL in record:
        place = f"{place}[{_PHYSICAL!r}]"
        counts = tensor_array(record[_PHYSICAL], place)
        if counts.shape != shape:
            raise FormatError(f"{place} has shape {counts.shape}, its map {shape}")
        if not counts.min() >= 0:
            raise FormatError(f"{place} has a count below 0, or none")
        return counts
    place = f"{place}[{_TOKENS!r}]"
    ids = tensor_array(record.get(_TOKENS), place)
    if ids.ndim != 3 or len(ids) != shape[0] or ids.dtype.kind not in "iu":
        raise FormatError(f"{place} is no [{shape[0]}, tokens, k] of physical experts")
    counts = np.zeros(shape, np.int64)
    for layer, chosen in enumerate(ids):
        real = chosen[chosen != -1].astype(np.int64)
        if real.size and not 0 <= real.min() <= real.max() < shape[1]:
            raise FormatError(
                f"{place}[{layer}] has ids outside -1 to {shape[1] - 1}: is a shared "
                "expert fused into the routed ones? Record without that, or leave its ids out"
            )
        counts[layer] = np.bincount(real, minlength=shape[1])
    return counts


def _check_fits(part: Passes, seen: dict[int, tuple[Passes, int]], pass_id: int, rank: int) -> None:
    if rank in seen:
        raise FormatError(
            f"has pass {pass_id} of rank {rank} again, {seen[rank][0].path.name} has "
            "it too: keep each recording in a folder of its own, and record without a draft model"
        )
    other, _ = next(iter(seen.values()), (part, 0))
    if other is not part and not np.array_equal(other.phy2log, part.phy2log):
        raise FormatError(
            f"has another placement than {other.path.name}, and both have pass "
            f"{pass_id}: keep each recording in a folder of its own"
        )


def _first_time(parts: Iterable[Passes]) -> float | None:
    """When the first of the ranks wrote: each looks at its own clock."""
    times = [dump_time(part.path) for part in parts]
    return None if None in times else min(time for time in times if time is not None)


def _whole_passes(ranks: dict[int, set[int]]) -> list[int]:
    """Passes that all ranks recorded, in order, if only ends of recordings lack any."""
    everyone = set().union(*ranks.values())
    missing = next((rank for rank in range(len(everyone)) if rank not in everyone), None)
    if missing is not None and len(everyone) > 1:
        what = f"has files of ranks up to {max(everyone)}, and none of rank {missing}"
        raise FormatError(what)
    chosen: list[int] = []
    run: list[int] = []
    for pass_id in sorted(ranks):
        if run and pass_id != run[-1] + 1:
            chosen += _trimmed(run, ranks, everyone)
            run = []
        run.append(pass_id)
    return chosen + _trimmed(run, ranks, everyone)


def _trimmed(run: list[int], ranks: dict[int, set[int]], all_: set[int]) -> list[int]:
    whole = [number for number, pass_id in enumerate(run) if ranks[pass_id] == all_]
    kept = run[whole[0] : whole[-1] + 1] if whole else run
    for pass_id in kept:
        if ranks[pass_id] != all_:
            raise FormatError(
                f"pass {pass_id} was recorded by some ranks, "
                f"and not by rank {min(all_ - ranks[pass_id])}"
            )
    return kept
