"""Many replays at once: policies x clusters x cadences, over cores or over a user's own cluster.

The work goes through joblib, so whatever backend is active does it: this machine's cores by
default, a Dask cluster by the address of its scheduler, any other, such as Ray's, inside
`joblib.parallel_config`.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from numbers import Integral
from typing import Any
from uuid import uuid4

from eplb import __version__
from eplb.checks import in_one_line, whole_number
from eplb.cluster import Cluster
from eplb.cost.models import expert_bytes_of
from eplb.dispatching.rules import name_of
from eplb.errors import EplbError, MissingExtraError, OptionError, PolicyError
from eplb.loads import LoadTrace
from eplb.planning.backtest import Schedule
from eplb.planning.forecast import HISTORY
from eplb.replaying.compare import Score, score
from eplb.replaying.policies import Policies, Policy, list_of, named_policies, named_policy
from eplb.replaying.replay import Replay, check_replay, replay_of, replay_steps

_SECONDS_TO_ANSWER = 10.0
"""Time in which a Dask scheduler has to answer, and to have a worker."""


@dataclass(frozen=True)
class SweepRow:
    """One replay of a sweep: what it was, and what it gave.

    Attributes:
        gpus: G; nodes: N; slots: P, of which `spare` are more than there are experts.
        every: windows from one plan to the next.
        dispatch: name of the rule of dispatch that the figures are under.
        ordered: whether windows follow each other; else each was held out in turn.
        score: the figures; the gain is over the sweep's first policy on the same cluster at the
            same cadence.
    """

    gpus: int
    nodes: int
    slots: int
    spare: int
    every: int
    dispatch: str
    ordered: bool
    score: Score

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values, in one level."""
        own = {name: value for name, value in vars(self).items() if name != "score"}
        return {**own, **asdict(self.score)}


