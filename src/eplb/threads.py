"""Work over threads: chunks of layers, for kernels that release the GIL.

The caller's thread works too, so a plan never waits for a thread to be free, and several plans may
be made at once. Which thread takes which chunk is left to chance; what a chunk yields is not.
"""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from eplb.cluster import whole_number

__all__ = ["check_threads", "run_chunks", "run_kernel"]

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def check_threads(threads: int | None) -> int:
    """The number of threads to use: what was asked for, or the processors that may be used.

    Raises:
        ClusterError: what is no whole number of 1 or more.
    """
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    return whole_number(threads, "threads")


def run_kernel(
    kernel: Callable[..., None],
    work: Callable[[int, int], None],
    num_items: int,
    at_once: tuple[int, int],
    threads: int,
) -> None:
    """Call `work(begin, end)`, which calls a kernel, for all of `range(num_items)` over threads,
    `at_once` (least, most) items at a time.

    A kernel that is still to be compiled is called by this thread alone: the others could only
    wait, and an interrupt reaches this one.
    """
    from eplb.solver.jit import is_ready

    threads = threads if is_ready(kernel) else 1
    fewest, most = at_once
    chunk_size = max(fewest, min(most, -(-num_items // threads)))
    run_chunks(work, num_items, chunk_size, threads)


def run_chunks(
    work: Callable[[int, int], None], num_items: int, chunk_size: int, threads: int
) -> None:
    """Call `work(begin, end)` for every chunk of `range(num_items)`, on up to `threads` threads."""
    num_chunks = -(-num_items // chunk_size)
    counter = itertools.count()

    def take_chunks() -> None:
        while (chunk := next(counter)) < num_chunks:
            begin = chunk * chunk_size
            work(begin, min(begin + chunk_size, num_items))

    helpers = _start_helpers(take_chunks, min(threads, num_chunks) - 1)
    try:
        take_chunks()
    finally:
        counter = itertools.count(num_chunks)  # after an error nobody starts on another chunk
        for helper in helpers:
            if not helper.cancel():
                helper.result()


def _start_helpers(work: Callable[[], None], number: int) -> list[Future[None]]:
    """Run `work` on `number` other threads, or on none where the interpreter is shutting down."""
    global _pool, _pool_size
    if number < 1:
        return []
    with _lock:
        if _pool is None or _pool_size < number:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool = ThreadPoolExecutor(number, thread_name_prefix="eplb")
            _pool_size = number
        try:
            return [_pool.submit(work) for _ in range(number)]
        except RuntimeError:
            return []


def _forget_pool() -> None:
    """After a fork the threads are gone: the child makes its own."""
    global _lock, _pool, _pool_size
    _lock = threading.Lock()
    _pool = None
    _pool_size = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
