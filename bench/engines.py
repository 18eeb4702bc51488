"""Engines' own policies beside this planner's plug-ins, through the engines' own interfaces.

    make test-engines        # fetches the engines' wheels
    python bench/engines.py --engines .venv/engines --traces path/to/traces --check

Every window is shown to a policy as the engine would show it, with the map that runs; the map that
it answers is scored on the window after. README.md tells what is printed.
"""

import functools
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from bars import Bar
from numpy.typing import NDArray
from options import EnginesParser
from rich.table import Table
from tables import console_for_tables, show_bars

import eplb
from eplb.dispatching.rules import TABLES, split_of_table
from eplb.engines.settings import Settings

__all__ = ["judge"]

_Loads = NDArray[np.float64]
_Answer = Callable[[_Loads, NDArray[np.int64]], NDArray[np.int64]]
"""From the windows so far [T, L, E] and the map that runs [L, P] to the next map."""

_STEPS_OF_A_WINDOW = 4
"""Steps that SGLang shows of each of our windows."""
_SHOWN = 16
"""Windows that SGLang's recorder holds."""
_PLACES = 6
"""Places in a long trace."""
_TIMED_WITH = 8
"""Windows of history that vLLM's policy is timed with."""
_REPEATS = 7


@dataclass(frozen=True)
class Cell:
    """A trace [T, L, E] and the ranks that serve it."""

    name: str
    loads: _Loads
    cluster: eplb.Cluster


@dataclass(frozen=True)
class Row:
    """What a policy made of a trace: means over its windows, the first plan's moves left out."""

    cell: str
    engine: str
    who: str
    balancedness: float
    moved: float
    ms: float


@dataclass(frozen=True)
class Tabled:
    """Balancedness under an engine's own dispatch and under ours, on the windows planned for and on
    the next one; CPU seconds that each takes on one thread.
    """

    cell: str
    own_planned: float
    own_next: float
    ours_planned: float
    ours_next: float
    own_seconds: float
    ours_seconds: float


def cells_of(traces: Path) -> Iterator[Cell]:
    """The recorded loads as windows in time."""
    files = sorted((traces / "deepseek_v3").glob("*.json"))
    recorded = np.stack([eplb.load_trace(file).loads[0] for file in files])
    recorded = recorded[:, recorded.any(axis=(0, 2))]
    draw = np.random.default_rng(0)
    # Each workload twice, as so many tokens drawn by its shares: never the same window again.
    shares = recorded / recorded.sum(axis=2, keepdims=True)
    drawn = draw.poisson(np.concatenate([shares, shares]) * 1e6).astype(np.float64)
    for num_gpus, slots in ((32, 9), (64, 5)):
        yield Cell(f"DeepSeek-V3, {num_gpus} GPUs", drawn, eplb.Cluster(num_gpus, 1, slots))
    noise = np.rint(recorded[0] * draw.uniform(0.95, 1.05, (9, *recorded[0].shape)))
    yield Cell("the same load and 5 % noise, 32 GPUs", noise, eplb.Cluster(32, 1, 9))
    windows = eplb.load_trace(traces / "gptoss20b_domains_2048.npz").loads
    for num_gpus, slots in ((8, 5), (16, 3)):
        yield Cell(f"gpt-oss-20b, {num_gpus} GPUs", windows, eplb.Cluster(num_gpus, 1, slots))


def of_vllm(policy: Any, cluster: eplb.Cluster) -> _Answer:
    """The interface of vLLM: the last window alone, and the map that runs."""
    import torch

    def answer(windows: _Loads, running: NDArray[np.int64]) -> NDArray[np.int64]:
        weight = torch.from_numpy(np.rint(windows[-1]).astype(np.int64))
        shape = (cluster.num_slots, 1, cluster.num_nodes, cluster.num_gpus)
        answered: NDArray[np.int64] = policy.rebalance_experts(
            weight, *shape, torch.from_numpy(running.copy())
        ).numpy()
        return answered

    return answer