def sweep(
    trace: LoadTrace,
    clusters: Cluster | Sequence[Cluster],
    policies: Policies,
    *,
    every: int | Sequence[int] = (1,),
    num_groups: int = 1,
    history: int = HISTORY,
    first: int = 1,
    expert_bytes: int | None = None,
    dispatch: Any = "even",
    jobs: int | None = None,
    scheduler: str | None = None,
    progress: Callable[[SweepRow], bool | None] | None = None,
    failed: Callable[[EplbError], object] | None = None,
) -> list[SweepRow]:
    """Replay a trace with every policy on every cluster at every cadence.

    Args:
        trace: the windows, in the order in which they happened; in no order, each is held out in
            turn as in `eplb.replay`.
        clusters: the clusters to try.
        policies: names in `eplb.policies.POLICIES` and paths of Python files, or callables by name,
            which are pickled where the work goes to other processes.
        every: windows from one plan to the next, for each cadence to try.
        num_groups: as in `eplb.replay`; so are history, first, expert_bytes and dispatch.
        history: most windows that a policy is shown.
        first: the first window served.
        expert_bytes: bytes of an expert's weights in one layer.
        dispatch: how windows are served.
        jobs: replays at a time, -1 for one a core; None for what `joblib.parallel_config` says, or
            one at a time where nothing is said.
        scheduler: address of a Dask scheduler, as `tcp://host:8786`, whose workers run the replays
            instead. They must have eplb, and policies in files at the same paths.
        progress: called with each row as it is done; where it returns False the sweep ends, and
            what was done counts.
        failed: called with the error where a policy fails after the first row, in place of raising
            it; the rows before it count.

    Returns:
        A row for each replay: by cluster, then cadence, then policy, as given. A lone cluster,
        policy or cadence need not be in a list.

    Raises:
        EplbError: as for `eplb.replay`.
        OptionError: the scheduler cannot be reached, its workers cannot do the work, or no process
            can be started.
        MissingExtraError: without joblib, or without Dask where a scheduler is given.

    Example:
        >>> import eplb
        >>> trace = eplb.LoadTrace([[[90.0, 30.0, 20.0, 20.0]], [[80.0, 40.0, 20.0, 20.0]]])
        >>> clusters = [eplb.Cluster(2, slots_per_gpu=number) for number in (2, 3)]
        >>> rows = eplb.sweep(trace, clusters, "eplb")
        >>> [(row.slots, round(row.score.balancedness, 3)) for row in rows]
        [(4, 0.8), (6, 1.0)]
    """
    try:
        import joblib
    except ImportError:
        raise MissingExtraError("joblib", "sweep", "a sweep") from None
    if jobs not in (None, -1):
        whole_number(jobs, "jobs")
    if jobs is not None and scheduler is not None:
        raise OptionError("jobs is for this machine's cores: leave it out where a scheduler is")
    # What is wrong with any replay is told before the first runs.
    called = _called(policies)
    size = expert_bytes_of(trace.model, expert_bytes)
    cadences = list_of(every, Integral, "cadences")
    schedules = [Schedule(cadence, history, first) for cadence in cadences]
    cells = [
        _Cell(cluster, schedule, name, policy)
        for cluster in list_of(clusters, Cluster, "clusters")
        for schedule in schedules
        for name, policy in called.items()
    ]
    for cell in cells:
        check_replay(trace, cell.cluster, cell.schedule, num_groups, dispatch)
    sent = _Sent(trace)
    tasks = (
        joblib.delayed(_replay)(os.getpid(), sent, cell, num_groups, size, dispatch)
        for cell in cells
    )
    reference: Replay | None = None
    rows: list[SweepRow] = []
    with (
        contextlib.nullcontext() if scheduler is None else _dask(scheduler) as client,
        _ending_quietly(_started(tasks, jobs, client, sent)) as replays,
    ):
        for number, cell in enumerate(cells):
            try:
                replayed = _next(replays, cell.name, client)
            except EplbError as error:
                if failed is None or not rows:
                    raise
                failed(error)
                break
            if number % len(called) == 0:
                reference = replayed
            rows.append(
                SweepRow(
                    gpus=cell.cluster.num_gpus,
                    nodes=cell.cluster.num_nodes,
                    slots=cell.cluster.num_slots,
                    spare=cell.cluster.num_slots - trace.num_experts,
                    every=cell.schedule.every,
                    dispatch=name_of(dispatch),
                    ordered=trace.ordered,
                    score=score(replayed, reference),
                )
            )
            if progress is not None and progress(rows[-1]) is False:
                break
    return rows


def _next(replays: Iterator[Replay | EplbError], name: str, client: Any) -> Replay:
    """The next replay, which is of the policy of that name."""
    try:
        replayed = next(replays)
    except BrokenExecutor:
        raise PolicyError(
            f"the process that replayed policy {name}, or one beside it, ended: "
            "a policy that ends its process, or too little memory"
        ) from None
    except Exception as error:
        if client is None:
            raise
        raise PolicyError(
            f"the Dask cluster did not replay policy {name}: {in_one_line(error)}"
        ) from None
    if isinstance(replayed, EplbError):
        raise replayed
    return replayed


@dataclass(frozen=True)
class _Cell:
    """What one replay is of."""

    cluster: Cluster
    schedule: Schedule
    name: str
    policy: Policy | str | os.PathLike[str]


class _Sent:
    """A trace as a Dask cluster gets it, under a key that is no other client's: when a client
    leaves, its cluster forgets what it sent, although another has just sent the same.
    """

    def __init__(self, trace: LoadTrace) -> None:
        self.trace = trace
        self._key = uuid4().hex

    def __dask_tokenize__(self) -> str:
        return self._key


