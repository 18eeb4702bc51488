"""Chunks of work over threads: each item once, errors seen, any number of threads."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from eplb import OptionError
from eplb.checks import number_of_threads
from eplb.solver.threads import run_chunks


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize(("num_items", "chunk_size"), [(1, 1), (7, 3), (8, 4), (100, 1), (3, 50)])
def test_every_item_once(num_items: int, chunk_size: int, threads: int) -> None:
    times = [0] * num_items
    lock = threading.Lock()

    def work(begin: int, end: int) -> None:
        assert 0 < end - begin <= chunk_size
        for item in range(begin, end):
            with lock:
                times[item] += 1

    run_chunks(work, num_items, chunk_size, threads)
    assert times == [1] * num_items


def test_nothing_to_do() -> None:
    def work(begin: int, end: int) -> None:
        pytest.fail(f"asked to do {begin} to {end}")

    run_chunks(work, 0, 1, 4)


@pytest.mark.parametrize("threads", [1, 4])
def test_errors_reach_the_caller(threads: int) -> None:
    def work(begin: int, end: int) -> None:
        if begin == 5:
            raise RuntimeError(f"{begin} to {end}")

    with pytest.raises(RuntimeError, match="5 to 6"):
        run_chunks(work, 9, 1, threads)
    # And the threads are there for the next.
    run_chunks(lambda begin, end: None, 9, 1, threads)


def test_threads_work_at_the_same_time() -> None:
    """Each chunk waits for the other: one thread alone would wait for ever."""
    both = threading.Barrier(2, timeout=60)
    names = set()

    def work(begin: int, end: int) -> None:
        names.add(threading.current_thread().name)
        both.wait()

    run_chunks(work, 2, 1, 2)
    assert len(names) == 2


@pytest.mark.parametrize("can_start", [0, 1, 2])
def test_threads_that_cannot_be_started(can_start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a limit of processes: what was started is waited for, and nothing is done twice."""
    start = threading.Thread.start
    begun = threading.active_count()

    def limited(thread: threading.Thread) -> None:
        if threading.active_count() >= begun + can_start:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    for _ in range(50):
        run_chunks(lambda begin, end: None, 8, 1, 8)  # a pool that may be refused
        times = [0] * 12

        def work(begin: int, end: int, times: list[int] = times) -> None:
            time.sleep(0.0002)
            times[begin] += 1

        run_chunks(work, 12, 1, 4)
        assert times == [1] * 12


def test_calls_inside_work_do_not_wait_for_each_other() -> None:
    """Plans made within a plan's threads, where the pool has no thread to spare."""
    done = []

    def inner(begin: int, end: int) -> None:
        done.append(begin)

    run_chunks(lambda begin, end: run_chunks(inner, 5, 1, 2), 6, 1, 3)
    assert sorted(done) == sorted(list(range(5)) * 6)


@pytest.mark.parametrize("threads", [1, 7])
def test_numbers_of_threads_are_taken(threads: int) -> None:
    assert number_of_threads(threads) == threads


def test_one_thread_a_processor_unless_told() -> None:
    assert number_of_threads(None) >= 1


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_numbers_of_threads_that_cannot_be(threads: Any) -> None:
    with pytest.raises(OptionError, match=f"^threads is {threads!r}: give"):
        number_of_threads(threads)


LIMITED = """
import os, resource
import numpy as np
from eplb import Cluster, plan
from eplb.solver import threads as pools

rng = np.random.default_rng(0)
cluster, loads = Cluster(64, 1, 5), rng.lognormal(0.0, 1.5, (46, 256))
windows = rng.lognormal(0.0, 1.5, (4, 5, 256))
right = [plan(each, cluster, effort="fast", threads=1).placement for each in (loads, windows)]
if os.getuid() == 0:
    os.setuid(65534)  # nobody: root knows no limit


def threads_of_this_user():
    count = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{process}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{process}/task"))
        except OSError:
            pass  # it has just ended
    return count


hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
for number in range(150):
    if pools._pool is not None:  # a process meets its limit when it plans for the first time
        pools._pool.shutdown()
        pools._pool, pools._pool_size = None, 0
    limit = threads_of_this_user() + int(rng.integers(0, 5))
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    several = number % 3 == 0
    made = plan((loads, windows)[several], cluster, effort="fast", threads=int(rng.integers(2, 9)))
    assert made.placement == right[several], number
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_limits_of_processes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
