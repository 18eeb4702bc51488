"""Reading and replaying at real sizes: seconds, memory, and how much a second core helps.

    python bench/replay.py --check
    python bench/replay.py --peer path/to/eplb.py --traces path/to/traces

`--check` judges the bars; README.md tells what is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from bars import Bar
from options import OneLineParser, positive
from race import Load
from tables import show_bars

import eplb
from eplb import Cluster, LoadTrace, synthetic

_WINDOWS = 1000
_CLUSTER = Cluster(num_gpus=32, slots_per_gpu=9)
_MEGABYTES = 224
_MOST_REPLAY, _MOST_READ, _MOST_MEMORY, _MOST_SIX, _LEAST_SPEEDUP = 15.0, 15.0, 4.0, 1.0, 1.8

_READ = """
import resource, sys, time
import eplb
begin = time.perf_counter()
trace = eplb.load_trace(sys.argv[1])
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak *= 1 if sys.platform == "darwin" else 1024
print(seconds, peak, trace.num_windows)
"""

_SWEEP = """
import sys, time
import eplb
from eplb import Cluster, synthetic
trace = synthetic.trace("deepseek-v3", num_windows=int(sys.argv[2]), tokens_per_window=100_000)
clusters = [Cluster(g, 1, 256 // g + more) for g in (8, 16, 32, 64) for more in (1, 2)]
begin = time.perf_counter()
rows = eplb.sweep(trace, clusters, ["seed", "mean"], every=(1, 2, 4, 8), jobs=int(sys.argv[1]))
print(time.perf_counter() - begin, len(rows))
"""


def replay_speed(trace: LoadTrace, policies: list[str]) -> Iterator[Bar]:
    """A replay with a plan before each window; each policy's time, ours judged.

    Ours for the mean of the windows, as everybody else plans, is judged; `eplb`, which plans for 32
    windows each time, does several times the work of that.
    """
    eplb.replay(trace.pick(range(4)), _CLUSTER, "mean")
    ours = 0.0
    for policy in ["mean", *policies]:
        # A slow one need not plan a thousand times to tell how slow it is.
        windows = trace if policy == "mean" else trace.pick(range(min(trace.num_windows, 101)))
        begin = time.perf_counter()
        found = eplb.replay(windows, _CLUSTER, policy)
        seconds = (time.perf_counter() - begin) / found.num_steps * (trace.num_windows - 1)
        ours = ours or seconds
        what = (
            f"replay of {trace.num_windows} windows of 58x256, a plan at each, {Path(policy).stem}"
        )
        if policy == "mean":
            scaled = _MOST_REPLAY * trace.num_windows / _WINDOWS
            yield Bar(what, f"at most {scaled:.3g} s", f"{seconds:.2f} s", seconds <= scaled)
        else:
            note = f"{seconds:.2f} s, {seconds / ours:.1f} times ours"
            yield Bar(what, "-", note, met=True)


def read_large() -> Iterator[Bar]:
    """A made `expert-load.json`, read in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "expert-load.json"
        size, steps, nbytes = _write_large(path)
        told = _in_a_process(_READ, str(path))
    seconds, peak, windows = (float(figure) for figure in told)
    what = f"expert-load.json of {size / 1e6:.0f} MB, {steps} steps, as {windows:.0f} windows"
    yield Bar(what, f"at most {_MOST_READ:g} s", f"{seconds:.2f} s", seconds <= _MOST_READ)
    yield Bar(
        "memory of that process / an array of all its steps",
        f"at most {_MOST_MEMORY:g}",
        f"{peak / nbytes:.2f}",
        peak <= _MOST_MEMORY * nbytes,
    )


def _write_large(path: Path) -> tuple[int, int, int]:
    """Its bytes, its steps, and the bytes of an array of them all."""
    made = synthetic.trace("deepseek-v3", num_windows=64, tokens_per_window=2000)
    loads = made.loads[:, ~made.dense].astype(int)
    size = step = 0
    with path.open("w") as file:
        size += file.write('{"load_history": [')
        for step in range(1 << 30):
            row = json.dumps({"logical_expert_load": loads[step % len(loads)].tolist()})
            if size + len(row) > _MEGABYTES * 1_000_000:
                break
            size += file.write((", " if step else "") + row)
        size += file.write("]}")
    return size, step, step * loads[0].size * np.dtype(np.float64).itemsize


def read_six(traces: Path) -> Iterator[Bar]:
    """The six recorded DeepSeek-V3 files as one trace, everything imported."""
    folder = traces / "deepseek_v3"
    eplb.load_trace(folder)
    begin = time.perf_counter()
    trace = eplb.load_trace(folder)
    seconds = time.perf_counter() - begin
    dense = np.flatnonzero(trace.dense).tolist()
    what = f"{trace.num_windows} recorded DeepSeek-V3 files, dense layers {dense}"
    met = seconds <= _MOST_SIX and trace.num_windows == 6 and dense == [0, 1, 2]
    yield Bar(what, f"at most {_MOST_SIX:g} s, layers 0 to 2", f"{seconds:.3f} s", met)


def sweep_speedup(windows: int) -> Iterator[Bar]:
    """64 replays on one core and on two, each in a fresh process, in turns."""
    one, two = [], []
    for _ in range(2):
        one.append(float(_in_a_process(_SWEEP, "1", str(windows))[0]))
        two.append(float(_in_a_process(_SWEEP, "2", str(windows))[0]))
    ratio = min(one) / min(two)
    yield Bar(
        f"sweep of 64 replays of {windows} windows on two cores: times faster than on one",
        f"at least {_LEAST_SPEEDUP:g}",
        f"{ratio:.2f} ({min(one):.1f} s, {min(two):.1f} s)",
        ratio >= _LEAST_SPEEDUP,
    )


def _in_a_process(code: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"a process failed: {done.stderr[-2000:]}")
    return done.stdout.split()


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = OneLineParser(prog="bench/replay.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--peer", action="append", default=[], metavar="FILE.py", help="replayed beside ours")
    add("--traces", type=Path, metavar="DIR", help="recorded loads: DIR/deepseek_v3/*.json")
    add("--windows", type=positive, default=_WINDOWS, help=f"windows of a replay ({_WINDOWS})")
    add("--sweep", type=positive, default=150, help="windows of each replay of the sweep (150)")
    add("--only", choices=["replay", "read", "six", "sweep"], help="one part")
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    load = Load()
    try:
        bars = [bar for part in _parts(options) for bar in part()]
    except eplb.EplbError as error:
        parser.error(str(error))
    others = load.others()
    if options.json:
        print(json.dumps({"others_busy": others, "bars": [asdict(bar) for bar in bars]}))
    else:
        show_bars(bars)
        if others is not None:
            print(f"processors that other programs kept busy meanwhile: {others:.2f}")
    return 1 if options.check and any(bar.missed for bar in bars) else 0


def _parts(options: argparse.Namespace) -> Iterator[Callable[[], Iterator[Bar]]]:
    wanted = options.only
    if wanted in (None, "replay"):
        made = synthetic.trace(
            "deepseek-v3", num_windows=options.windows, tokens_per_window=100_000
        )
        trace = LoadTrace(made.loads[:, ~made.dense], model=made.model)
        yield lambda: replay_speed(trace, ["eplb", "seed", "deepseek", *options.peer])
    if wanted in (None, "read"):
        yield read_large
    if options.traces is not None and wanted in (None, "six"):
        yield lambda: read_six(options.traces)
    if wanted in (None, "sweep"):
        yield lambda: sweep_speedup(options.sweep)


if __name__ == "__main__":
    sys.exit(main())
