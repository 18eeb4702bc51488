"""What a fresh process waits for: the import, the first plan, and compiling, each in a new one."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

__all__ = ["Startup", "measure"]

_REPEATS = 5
_MOST_SECONDS = 300

_IMPORT = """
import sys, time
begin = time.perf_counter()
import eplb
seconds = time.perf_counter() - begin
heavy = [name for name in ("numba", "torch", "typer", "rich") if name in sys.modules]
"""

# The loads are made without numpy, whose import counts as part of eplb's.
_PLAN = """
import random, time
draw = random.Random(0).lognormvariate
loads = [[draw(0.0, 0.7) for _ in range(256)] for _ in range(58)]
begin = time.perf_counter()
import eplb
eplb.plan(loads, eplb.Cluster{cluster}, num_groups={groups})
seconds = time.perf_counter() - begin
heavy = []
"""

_EASY = _PLAN.format(cluster=(32, 1, 9), groups=1)
# With few slots and groups on nodes, every kernel is needed.
_HARD = _PLAN.format(cluster=(144, 4, 2), groups=8)

_WARMUP = """
import time
begin = time.perf_counter()
import eplb
eplb.warmup()
seconds = time.perf_counter() - begin
import random
draw = random.Random(0).lognormvariate
loads = [[draw(0.0, 0.7) for _ in range(256)] for _ in range(58)]
begin = time.perf_counter()
eplb.rebalance_experts(loads, 288, 8, 4, 144)
after = time.perf_counter() - begin
heavy = []
"""

_TELL = """
import json
print(json.dumps({"seconds": seconds, "heavy": heavy, "after": globals().get("after", 0.0)}))
"""


@dataclass(frozen=True)
class Startup:
    """Seconds in a fresh process, from before the import.

    Attributes:
        import_only: `import eplb`.
        heavy_modules: what should not be loaded by that, and is.
        first_plan: import and first plan (58x256:288/32), kernels on disk.
        first_hard_plan: the same of 58x256:288/144:8/4, which needs every kernel.
        never_compiled: as `first_plan`, with no kernel on disk.
        never_compiled_hard: as `first_hard_plan`, with no kernel on disk.
        warmup: import and `eplb.warmup()` with no kernel on disk.
        after_warmup: the first `eplb.rebalance_experts` after that, in the same process.
    """

    import_only: float
    heavy_modules: tuple[str, ...]
    first_plan: float
    first_hard_plan: float
    never_compiled: float
    never_compiled_hard: float
    warmup: float
    after_warmup: float


def measure() -> Startup:
    """Start the processes, with kernels kept in folders of their own.

    Raises:
        RuntimeError: a process that fails; the message ends with what it said.
    """
    with contextlib.ExitStack() as stack:
        easy, hard, other = (stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(3))
        _run(_IMPORT, easy)  # writes byte code, once
        imports = [_run(_IMPORT, easy) for _ in range(_REPEATS)]
        never_compiled, never_compiled_hard = _run(_EASY, easy), _run(_HARD, hard)
        first_plans = [_run(_EASY, easy) for _ in range(_REPEATS)]
        first_hard_plans = [_run(_HARD, hard) for _ in range(_REPEATS)]
        warmup = _run(_WARMUP, other)
    return Startup(
        import_only=_median(imports),
        heavy_modules=tuple(imports[0]["heavy"]),
        first_plan=_median(first_plans),
        first_hard_plan=_median(first_hard_plans),
        never_compiled=never_compiled["seconds"],
        never_compiled_hard=never_compiled_hard["seconds"],
        warmup=warmup["seconds"],
        after_warmup=warmup["after"],
    )


def _median(told: list[dict[str, Any]]) -> float:
    return float(statistics.median(one["seconds"] for one in told))


def _run(code: str, cache: str) -> dict[str, Any]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-c", code + _TELL],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_MOST_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"a fresh process failed: {done.stderr.strip()}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told
