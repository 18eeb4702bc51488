"""From one placement to another while the model serves: what is sent, from where, and when."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import Immutable, real_number, whole_number
from eplb.cost.models import expert_bytes_of
from eplb.errors import OptionError
from eplb.loads import check_windows
from eplb.moving.buffers import Limits
from eplb.moving.settling import Copies, copies_of, lay_out, needs_of
from eplb.moving.transfers import Arrivals, arrivals_between, nearest_sources
from eplb.moving.waves import fewest_waves, waves_of
from eplb.placement import Placement, check_placement

_I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Migration(Immutable):
    """Transfers between GPUs in waves, and the copies inside GPUs between the waves.

    The transfers of a wave run at the same time and land in buffers, each as large as one expert of
    one layer. Before wave w the rows of `copies` with that wave are done in their order; those with
    `num_waves` come at the end. At every instant some GPU holds every expert whole, in a slot or in
    a buffer, from which it can be served too.

    Attributes:
        layer: [M] layer of each transfer; rows are in the order of waves.
        expert: [M] its expert.
        source: [M] the GPU that sends.
        target: [M] the GPU that receives.
        source_slot: [M] where the source has it: a slot counted on that GPU from 0, or -1 - b for
            its buffer b.
        slot: [M] the slot that it is for, counted on the target.
        buffer: [M] the target's buffer in which it lands.
        wave: [M] its wave, from 0.
        copies: copies inside GPUs: out of buffers, and from slot to slot.
        num_waves: waves in all.
        fewest_waves: a proven lower bound on them: what the busiest GPU or uplink needs for these
            transfers, whatever their order.
        spare_slots: [G] buffers that each GPU needs.
        num_lost: transfers whose source is dead: these experts are read from the checkpoint.
        num_between_nodes: transfers from one node to another.
        total_bytes: bytes of all transfers; None where the bytes of an expert are not known.
        bytes_between_nodes: the same of those between nodes.
        seconds: time that the bandwidths imply; None where they or the bytes are not known.
    """

    layer: _I64
    expert: _I64
    source: _I64
    target: _I64
    source_slot: _I64
    slot: _I64
    buffer: _I64
    wave: _I64
    copies: Copies
    num_waves: int
    fewest_waves: int
    spare_slots: _I64
    num_lost: int
    num_between_nodes: int
    total_bytes: int | None
    bytes_between_nodes: int | None
    seconds: float | None

    def __repr__(self) -> str:
        return (
            f"Migration({self.num_transfers} transfers in {self.num_waves} waves, "
            f"{self.num_between_nodes} between nodes)"
        )

    @property
    def num_transfers(self) -> int:
        """M."""
        return len(self.layer)


def migrate(
    old: Placement,
    new: Placement,
    *,
    experts_at_once: int = 1,
    uplink_share: int | None = None,
    spare_slots: int | None = None,
    leaving: Any = (),
    loads: Any = None,
    bytes_per_expert: int | None = None,
    bandwidth_within: float | None = None,
    bandwidth_between: float | None = None,
) -> Migration:
    """How to get from one placement to another, wave by wave, while every expert stays served.

    An expert is sent from a GPU of the target's node if one there has it, else from another node;
    among equals so that the busiest sender sends as little as can be. Without `uplink_share` and
    `spare_slots` there are as few waves as the busiest GPU allows; layers that gain most come
    first as far as that permits.

    Example:
        >>> import eplb
        >>> cluster = eplb.Cluster(num_gpus=4, slots_per_gpu=3)
        >>> loads = [[90.0, 40.0, 10.0, 10.0, 10.0, 10.0, 5.0, 5.0]]
        >>> runs = eplb.plan(loads, cluster).placement
        >>> later = [[5.0, 40.0, 10.0, 10.0, 10.0, 10.0, 5.0, 90.0]]
        >>> new = eplb.plan(later, cluster, current=runs, max_moves=3).placement
        >>> found = eplb.migrate(runs, new, bytes_per_expert=44_040_192)
        >>> len(found.wave), found.total_bytes
        (3, 132120576)

    Args:
        old: the placement that runs.
        new: the one to reach. It may have more GPUs or fewer, and other slots on each: GPU g of one
            is GPU g of the other. Those that are gone only send; those that are added only receive;
            those that are dead in it send nothing, and stand as the source of experts that have no
            other copy, which are to be read from the checkpoint.
        experts_at_once: most experts that a GPU sends, and that it receives, in a wave.
        uplink_share: most experts that leave a node, and that enter it, in a wave; None for as many
            as its GPUs send and receive.
        spare_slots: buffers of one expert's weights that a GPU has, for all layers; None for as
            many as it takes. With few there are more waves, and in rare cases another source.
        leaving: GPUs that the new placement takes for dead and that still run: they are taken away
            on purpose, so they can send what they hold.
        loads: [L, E] or [T, L, E] tokens of each expert. Layers go first whose busiest GPU loses
            most load for each expert received, mean over windows; without loads, lower ones.
        bytes_per_expert: bytes of one expert's weights in one layer, as in `eplb.cost.MODELS`.
        bandwidth_within: GB/s (10^9 bytes) that a GPU sends and at the same time receives.
        bandwidth_between: GB/s that leave a node and at the same time enter it, all GPUs together.

    Returns:
        The migration. `seconds` adds up, over waves, the time of the slowest GPU or uplink: a GPU's
        bytes, wherever they go, over `bandwidth_within`, and what leaves or enters a node over
        `bandwidth_between`, which is not needed where nothing crosses nodes. Nothing is added for
        starting a wave or for copies inside a GPU.

    Raises:
        PlacementError: no placements, or of other layers or experts.
        ClusterError: clusters of several nodes with other numbers of GPUs on a node, or bytes that
            are no whole number of 1 or more.
        OptionError: a GPU that is leaving and stays in the new placement, a limit below 1, fewer
            buffers than would do, or a bandwidth not above 0.
        LoadsError: loads of another shape, or values that are no numbers of tokens.
    """
    check_placement(old, "old")
    check_placement(new, "new")
    limits = Limits(
        whole_number(experts_at_once, "experts_at_once"),
        None if uplink_share is None else whole_number(uplink_share, "uplink_share"),
        None if spare_slots is None else whole_number(spare_slots, "spare_slots", least=0),
    )
    size = expert_bytes_of(None, bytes_per_expert)
    within, between = (
        None if value is None else real_number(value, name, "GB/s")
        for name, value in (
            ("bandwidth_within", bandwidth_within),
            ("bandwidth_between", bandwidth_between),
        )
    )
    left = frozenset(
        whole_number(gpu, "a leaving GPU", least=0, most=new.cluster.num_gpus - 1)
        for gpu in leaving
    )
    for gpu in sorted(left.difference(new.cluster.dead)):
        raise OptionError(
            f"GPU {gpu} is leaving, and the new placement has experts on it: give one that was "
            f"planned with GPU {gpu} dead (--dead {gpu})"
        )
    change = arrivals_between(old, new, sorted(left))
    crossing = int(np.bincount(change.node).max()) * limits.experts_at_once
    if limits.uplink_share is not None and limits.uplink_share >= crossing:
        # The GPUs of a node never send more than that.
        limits = replace(limits, uplink_share=None)
    rank = _rank(old, new, np.bincount(change.layer, minlength=old.num_layers), loads)
    nothing = not ((change.old != change.new) & (change.new >= 0)).any()
    if limits.spare_slots == 0:
        if not nothing:
            raise OptionError(
                "spare_slots is 0: give 1 or more, because experts are received in a buffer"
            )
        limits = replace(limits, spare_slots=None)

    source = nearest_sources(change)
    needs = needs_of(change)
    spare, num_gpus = limits.spare_slots, len(change.node)
    # As few waves as there can be, if the buffers do.
    wave, _ = waves_of(change, needs, source, rank, replace(limits, spare_slots=None))
    gone = needs.gone(change, source, wave)
    buffer, buffers = lay_out(change.target, wave, needs.until(gone, wave), num_gpus)
    if spare is not None and buffers.max() > spare:
        wave, source = waves_of(change, needs, source, rank, limits)
        gone = needs.gone(change, source, wave)
        buffer, buffers = lay_out(change.target, wave, needs.until(gone, wave), num_gpus)
    num_waves = int(wave.max(initial=-1)) + 1
    copies = copies_of(change, needs, wave, gone, buffer, num_waves)
    np.maximum.at(buffers, copies.gpu[copies.slot < 0], 1)

    _freeze(buffers)
    order = np.lexsort((change.target, rank[change.layer], wave))
    far = change.node[source] != change.node[change.target]
    num_far = int(far.sum())
    source_slot = _source_slots(change, source, wave, buffer, copies)
    return Migration(
        layer=_freeze(change.layer[order]),
        expert=_freeze(change.expert[order]),
        source=_freeze(source[order]),
        target=_freeze(change.target[order]),
        source_slot=_freeze(source_slot[order]),
        slot=_freeze(change.slot[order]),
        buffer=_freeze(buffer[order]),
        wave=_freeze(wave[order]),
        copies=copies,
        num_waves=num_waves,
        fewest_waves=fewest_waves(change, source, limits),
        spare_slots=buffers,
        num_lost=int(np.isin(source, sorted(set(new.cluster.dead) - left)).sum()),
        num_between_nodes=num_far,
        total_bytes=None if size is None else size * len(far),
        bytes_between_nodes=None if size is None else size * num_far,
        seconds=_seconds(change, source, wave, size, within, between),
    )


def _rank(old: Placement, new: Placement, moves: _I64, loads: Any) -> _I64:
    """[L] 0 for the layer whose busiest GPU loses most load for each expert received."""
    num_layers = old.num_layers
    gain = np.zeros(num_layers)
    if loads is not None:
        windows = check_windows(loads)
        before, after = (place.peaks(windows).mean(axis=0) for place in (old, new))
        gain = (before - after) / np.maximum(moves, 1)
    rank = np.empty(num_layers, np.int64)
    rank[np.argsort(-gain, kind="stable")] = np.arange(num_layers)
    return rank


def _source_slots(change: Arrivals, source: _I64, wave: _I64, buffer: _I64, copies: Copies) -> _I64:
    """[M] where each source has what it sends, by the time that it does."""
    there = change.old[change.layer, source] == change.expert[:, None]
    stays = there & (change.new[change.layer, source] == change.expert[:, None])
    slots: _I64 = np.where(stays.any(axis=1), stays.argmax(axis=1), there.argmax(axis=1))

    def keys(layer: _I64, gpu: _I64, expert: _I64) -> _I64:
        return np.ravel_multi_index((layer, gpu, expert), change.had.shape)

    sent = keys(change.layer, source, change.expert)
    landed = keys(change.layer, change.target, change.expert)
    buffer_of = dict(zip(landed.tolist(), buffer.tolist(), strict=True))
    for row in np.flatnonzero(~there.any(axis=1)).tolist():
        slots[row] = -1 - buffer_of[int(sent[row])]
    copied = keys(copies.layer, copies.gpu, copies.expert)
    rows_of: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.isin(copied, sent)).tolist():
        rows_of.setdefault(int(copied[row]), []).append(row)
    for row in np.flatnonzero(np.isin(sent, copied)).tolist():
        for done in rows_of[int(sent[row])]:
            if copies.wave[done] <= wave[row]:
                slots[row] = copies.slot[done]
    return slots


def _seconds(
    change: Arrivals,
    source: _I64,
    wave: _I64,
    size: int | None,
    within: float | None,
    between: float | None,
) -> float | None:
    ends = source, change.target
    far = change.node[source] != change.node[change.target]
    if size is None or within is None or (between is None and far.any()):
        return None
    if not len(wave):
        return 0.0
    seconds = np.zeros(int(wave.max()) + 1)
    for end in ends:
        experts = _most_in_wave(wave, end, len(seconds))
        np.maximum(seconds, experts * (size / (within * 1e9)), out=seconds)
        if between is not None:
            experts = _most_in_wave(wave[far], change.node[end[far]], len(seconds))
            np.maximum(seconds, experts * (size / (between * 1e9)), out=seconds)
    return math.fsum(seconds.tolist())


def _most_in_wave(wave: _I64, owner: _I64, num_waves: int) -> _I64:
    """[W] most transfers of one owner in a wave."""
    num_owners = int(owner.max(initial=0)) + 1
    counts = np.bincount(wave * num_owners + owner, minlength=num_waves * num_owners)
    most: _I64 = counts.reshape(num_waves, num_owners).max(axis=1)
    return most


def _freeze(array: _I64) -> _I64:
    array.flags.writeable = False
    return array
