"""What synthetic loads are made from: `Workload`, its parameters with their units, and presets.

A preset is fitted to figures of loads that were recorded from the model.
"""

import math
from dataclasses import dataclass, replace

from eplb.checks import real_number, whole_number
from eplb.errors import LoadsError

_MOST_SKEW = 20.0
"""Nats: one expert has all the load already."""


@dataclass(frozen=True)
class Phase:
    """One of several separate workloads of a model, such as prefill of short prompts.

    Attributes:
        name: of the window that stands for it.
        skew: its standard deviation of the log of shares, as a multiple of the workload's.
        direction: a vector, of any length above 0; missing coordinates are 0. The cosine between
            the directions of two phases is the correlation of the log of their shares, but for
            their tail.
    """

    name: str
    skew: float = 1.0
    direction: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        real_number(self.skew, "skew", above=False, error=LoadsError)
        if not 0.0 < self.length < math.inf:
            raise LoadsError(f"direction is {self.direction}: give a vector of a length above 0")

    @property
    def length(self) -> float:
        """Length of the direction."""
        return math.hypot(*self.direction)


@dataclass(frozen=True)
class Workload:
    """How the loads of a model are spread over its experts, and how they change.

    A topic is what a run of requests is about: experts have their own shares in each. Shares are
    log-normal, or with a tail that differs. Time is counted in tokens through the model, so the
    loads are of the same process whatever the size of a window.

    Attributes:
        model: its name.
        num_layers: MoE layers.
        num_dense_layers: layers before them that have no experts; their loads are zero.
        num_experts: experts of a layer.
        top_k: experts that a token is routed to in a layer.
        skew: least and greatest standard deviation of the log of experts' shares within a topic, in
            nats; layers lie evenly between.
        tail: 0 for log-normal shares. Below 0, more experts are almost idle and the hottest less
            hot; above 0, the hottest are hotter. The log of a share is (exp(tail x) - 1) / tail of
            a normal x, scaled.
        num_topics: topics there are; each costs the memory of L x E numbers.
        topic_spread: standard deviation of the log ratio of an expert's shares in two topics, in
            nats; at most 1.414 times the least skew, where topics have nothing in common.
        topics_at_once: topics that share the tokens of any moment, evenly.
        topic_tokens: tokens through the model until one of them ends, on average; another, drawn
            from all, takes its place.
        burst_spread: standard deviation of the log of the factor by which a burst (tokens that are
            much alike: one long request, or many with the same prompt) changes each share, in nats;
            at most 4 times the least skew. The tail bends it as it bends the shares.
        burst_tokens: tokens that a burst lasts, on average.
        burst_gap: tokens between a burst and the next, on average: 0 where they follow each other,
            infinite where there are none. Each burst costs the time of drawing L x E numbers. Its
            tokens are of one of the topics that are there.
        phases: separate workloads of the model; the first is the one that a trace shows.

    Raises:
        LoadsError: a value that is no such number.
    """

    model: str
    num_layers: int
    num_experts: int
    top_k: int
    skew: tuple[float, float]
    num_dense_layers: int = 0
    tail: float = 0.0
    num_topics: int = 1
    topic_spread: float = 0.0
    topics_at_once: int = 1
    topic_tokens: float = math.inf
    burst_spread: float = 0.0
    burst_tokens: float = 1.0
    burst_gap: float = math.inf
    phases: tuple[Phase, ...] = (Phase("all"),)

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_experts", "top_k", "num_topics", "topics_at_once"):
            whole_number(getattr(self, name), name, error=LoadsError)
        whole_number(self.num_dense_layers, "num_dense_layers", least=0, error=LoadsError)
        if self.top_k > self.num_experts:
            raise LoadsError(
                f"top_k is {self.top_k}: a token goes to 1 to {self.num_experts} experts"
            )
        for name in ("topic_spread", "burst_spread"):
            real_number(getattr(self, name), name, above=False, error=LoadsError)
        for name in ("topic_tokens", "burst_tokens"):
            real_number(
                getattr(self, name), name, least=1.0, above=False, infinite=True, error=LoadsError
            )
        real_number(self.burst_gap, "burst_gap", above=False, infinite=True, error=LoadsError)
        if not isinstance(self.tail, int | float) or not abs(self.tail) <= 1.0:
            raise LoadsError(f"tail is {self.tail}: give -1 to 1")
        low = self._least_skew()
        if not self.phases or not all(isinstance(phase, Phase) for phase in self.phases):
            raise LoadsError(f"phases are {self.phases}: give 1 Phase or more")
        least = low * self.phases[0].skew
        for name, times in (("topic_spread", math.sqrt(2.0)), ("burst_spread", 4.0)):
            if getattr(self, name) > times * least:
                raise LoadsError(
                    f"{name} is {getattr(self, name)}: give at most {times:.4g} times the least "
                    f"skew, {times * least:.4g}"
                )

    def _least_skew(self) -> float:
        try:
            low, high = map(float, self.skew)
        except (TypeError, ValueError):
            low, high = math.nan, math.nan
        if not 0.0 <= low <= high <= _MOST_SKEW:
            raise LoadsError(
                f"skew is {self.skew}: give the least and the greatest, from 0 to {_MOST_SKEW:g}"
            )
        return low


_DEEPSEEK_V3 = Workload(
    model="DeepSeek-V3",
    num_layers=58,
    num_dense_layers=3,
    num_experts=256,
    top_k=8,
    skew=(0.45, 0.75),
    tail=0.05,
    num_topics=16,
    topic_spread=0.3,
    topics_at_once=8,
    topic_tokens=50e6,
    phases=(
        Phase("decode-500", 1.0, (1.0,)),
        Phase("decode-1800", 1.1, (0.86, 0.51)),
        Phase("prefill-2048", 1.23, (0.73, 0.53, 0.44)),
        Phase("prefill-512", 0.98, (0.64, 0.51, 0.45, 0.36)),
    ),
)

PRESETS: dict[str, Workload] = {
    "deepseek-v3": _DEEPSEEK_V3,
    "deepseek-v3-mix": replace(
        _DEEPSEEK_V3,
        skew=(0.65, 0.95),
        tail=-0.05,
        topic_spread=0.85,
        topics_at_once=1,
        topic_tokens=1.2e6,
        burst_spread=0.35,
        burst_tokens=100e3,
        burst_gap=0.0,
    ),
    "qwen3-235b": Workload(
        model="Qwen3-235B-A22B",
        num_layers=94,
        num_experts=128,
        top_k=8,
        skew=(2.45, 2.95),
        tail=-0.45,
        num_topics=16,
        topic_spread=0.5,
        topics_at_once=8,
        topic_tokens=50e6,
    ),
    "gpt-oss-20b": Workload(
        model="gpt-oss-20b",
        num_layers=24,
        num_experts=32,
        top_k=4,
        skew=(1.4, 2.6),
        tail=-0.67,
        num_topics=8,
        topic_spread=1.7,
        topic_tokens=50e3,
        burst_spread=1.4,
        burst_tokens=900.0,
        burst_gap=0.0,
    ),
}
"""Fitted workloads by name.

- deepseek-v3: a service of one kind, such as chat. An iteration of decoding that was recorded has
  about 710 tokens. Its phases are named after the length of their prompts, in tokens.
- deepseek-v3-mix: the same model where kinds of requests come one after the other.
- qwen3-235b: many experts are almost idle. How it drifts is not known from records, so that is
  DeepSeek-V3's, a little wider.
- gpt-oss-20b: one request after the other, in blocks of a domain.
"""
