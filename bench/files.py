"""Folders of dumps as a service writes them, a window for each forward pass: time and memory.

    python bench/files.py [--files 40 160]

Each command reads the folder in a process of its own; its time is shown over that which torch
takes to read and add up the same files in the same run. Then what plans for few tokens are worth:
the balancedness, on the shares that the tokens were drawn from, below that of a plan for the sum;
and where loads drift or change, the balancedness on the shares to come.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from options import OneLineParser, positive

import eplb

_DISTINCT = 40
"""Files that are made; more are links to these."""

_PASSES, _LAYERS, _EXPERTS, _TOP_K = 600, 58, 256, 8
_CLUSTER = ("--gpus", "32", "--slots", "288")
_COMMANDS = {
    "inspect": (),
    "plan": _CLUSTER,
    "compare": _CLUSTER,
    "report": (*_CLUSTER, "-o", "page.html"),
}
_TOKENS = (4, 16, 64, 256)
_KINDS = ("wanders", "wanders fast", "ramps", "changes half-way", "changes late", "to and fro")

_TORCH = """
import glob, sys, time
import torch
begin = time.perf_counter(), time.process_time()
total = 0
for path in sorted(glob.glob(sys.argv[1] + "/*.pt")):
    total = total + torch.load(path, weights_only=True)["logical_count"].sum(dim=0)
print(time.perf_counter() - begin[0], time.process_time() - begin[1])
"""


def main(arguments: list[str] | None = None) -> None:
    """Print the ratios."""
    parser = OneLineParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=positive, nargs="*", default=[40, 160])
    parser.add_argument("--seeds", type=positive, default=4)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        _time(Path(place), options)
    _plans(options.seeds)
    _drifts(options.seeds)


def _time(place: Path, options: argparse.Namespace) -> None:
    made = _dumps(place / "made", min(_DISTINCT, max(options.files, default=0)))
    for number in options.files:
        folder = place / str(number)
        folder.mkdir()
        for each in range(number):
            name = f"expert_distribution_recorder_{1700000000 + 60 * each}.5.pt"
            (folder / name).hardlink_to(made[each % len(made)])
        *_, said = _run([sys.executable, "-c", _TORCH, str(folder)], place)
        torch, torch_work = map(float, said.split())
        print(
            f"{number} files: torch {torch:.1f} s to read and add up ({torch_work:.1f} s of CPUs)"
        )
        for name, more in _COMMANDS.items():
            command = [sys.executable, "-m", "eplb.cli", name, str(folder), *more]
            seconds, work, memory, _ = _run(command, place)
            print(
                f"  {name:8} {seconds:6.1f} s, {seconds / torch:5.2f} x torch "
                f"({work / torch_work:5.2f} x of CPUs), {memory:.2f} GB"
            )


def _dumps(folder: Path, number: int) -> list[Path]:
    import torch

    folder.mkdir()
    rng = np.random.default_rng(0)
    share = _shares(rng, _LAYERS)
    paths = [folder / f"{each}.pt" for each in range(number)]
    for path in paths:
        counts = rng.poisson(share * 512 * _TOP_K, (_PASSES, _LAYERS, _EXPERTS)).astype(np.int32)
        content = {"rank": 0, "logical_count": torch.from_numpy(counts)}
        torch.save({**content, "average_utilization_rate_over_window": None}, path)
    return paths


def _shares(rng: np.random.Generator, layers: int) -> np.ndarray:
    share = rng.lognormal(0.0, 0.8, (layers, _EXPERTS))
    return np.asarray(share / share.sum(axis=1, keepdims=True))


def _run(command: list[str], place: Path) -> tuple[float, float, float, str]:
    """Seconds, seconds of CPUs, most GB in memory, and what was printed."""
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        said = process.stdout.read() if process.stdout is not None else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} fails")
    work = used.ru_utime + used.ru_stime
    return time.perf_counter() - begin, work, _gigabytes(used), said


def _gigabytes(used: resource.struct_rusage) -> float:
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _plans(seeds: int) -> None:
    cluster = eplb.Cluster(32, 1, 9)
    for tokens in _TOKENS:
        scores = []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            share = _shares(rng, 8)
            counts = rng.poisson(share * tokens * _TOP_K, (_PASSES, *share.shape))
            whole = eplb.plan(counts.sum(axis=0), cluster).placement.balancedness(share)
            found = eplb.plan(eplb.LoadTrace(counts.astype(float)), cluster).placement.balancedness(
                share
            )
            last = eplb.plan(counts[-32:], cluster).placement.balancedness(share)
            scores.append((whole, found, last))
        whole, found, last = np.mean(scores, axis=0)
        worst = min(found - whole for whole, found, _ in scores)
        print(
            f"{_PASSES} passes of {tokens} tokens: the sum {whole:.4f}, eplb.plan {found:.4f} "
            f"(at worst {worst:+.4f}), the last 32 passes {last:.4f}"
        )


def _drifts(seeds: int) -> None:
    cluster = eplb.Cluster(8, 1, 9)
    for kind in _KINDS:
        for tokens in (*_TOKENS, 1024):
            scores = []
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                share = _path(kind, rng)
                counts = rng.poisson(share[:_PASSES] * tokens * 4).astype(float)
                plans = (
                    eplb.plan(eplb.LoadTrace(counts), cluster),
                    eplb.plan(counts.sum(axis=0), cluster),
                    eplb.plan(counts[-32:], cluster),
                )
                scores.append([each.placement.balancedness(share[_PASSES:]) for each in plans])
            found, whole, last = np.mean(scores, axis=0)
            print(
                f"{_PASSES} passes of {tokens} tokens, load {kind}: eplb.plan {found:.4f}, the sum "
                f"{whole:.4f}, the last 32 passes {last:.4f}"
            )


def _path(kind: str, rng: np.random.Generator) -> np.ndarray:
    """[660, 4, 64] shares of experts in each pass, those to come among them."""
    number = _PASSES + 60
    first, change = rng.normal(size=(4, 64)) * 0.8, rng.normal(size=(4, 64)) * 0.5
    at = np.arange(number)
    part = {
        "ramps": np.linspace(0.0, 2.0, number),
        "changes half-way": at >= _PASSES // 2,
        "changes late": at >= _PASSES - 60,
        "to and fro": at // 60 % 2 == 1,
    }.get(kind, np.zeros(number))
    logs = first + part[:, None, None] * change
    step = {"wanders": 0.02, "wanders fast": 0.06}.get(kind, 0.0)
    if step:
        logs += np.cumsum(rng.normal(size=logs.shape) * step, axis=0)
    share = np.exp(logs)
    return np.asarray(share / share.sum(axis=2, keepdims=True))


if __name__ == "__main__":
    main()
