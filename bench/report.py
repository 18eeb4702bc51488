"""What a run found, as data: the one source of the table, the JSON and the bars."""

from dataclasses import asdict, dataclass, field
from typing import Any

from small import Small
from startup import Startup

__all__ = ["CellReport", "Growth", "Machine", "Report", "Row"]


@dataclass(frozen=True)
class Machine:
    """Where it ran.

    Attributes:
        processors: that the process may use.
        versions: of Python and the packages that matter.
        torch_threads: that the peers' torch uses.
    """

    processors: int
    versions: dict[str, str]
    torch_threads: int


@dataclass(frozen=True)
class Row:
    """One planner in one cell; where `failed` says why it gave nothing, the rest is empty.

    Attributes:
        who: its name.
        ours: whether it is this project's.
        failed: the error that it raised.
        ms: median time of a call.
        fastest_ms: least time of a call.
        ratio: each peer's `ms` over this one's.
        fastest_ratio: each peer's `fastest_ms` over this one's.
        balancedness: mean over layers of mean GPU load / max GPU load.
        duplicates: slots with a second copy of an expert on a GPU.
        gap_mean: peak over our proven bound, less 1, mean over layers.
        gap_worst: the same of the worst layer.
        even_gap_mean: `gap_mean` of the layers whose bound is the mean GPU load, if any.
        even_gap_worst: `gap_worst` of those.
        groups_kept: whether each group is on one node, where groups matter.
        node_gap: busiest node's load over the least there is, less 1, in the worst layer, where
            groups matter and the ways to place them are few enough to try.
        same_plan: whether it is the plan of the first row, for ours.
    """

    who: str
    ours: bool
    failed: str | None = None
    ms: float | None = None
    fastest_ms: float | None = None
    ratio: dict[str, float] = field(default_factory=dict)
    fastest_ratio: dict[str, float] = field(default_factory=dict)
    balancedness: float | None = None
    duplicates: int | None = None
    gap_mean: float | None = None
    gap_worst: float | None = None
    even_gap_mean: float | None = None
    even_gap_worst: float | None = None
    groups_kept: bool | None = None
    node_gap: float | None = None
    same_plan: bool | None = None


@dataclass(frozen=True)
class CellReport:
    """One cell and everybody in it.

    `others` says how many processors other programs kept busy meanwhile; None if unknown.
    """

    name: str
    layers: int
    experts: int
    slots: int
    gpus: int
    groups: int
    nodes: int
    others: float | None
    rows: list[Row]

    @property
    def slots_per_gpu(self) -> int:
        """S."""
        return self.slots // self.gpus


@dataclass(frozen=True)
class Growth:
    """Time of ours per slot in a large cell and in the first one.

    Attributes:
        who: ours, on so many threads.
        first: name of the first cell.
        large: name of the large one.
        first_ns: nanoseconds per slot and layer.
        large_ns: the same.
        ratio: large_ns / first_ns.
    """

    who: str
    first: str
    large: str
    first_ns: float
    large_ns: float
    ratio: float


@dataclass(frozen=True)
class Report:
    """A run: what was not asked for is None or empty."""

    machine: Machine
    peers: list[str]
    cells: list[CellReport]
    growth: list[Growth]
    small: Small | None
    startup: Startup | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
