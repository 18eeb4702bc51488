"""Loads made to behave like recorded ones, for demonstrations, tests and benchmarks.

A workload (`PRESETS`) says how skewed a model's loads are and how they change: topics that come, go
and return, bursts, and the noise of counting whole tokens. The same seed gives the same loads, and
a trace of fewer windows is the beginning of one with more.
"""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eplb.checks import whole_number
from eplb.errors import LoadsError
from eplb.formats.safe import LARGEST
from eplb.loads import LoadTrace
from eplb.synthetic.presets import PRESETS, Phase, Workload

__all__ = ["PRESETS", "Phase", "Workload", "deepseek_v3", "trace", "workloads"]

_Array: TypeAlias = NDArray[np.float64]

# What each stream of random numbers is for: none depends on how much of another was used.
_SKEW, _EXPERTS, _TOPIC, _TOPICS, _BURST, _BURSTS, _COUNTS = range(7)

_AT_ONCE = 256
"""Times are drawn by so many, however many are needed."""

_FOREVER = 1e30
"""Tokens: longer than any trace, and far below where sums overflow."""

_MOST_TIMES = 1_000_000
"""Topics and bursts of a trace: each is drawn by itself."""
_MOST_DRAWN = 2**62
"""Choices of experts that are drawn at once."""


def trace(
    workload: str | Workload,
    *,
    num_windows: int,
    tokens_per_window: int,
    seed: int = 0,
    **changes: Any,
) -> LoadTrace:
    """Loads of a model over time, in the first of the workload's phases.

    Args:
        workload: a name in `PRESETS`, or what to make loads of.
        num_windows: T.
        tokens_per_window: tokens that pass through the model in a window; each is routed to top_k
            experts in every layer. The counts are drawn, so fewer tokens are noisier.
        seed: of the random numbers.
        changes: fields of the workload to use instead of its own.

    Returns:
        A trace of [T, L, E] whole numbers of tokens, dense layers first, as SGLang dumps them.

    Raises:
        LoadsError: no such preset or field, a value that is no such number, or more windows or
            tokens than can be drawn or read again.
    """
    workload = _changed(workload, changes)
    num_windows = whole_number(num_windows, "num_windows", error=LoadsError)
    tokens = whole_number(tokens_per_window, "tokens_per_window", error=LoadsError)
    seed = whole_number(seed, "seed", least=0, error=LoadsError)
    _check_size(workload, num_windows, tokens)
    _check_times(workload, num_windows, tokens)
    shares = _shares_of_windows(workload, num_windows, tokens, seed)
    return _sampled(workload, shares, num_windows, tokens, seed, ())


def workloads(
    workload: str | Workload, *, tokens: int = 10_000_000, seed: int = 0, **changes: Any
) -> LoadTrace:
    """Loads of separate workloads of a model, its phases, each added up to a window.

    They differ in how skewed they are and in which experts are hot. Each is long enough to hold
    every topic, so topics and bursts have no part in them.

    Args:
        workload: a name in `PRESETS`, or what to make loads of.
        tokens: tokens that pass through the model in each.
        seed: of the random numbers.
        changes: fields of the workload to use instead of its own.

    Returns:
        A trace of a window for each phase, named by it; [T, L, E] as from `trace`.

    Raises:
        LoadsError: no such preset or field, a value that is no such number, or more tokens than
            can be drawn.
    """
    workload = _changed(workload, changes)
    tokens = whole_number(tokens, "tokens", error=LoadsError)
    seed = whole_number(seed, "seed", least=0, error=LoadsError)
    phases = workload.phases
    _check_size(workload, len(phases), tokens)
    spread = _spread(workload, seed)
    shares = (
        _shares(_tailed(_latent(workload, phase, seed), workload.tail) * spread * phase.skew)
        for phase in phases
    )
    names = [phase.name for phase in phases]
    return _sampled(workload, shares, len(phases), tokens, seed, names)


def deepseek_v3(*, tokens: int = 100_000, seed: int = 0) -> NDArray[np.float64]:
    """A load of DeepSeek-V3's MoE layers alone: 58 layers of 256 experts, top 8.

    It is the preset's phase "decode-1800", whose skew is in the middle of those recorded.

    Args:
        tokens: tokens that pass through the model; each is routed to 8 experts in every layer, so
            a layer's load adds up to 8 times this. The counts are drawn, so fewer tokens are
            noisier.
        seed: of the random numbers; the same seed gives the same loads.

    Returns:
        [58, 256], whole numbers of tokens.

    Raises:
        LoadsError: fewer than 1 token, or a seed below 0.
    """
    preset = PRESETS["deepseek-v3"]
    middle = tuple(phase for phase in preset.phases if phase.name == "decode-1800")
    made = workloads(preset, tokens=tokens, seed=seed, phases=middle)
    loads: _Array = made.loads[0, preset.num_dense_layers :].copy()
    return loads