def _started(tasks: Iterator[Any], jobs: int | None, client: Any, sent: _Sent) -> Iterator[Any]:
    """The results of the tasks in order, as they come, from a Dask client or joblib's backend."""
    import joblib

    # Each worker gets the trace once.
    there = {} if client is None else {"backend": "dask", "client": client, "scatter": [sent]}
    with joblib.parallel_config(**there):
        # Not every backend gives results as they come: those of processes that are forked do not.
        backend, _ = joblib.parallel.get_active_backend()
        as_done = bool(getattr(backend, "supports_return_generator", False))
        work = joblib.Parallel(n_jobs=jobs, return_as="generator" if as_done else "list")
        local = as_done and jobs != 1 and client is None
        if not local:
            return iter(work(tasks))
        try:
            with _workers_without_interrupts():
                return iter(work(tasks))
        except (OSError, RuntimeError) as error:  # a limit of processes
            raise OptionError(
                f"no process can be started ({in_one_line(error)}): give jobs=1 (--jobs 1)"
            ) from None


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Any]:
    """A client of a Dask cluster that can do the work."""
    try:
        distributed: Any = import_module("distributed")
    except ImportError:
        raise MissingExtraError("dask[distributed]", "sweep", "a sweep on a Dask cluster") from None
    try:
        # A client that cannot connect takes long to say so.
        place = distributed.comm.get_address_host_port(address)
        socket.create_connection(place, _SECONDS_TO_ANSWER).close()
        client = distributed.Client(address, timeout=_SECONDS_TO_ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {address!r} ({in_one_line(error)}): give an address "
            "such as tcp://host:8786"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_SECONDS_TO_ANSWER)
        except TimeoutError:
            raise OptionError(f"the Dask scheduler at {address!r} has no worker") from None
        for worker, found in client.run(_asks_for_eplb()).items():
            if found != f"eplb {__version__}":
                raise OptionError(
                    f"the Dask worker {worker} says {found!r}: install eplb {__version__} with its "
                    "extra 'sweep' on every worker"
                )
        yield client


def _asks_for_eplb() -> Callable[[], str]:
    """What tells a worker's version; a function within one travels without its module."""

    def told() -> str:
        try:
            import joblib  # noqa: F401

            from eplb import __version__
        except ImportError as error:
            return str(error)
        return f"eplb {__version__}"

    return told


def _called(policies: Policies) -> dict[str, Policy | str | os.PathLike[str]]:
    """Policies by their names; files by their paths, for they are loaded where the work is done."""
    if isinstance(policies, Mapping):
        if not policies:
            raise PolicyError("no policy is given")
        for policy in policies.values():
            if not callable(policy):
                named_policy(policy)
        return dict(policies)
    paths = list_of(policies, str | os.PathLike, "policies")
    return dict(zip(named_policies(paths), paths, strict=True))


def _replay(
    asked_from: int,
    sent: _Sent,
    cell: _Cell,
    num_groups: int,
    expert_bytes: int | None,
    dispatch: Any,
) -> Replay | EplbError:
    """One replay, or why there is none, in whatever process joblib runs it."""
    quiet: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if os.getpid() != asked_from and threading.current_thread() is threading.main_thread():
        # A process of one task at a time. Ctrl-C reaches it too, and is the asker's to answer; what
        # a policy prints must not mix with what the asker does.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        quiet = contextlib.redirect_stdout(sys.stderr)
    with quiet:
        try:
            policy = cell.policy
            if not callable(policy):
                policy = named_policy(policy, threads=1)
            steps = replay_steps(
                sent.trace,
                cell.cluster,
                policy,
                cell.schedule,
                num_groups=num_groups,
                dispatch=dispatch,
            )
            return replay_of(
                list(steps),
                cell.name,
                cell.cluster,
                expert_bytes,
                dispatch=dispatch,
                ordered=sent.trace.ordered,
            )
        except EplbError as error:
            # A policy's own kind of error might not be known where it goes.
            known = type(error).__module__ == EplbError.__module__
            return error if known else PolicyError(in_one_line(error))


@contextlib.contextmanager
def _ending_quietly(replays: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """Call off what is not done when the rows end early, which joblib would warn of."""
    try:
        yield replays
    finally:
        if isinstance(replays, Generator):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                replays.close()


@contextlib.contextmanager
def _workers_without_interrupts() -> Iterator[None]:
    """Processes started within never get Ctrl-C, not even while they start; this one does after."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Starting these would let signals through again.
    from multiprocessing import resource_tracker

    from joblib.externals.loky.backend import resource_tracker as loky_tracker

    for tracker in (resource_tracker, loky_tracker):
        tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
