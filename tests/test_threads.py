"""Chunks of work over threads: each item once, errors seen, any number of threads."""

import threading
from typing import Any

import pytest

from eplb import ClusterError
from eplb.threads import check_threads, run_chunks


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


def test_calls_inside_work_do_not_wait_for_each_other() -> None:
    """Plans made within a plan's threads, where the pool has no thread to spare."""
    done = []

    def inner(begin: int, end: int) -> None:
        done.append(begin)

    run_chunks(lambda begin, end: run_chunks(inner, 5, 1, 2), 6, 1, 3)
    assert sorted(done) == sorted(list(range(5)) * 6)


@pytest.mark.parametrize("threads", [1, 7])
def test_numbers_of_threads_are_taken(threads: int) -> None:
    assert check_threads(threads) == threads


def test_one_thread_a_processor_unless_told() -> None:
    assert check_threads(None) >= 1


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_numbers_of_threads_that_cannot_be(threads: Any) -> None:
    with pytest.raises(ClusterError, match=f"^threads is {threads!r}: give"):
        check_threads(threads)