def _changed(workload: str | Workload, changes: dict[str, Any]) -> Workload:
    if isinstance(workload, str):
        if workload not in PRESETS:
            raise LoadsError(f"there is no preset {workload!r}: give one of {', '.join(PRESETS)}")
        workload = PRESETS[workload]
    known = [field.name for field in fields(Workload)]
    for name in changes:
        if name not in known:
            raise LoadsError(f"a workload has no {name!r}: it has {', '.join(known)}")
    return replace(workload, **changes)


def _check_size(workload: Workload, num_windows: int, tokens: int) -> None:
    """Refuse a trace that could not be read again, before memory is taken for it."""
    of_window = (workload.num_dense_layers + workload.num_layers) * workload.num_experts * 8
    if num_windows * of_window > LARGEST:
        raise LoadsError(
            f"{num_windows:,} windows would take {num_windows * of_window / 2**30:,.0f} GiB, and "
            f"traces are read up to {LARGEST >> 30}: give {LARGEST // of_window:,} windows or fewer"
        )
    if workload.top_k * tokens > _MOST_DRAWN:
        most = _MOST_DRAWN // workload.top_k
        raise LoadsError(f"a window has {tokens:,} tokens: give {most:,} or fewer")


def _check_times(workload: Workload, num_windows: int, tokens: int) -> None:
    """Refuse a trace of so many topics or bursts that they would take hours to draw."""
    bursts = workload.burst_spread > 0.0
    mean = min(
        workload.topic_tokens / workload.topics_at_once,
        workload.burst_tokens + workload.burst_gap if bursts else math.inf,
    )
    if num_windows * tokens > _MOST_TIMES * mean:
        raise LoadsError(
            f"{num_windows:,} windows of {tokens:,} tokens hold more topics or bursts than the "
            f"{_MOST_TIMES:,} that are drawn: give {int(_MOST_TIMES * mean):,} tokens or fewer "
            "in all windows together"
        )


def _spread(workload: Workload, seed: int) -> _Array:
    """[L, 1] standard deviation of the log of shares by layer."""
    spread: _Array = np.linspace(*workload.skew, workload.num_layers)[:, None]
    np.random.default_rng((seed, _SKEW)).shuffle(spread)
    return spread


def _normal(workload: Workload, *stream: int) -> _Array:
    """[L, E] normal numbers."""
    shape = (workload.num_layers, workload.num_experts)
    return np.random.default_rng(stream).standard_normal(shape)


def _latent(workload: Workload, phase: Phase, seed: int) -> _Array:
    """[L, E] normal numbers that a phase's shares are made of, before their tail and spread."""
    latent = np.zeros((workload.num_layers, workload.num_experts))
    for axis, part in enumerate(phase.direction):
        latent += part / phase.length * _normal(workload, seed, _EXPERTS, axis)
    return latent


def _tailed(normal: _Array, tail: float) -> _Array:
    """Normal numbers with a tail (Tukey's g distribution), mean 0 and standard deviation 1."""
    if abs(tail) < 1e-6:
        return normal
    mean = np.expm1(tail**2 / 2.0)
    deviation = np.exp(tail**2 / 2.0) * np.sqrt(np.expm1(tail**2))
    tailed: _Array = (np.expm1(tail * normal) - mean) / (deviation * np.sign(tail))
    return tailed


def _shares(log_weight: _Array) -> _Array:
    """[..., E] shares in proportion to weights given by their log."""
    weight: _Array = np.exp(log_weight - log_weight.max(axis=-1, keepdims=True))
    weight /= weight.sum(axis=-1, keepdims=True)
    return weight


def _shares_of_windows(
    workload: Workload, num_windows: int, tokens: int, seed: int
) -> Iterator[_Array]:
    """The shares of each window [L, E], not limited to 1 / top_k."""
    spread = _spread(workload, seed) * workload.phases[0].skew
    latent = _topics(workload, spread, seed)
    topics = [_shares(_tailed(of_topic, workload.tail) * spread) for of_topic in latent]
    burst_latent = workload.burst_spread / np.where(spread > 0.0, spread, 1.0)
    edges = tokens * np.arange(num_windows + 1.0)
    places = [_topic_times(workload, edges[-1], seed, at) for at in range(workload.topics_at_once)]
    begins, ends = _burst_times(workload, edges[-1], seed)
    parts = np.zeros((num_windows, len(topics)))
    for place in places:
        parts += _topic_parts(place, edges, begins, ends, len(topics)) / (tokens * len(places))
    for window, topic_parts in enumerate(parts):
        shares = np.zeros_like(latent[0])
        for topic in np.flatnonzero(topic_parts):
            shares += topic_parts[topic] * topics[topic]
        first, last = edges[window : window + 2]
        for burst in range(
            int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(begins, last))
        ):
            # Of a topic that is there when the burst begins.
            changed = burst_latent * _normal(workload, seed, _BURST, burst)
            changed += latent[_topic_at(places[burst % len(places)], begins[burst])]
            part = (min(ends[burst], last) - max(begins[burst], first)) / tokens
            shares += part * _shares(_tailed(changed, workload.tail) * spread)
        yield shares


