"""Many replays at once: policies x clusters x cadences, over cores or over a user's own cluster.

The work goes through joblib, so whatever backend is active does it: this machine's cores by
default, a Dask or Ray cluster inside `joblib.parallel_config`.
"""

import itertools
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eplb.cluster import Cluster, whole_number
from eplb.comparison import Score, score
from eplb.errors import MissingExtraError
from eplb.models import EXPERT_BYTES
from eplb.policies import named_policies, named_policy
from eplb.replayer import HISTORY, Replay, replay_of, replay_steps
from eplb.trace import LoadTrace

__all__ = ["SweepRow", "sweep", "sweep_rows"]


@dataclass(frozen=True)
class SweepRow:
    """One replay of a sweep: what it was, and what it gave.

    Attributes:
        gpus: G; nodes: N; slots: P, of which `spare` are more than there are experts.
        every: windows from one plan to the next.
        score: the figures; the gain is over the sweep's first policy on the same cluster at the
            same cadence.
    """

    gpus: int
    nodes: int
    slots: int
    spare: int
    every: int
    score: Score

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values, in one level."""
        own = {name: value for name, value in vars(self).items() if name != "score"}
        return {**own, **asdict(self.score)}


def sweep(
    trace: LoadTrace,
    clusters: Sequence[Cluster],
    policies: Sequence[str],
    *,
    every: Sequence[int] = (1,),
    num_groups: int = 1,
    history: int = HISTORY,
    first: int = 1,
    jobs: int | None = None,
) -> list[SweepRow]:
    """Replay a trace with every policy on every cluster at every cadence.

    Args:
        trace: the windows, in the order in which they happened.
        clusters: the clusters to try.
        policies: names in `eplb.policies.POLICIES`, or paths of Python files.
        every: windows from one plan to the next, for each cadence to try.
        num_groups: as in `eplb.replay`; so are history and first.
        history: most windows that a policy is shown.
        first: the first window served.
        jobs: replays at a time, -1 for one a core; None for what `joblib.parallel_config` says, or
            one at a time where nothing is said.

    Returns:
        A row for each replay: by cluster, then cadence, then policy, as given.

    Raises:
        EplbError: as for `eplb.replay`.
        MissingExtraError: without joblib.
    """
    rows = sweep_rows(
        trace,
        clusters,
        policies,
        every=every,
        num_groups=num_groups,
        history=history,
        first=first,
        jobs=jobs,
    )
    return list(rows)


def sweep_rows(
    trace: LoadTrace,
    clusters: Sequence[Cluster],
    policies: Sequence[str],
    *,
    every: Sequence[int] = (1,),
    num_groups: int = 1,
    history: int = HISTORY,
    first: int = 1,
    jobs: int | None = None,
) -> Generator[SweepRow, None, None]:
    """The rows of a sweep one by one, as they are done, so that a user may stop after any.

    Arguments and errors are those of `sweep`.
    """
    try:
        import joblib
    except ImportError:
        raise MissingExtraError("joblib", "sweep", "a sweep") from None
    if jobs not in (None, -1):
        whole_number(jobs, "jobs")
    called = list(named_policies(policies))  # what is wrong with one is told before the first runs
    cells = list(itertools.product(clusters, every, zip(called, policies, strict=True)))
    work = joblib.Parallel(n_jobs=jobs, return_as="generator")
    replays = work(
        joblib.delayed(_replay)(trace, cluster, name, path, num_groups, cadence, history, first)
        for cluster, cadence, (name, path) in cells
    )
    reference = None
    for number, ((cluster, cadence, _), replayed) in enumerate(zip(cells, replays, strict=True)):
        if number % len(policies) == 0:
            reference = replayed
        yield SweepRow(
            gpus=cluster.num_gpus,
            nodes=cluster.num_nodes,
            slots=cluster.num_slots,
            spare=cluster.num_slots - trace.num_experts,
            every=cadence,
            score=score(replayed, reference),
        )


def _replay(
    trace: LoadTrace,
    cluster: Cluster,
    name: str,
    path: str,
    num_groups: int,
    every: int,
    history: int,
    first: int,
) -> Replay:
    """One replay, in whatever process joblib runs it; files are loaded there."""
    policy = named_policy(path, threads=1)
    walk = replay_steps(
        trace, cluster, policy, num_groups=num_groups, every=every, history=history, first=first
    )
    return replay_of(list(walk), name, cluster, EXPERT_BYTES.get(trace.model or ""))