def of_sglang(rebalance: Any, algorithm: Any, cluster: eplb.Cluster) -> _Answer:
    """SGLang's interface: the steps of the last windows, and where it looks for what runs."""
    import torch
    from sglang.srt.eplb import expert_location

    def answer(windows: _Loads, running: NDArray[np.int64]) -> NDArray[np.int64]:
        steps = np.repeat(np.rint(windows[-_SHOWN:] / _STEPS_OF_A_WINDOW), _STEPS_OF_A_WINDOW, 0)
        metadata = SimpleNamespace(physical_to_logical_map_cpu=torch.from_numpy(running.copy()))
        expert_location.get_global_expert_location_metadata = lambda: metadata
        answered: NDArray[np.int64] = rebalance(
            tokens_per_expert=torch.from_numpy(steps.astype(np.int32)),
            num_physical_experts=cluster.num_slots,
            num_local_physical_experts=cluster.slots_per_gpu,
            num_groups=None,
            num_nodes=cluster.num_nodes,
            algorithm=algorithm,
        )[0].numpy()
        return answered

    return answer


def replayed(cell: Cell, engine: str, who: str, answer: _Answer) -> Row:
    """Walk through a trace."""
    _, num_layers, num_experts = cell.loads.shape
    running = eplb.Placement.contiguous(num_layers, num_experts, cell.cluster)
    balancedness, moves, seconds = [], [], []
    for number in range(len(cell.loads) - 1):
        begin = time.perf_counter()
        phy2log = answer(cell.loads[: number + 1], running.phy2log)
        seconds.append(time.perf_counter() - begin)
        following = eplb.Placement(phy2log, num_experts, cell.cluster)
        moves.append(following.moves_from(running) / following.phy2log.size)
        balancedness.append(following.balancedness(cell.loads[number + 1]))
        running = following
    return Row(
        cell.name,
        engine,
        who,
        statistics.mean(balancedness),
        statistics.mean(moves[1:]),
        1e3 * statistics.median(seconds[1:]),
    )


def contest(cell: Cell) -> Iterator[Row]:
    """Everybody on one trace."""
    from sglang.srt.eplb import eplb_algorithms
    from vllm.distributed.eplb.policy import DefaultEplbPolicy

    from eplb.engines.sglang import make_hook
    from eplb.engines.vllm import make_policy

    settings = Settings()
    ours = make_policy(DefaultEplbPolicy, settings)
    yield replayed(cell, "vLLM", "its own", of_vllm(DefaultEplbPolicy, cell.cluster))
    yield replayed(cell, "vLLM", "eplb", of_vllm(ours, cell.cluster))
    theirs = eplb_algorithms.rebalance_experts
    hook = make_hook(settings)
    for name in ("deepseek", "deepseek_vec"):
        algorithm = eplb_algorithms.EplbAlgorithm[name]
        yield replayed(cell, "SGLang", name, of_sglang(theirs, algorithm, cell.cluster))

    def hooked(**given: Any) -> Any:
        return hook(theirs, **given)

    algorithm = eplb_algorithms.EplbAlgorithm.deepseek
    yield replayed(cell, "SGLang", "eplb", of_sglang(hooked, algorithm, cell.cluster))


def timed(cell: Cell, repeats: int) -> dict[str, float]:
    """Median ms of vLLM's own policy, of ours on its first window, and on a full history and on
    one window from the map that runs; and the longest wait of another thread while ours planned.
    """
    from vllm.distributed.eplb.policy import DefaultEplbPolicy

    from eplb.engines.vllm import make_policy

    _, num_layers, num_experts = cell.loads.shape
    start = eplb.Placement.contiguous(num_layers, num_experts, cell.cluster).phy2log
    settings = Settings(windows=_TIMED_WITH)
    taken: dict[str, list[float]] = {name: [] for name in ("its own", "one", "eight", "current")}

    def clock(name: str, answer: _Answer, number: int, running: NDArray[np.int64]) -> Any:
        begin = time.perf_counter()
        answered = answer(cell.loads[: number + 1], running)
        taken[name].append(1e3 * (time.perf_counter() - begin))
        return answered

    for turn in range(repeats + 1):
        # They take turns, so that whatever slows the machine down slows all of them down.
        clock("its own", of_vllm(DefaultEplbPolicy, cell.cluster), turn % len(cell.loads), start)
        ours = of_vllm(make_policy(DefaultEplbPolicy, settings), cell.cluster)
        running = clock("one", ours, 0, start)
        for number in range(1, _TIMED_WITH - 1):
            running = ours(cell.loads[: number + 1], running)
        clock("eight", ours, _TIMED_WITH - 1, running)
        lone = of_vllm(make_policy(DefaultEplbPolicy, Settings(windows=1)), cell.cluster)
        clock("current", lone, 1, lone(cell.loads[:1], start))
    found = {name: statistics.median(values[1:]) for name, values in taken.items()}
    ours = of_vllm(make_policy(DefaultEplbPolicy, settings), cell.cluster)
    found["waited"] = _longest_wait(ours, cell, start)
    return found