def _topics(workload: Workload, spread: _Array, seed: int) -> _Array:
    """[K, L, E] normal numbers that the shares within each topic are made of."""
    # Two topics share all of the number but this part of it.
    own = workload.topic_spread / np.sqrt(2.0) / np.where(spread > 0.0, spread, 1.0)
    common = np.sqrt(1.0 - np.minimum(own, 1.0) ** 2) * _latent(workload, workload.phases[0], seed)
    normals = (_normal(workload, seed, _TOPIC, topic) for topic in range(workload.num_topics))
    return np.stack([common + own * normal for normal in normals])


_Times: TypeAlias = tuple[_Array, NDArray[np.int64]]


def _topic_times(workload: Workload, end: float, seed: int, place: int) -> _Times:
    """The topics that follow each other in a place: when each begins, and which it is."""
    random = np.random.default_rng((seed, _TOPICS, place))
    mean = min(workload.topic_tokens, _FOREVER)
    begins, topics = [np.zeros(1)], []
    while begins[-1][-1] < end:
        begins.append(begins[-1][-1] + random.exponential(mean, _AT_ONCE).cumsum())
        topics.append(random.integers(workload.num_topics, size=_AT_ONCE))
    # The last time is past the end, and has no topic.
    return np.concatenate(begins)[:-1], np.concatenate(topics)


def _topic_at(times: _Times, time: float | _Array) -> Any:
    begins, topics = times
    return topics[np.searchsorted(begins, time, side="right") - 1]


def _burst_times(workload: Workload, end: float, seed: int) -> tuple[_Array, _Array]:
    """When each burst begins and ends."""
    if workload.burst_spread == 0.0 or workload.burst_gap > _FOREVER:
        return np.empty(0), np.empty(0)
    random = np.random.default_rng((seed, _BURSTS))
    mean = np.array([workload.burst_gap, min(workload.burst_tokens, _FOREVER)])
    times = [np.zeros(1)]
    while times[-1][-1] < end:
        steps = random.exponential(mean, (_AT_ONCE, 2)).ravel()
        times.append(times[-1][-1] + steps.cumsum())
    edges = np.concatenate(times[1:])
    return edges[::2], edges[1::2]


def _topic_parts(
    times: _Times, edges: _Array, begins: _Array, ends: _Array, num_topics: int
) -> _Array:
    """[T, K] tokens of each topic in each window, those within bursts left out."""
    cuts = np.unique(np.concatenate([edges, times[0], begins, ends]))
    cuts = cuts[cuts <= edges[-1]]
    at, length = cuts[:-1], np.diff(cuts)
    # Each piece lies within one window, one topic, and within a burst or none.
    burst = np.searchsorted(begins, at, side="right") - 1
    in_burst = (burst >= 0) & (at < np.append(ends, np.inf)[burst])
    window = np.searchsorted(edges, at, side="right") - 1
    parts = np.zeros((edges.size - 1, num_topics))
    np.add.at(parts, (window, _topic_at(times, at)), np.where(in_burst, 0.0, length))
    return parts


def _sampled(
    workload: Workload,
    shares: Iterator[_Array],
    num_windows: int,
    tokens: int,
    seed: int,
    names: list[str] | tuple[()],
) -> LoadTrace:
    """Counts drawn by shares, as a trace."""
    num_dense = workload.num_dense_layers
    random = np.random.default_rng((seed, _COUNTS))
    loads = np.zeros((num_windows, num_dense + workload.num_layers, workload.num_experts))
    for window, share in zip(loads, shares, strict=True):
        window[num_dense:] = _counts(
            _limited(share, workload.top_k), tokens, workload.top_k, random
        )
    loads.flags.writeable = False
    return LoadTrace(loads, names, top_k=workload.top_k, model=workload.model)


def _limited(shares: _Array, top_k: int) -> _Array:
    """Shares of which none is above 1 / top_k: a token picks an expert once."""
    most = 1.0 / top_k
    # At most top_k experts reach the limit, the last only with all the rest at zero.
    for _ in range(top_k):
        over = shares > most
        if not over.any():
            break
        shares = np.minimum(shares, most)
        at_most = shares >= most
        free = np.where(at_most, 0.0, shares)
        left = 1.0 - at_most.sum(axis=-1, keepdims=True) * most
        total = free.sum(axis=-1, keepdims=True)
        shares = np.where(at_most, most, free * (left / np.where(total > 0.0, total, 1.0)))
    return shares


def _counts(
    shares: _Array, tokens: int, top_k: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """[L, E] counts that add up to top_k times the tokens, none above the tokens."""
    counts: NDArray[np.int64] = random.multinomial(top_k * tokens, shares)
    while (counts > tokens).any():
        excess = np.maximum(counts - tokens, 0)
        counts -= excess
        free = np.where(counts < tokens, shares + 1e-300, 0.0)
        total = free.sum(axis=-1, keepdims=True)
        free /= np.where(total > 0.0, total, 1.0)
        counts += random.multinomial(excess.sum(axis=-1), free)
    return counts