def _longest_wait(answer: _Answer, cell: Cell, start: NDArray[np.int64]) -> float:
    """Longest time in ms that another thread had to wait while a plan was made."""
    running = start
    for number in range(_TIMED_WITH - 1):
        running = answer(cell.loads[: number + 1], running)
    ended, ticks = threading.Event(), [time.perf_counter()]

    def tick() -> None:
        while not ended.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-4)

    thread = threading.Thread(target=tick)
    thread.start()
    answer(cell.loads[:_TIMED_WITH], running)
    ended.set()
    thread.join()
    return 1e3 * max(after - before for before, after in itertools.pairwise(ticks))


def tabled(cell: Cell) -> Tabled:
    """SGLang's own table of dispatch beside ours, on the placement that the windows but the last
    make.
    """
    import torch
    from sglang.srt.eplb import expert_location

    from eplb.engines.sglang import make_table_hook
    from eplb.engines.tables import Planned, slots_by_rank

    num_gpus = cell.cluster.num_gpus
    cluster = eplb.Cluster(num_gpus, num_gpus // 8, cell.cluster.slots_per_gpu)
    windows, following = cell.loads[:-1][-_SHOWN:], cell.loads[-1]
    placement = eplb.plan(windows, cluster, effort="fast").placement
    parallel = SimpleNamespace(ep_size=num_gpus, nnodes=cluster.num_nodes)
    expert_location.get_parallel = lambda: parallel
    expert_location._prefer_same_node_experts = lambda: True
    theirs = expert_location.compute_logical_to_rank_dispatch_physical_map
    settings = Settings(threads=1)
    ours = functools.partial(make_table_hook(settings, Planned(windows)), theirs)
    given = (torch.tensor(placement.log2phy), num_gpus, cluster.num_slots, 0)
    ours(*given)  # whatever has to be compiled
    seconds = []
    for function in (theirs, ours):
        begin = time.process_time()
        function(*given)
        seconds.append(time.process_time() - begin)
    # Of all ranks at once.
    own = TABLES["sglang"](placement.log2phy, cluster)
    made = slots_by_rank(placement.log2phy.copy(), windows, cluster, settings)
    even = np.full(num_gpus, 1.0 / num_gpus)
    scores = [
        placement.balancedness(each, dispatch=split_of_table(table, cluster.num_slots, even))
        for table in (own, made)
        for each in (windows, following)
        if table is not None
    ]
    return Tabled(cell.name, *scores, *seconds)


def parted(cell: Cell) -> Tabled:
    """The even split of vLLM beside our rows of copies, as `tabled`; of a long trace, the mean of
    several places in it.
    """
    from eplb.engines.tables import entries_by_slot

    places = [len(cell.loads) - 1]
    if places[0] > 2 * _SHOWN:
        places = np.linspace(_SHOWN, places[0], _PLACES).astype(int).tolist()
    found = []
    for place in places:
        windows, following = cell.loads[max(0, place - _SHOWN) : place], cell.loads[place]
        placement = eplb.plan(windows, cell.cluster, effort="fast").placement
        phy2log, settings = placement.phy2log.copy(), Settings(threads=1)
        entries_by_slot(phy2log, windows[:2], cell.cluster, 1024, settings)  # compiles
        begin = time.process_time()
        entries = entries_by_slot(phy2log, windows, cell.cluster, 1024, settings)
        seconds = time.process_time() - begin
        layers = np.arange(len(phy2log))[:, None]
        lengths = np.zeros((len(phy2log), placement.num_experts))
        np.add.at(lengths, (layers, phy2log), entries)
        scores = [
            placement.balancedness(each, dispatch=rule)
            for rule in ("even", entries / lengths[layers, phy2log])
            for each in (windows, following)
        ]
        found.append([*scores, 0.0, seconds])
    mean = [statistics.mean(each) for each in zip(*found, strict=True)]
    return Tabled(cell.name, *mean)


def judge(rows: list[Row], times: dict[str, float] | None) -> list[Bar]:
    """Every bar that a run can judge."""
    bars = []
    for row in rows:
        if row.who != "eplb":
            continue
        peers = [r for r in rows if (r.cell, r.engine) == (row.cell, row.engine) and r is not row]
        best = max(peer.balancedness for peer in peers)
        bars.append(
            Bar(
                f"{row.engine}, {row.cell}: balancedness on the next window",
                f"> {best:.4f}",
                f"{row.balancedness:.4f}",
                row.balancedness > best,
            )
        )
        if "noise" in row.cell:
            bars.append(
                Bar(
                    f"{row.engine}, {row.cell}: moved",
                    "<= 5 %",
                    f"{row.moved:.1%}",
                    row.moved <= 0.05,
                )
            )
    if times is not None:
        for name, most, what in (
            ("one", times["its own"] / 8.0, "first window, 1/8 of vLLM's own"),
            ("eight", times["its own"], "eight windows, no more than vLLM's own"),
        ):
            bars.append(
                Bar(what, f"<= {most:.1f} ms", f"{times[name]:.1f} ms", times[name] <= most)
            )
    return bars


def show(rows: list[Row], times: dict[str, float] | None) -> None:
    """Tables for a person."""
    table = Table("trace", "engine", "who", title="on the next window", title_justify="left")
    for heading in ("balancedness", "moved", "ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.cell,
            row.engine,
            row.who,
            f"{row.balancedness:.4f}",
            f"{row.moved:.1%}",
            f"{row.ms:.1f}",
            end_section=row.who == "eplb",
        )
    console = console_for_tables()
    console.print(table)
    if times is None:
        return
    table = Table("58 x 256 to 288 on 32, through vLLM's interface", "ms", title="time")
    for name, what in (
        ("its own", "vLLM's own policy"),
        ("one", "ours, first window"),
        ("current", "ours, one window, from the map that runs"),
        ("eight", "ours, eight windows, from the map that runs"),
        ("waited", "longest wait of another thread meanwhile"),
    ):
        table.add_row(what, f"{times[name]:.1f}")
    console.print(table)


def show_tables(rows: list[Tabled], title: str) -> None:
    """Of tables of dispatch, for a person."""
    table = Table("trace", title=title, title_justify="left")
    for heading in ("planned for", "next window", "CPU s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.cell,
            f"{row.own_planned:.4f} / {row.ours_planned:.4f}",
            f"{row.own_next:.4f} / {row.ours_next:.4f}",
            f"{row.own_seconds:.2f} / {row.ours_seconds:.2f}",
        )
    console_for_tables().print(table)


def main() -> None:
    """Measure what the command line asks for."""
    parser = EnginesParser(__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="the recorded loads")
    parser.add_argument("--only", help="traces whose names have this in them")
    parser.add_argument("--tables", action="store_true", help="which copies take tokens, alone")
    parser.add_argument("--no-time", action="store_true", help="balance and moves alone")
    parser.add_argument("--json", action="store_true", help="all of it as one JSON object")
    asked = parser.parse_args()
    for folder in (asked.engines / "vllm", asked.traces / "deepseek_v3"):
        if not folder.is_dir():
            parser.error(f"{folder} is not there")
    sys.path += [str((asked.engines / name).resolve()) for name in ("site", "vllm", "sglang")]
    eplb.warmup()
    cells = [
        cell for cell in cells_of(asked.traces) if asked.only is None or asked.only in cell.name
    ]
    if not cells:
        parser.error(f"no trace has {asked.only!r} in its name")
    if asked.tables:
        show_tables([tabled(cell) for cell in cells], "SGLang's own table / ours")
        show_tables([parted(cell) for cell in cells], "vLLM's even split / ours")
        return
    rows = [row for cell in cells for row in contest(cell)]
    times = None if asked.no_time else timed(next(cells_of(asked.traces)), _REPEATS)
    bars = judge(rows, times)
    if asked.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "times": times}, indent=1))
    else:
        show(rows, times)
        if asked.check:
            show_bars(bars)
    if asked.check and any(bar.missed for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
