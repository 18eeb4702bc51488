"""Work over threads: chunks of layers, for kernels that release the GIL.

The caller's thread works too, so a plan never waits for a thread to be free, and several plans may
be made at once. Which thread takes which chunk is left to chance; what a chunk yields is not. Where
fewer threads can be started than were asked for, the others do their work.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from eplb.solver.arrays import I64

__all__ = ["run_chunks", "run_kernel"]

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def run_kernel(
    kernel: Callable[..., None], layers: I64, at_once: tuple[int, int], threads: int, *given: Any
) -> None:
    """Call `kernel(some, *given)` for all of `layers` [K] over threads, `at_once` (least, most) of
    them at a time.

    A kernel that is still to be compiled is called by this thread alone: the others could only
    wait, and an interrupt reaches this one.
    """
    from eplb.solver.jit import is_ready

    def work(begin: int, end: int) -> None:
        kernel(layers[begin:end], *given)

    threads = threads if is_ready(kernel) else 1
    fewest, most = at_once
    chunk_size = max(fewest, min(most, -(-layers.size // threads)))
    run_chunks(work, layers.size, chunk_size, threads)


def run_chunks(
    work: Callable[[int, int], None], num_items: int, chunk_size: int, threads: int
) -> None:
    """Call `work(begin, end)` for every chunk of `range(num_items)`, on up to `threads` threads.

    It returns when no thread works on a chunk any more, however few threads could be started.
    """
    chunks = _Chunks(work, num_items, chunk_size)
    try:
        _start_helpers(chunks.help, min(threads, chunks.number) - 1)
        chunks.take()
    finally:
        chunks.close()


class _Chunks:
    """Chunks of `range(num_items)` that threads take in turn, and how many helpers are at work.

    Helpers are counted here and not by the pool: what a pool has queued may still begin after the
    pool has refused it because it could not start a thread for it.
    """

    def __init__(self, work: Callable[[int, int], None], num_items: int, chunk_size: int) -> None:
        self.number = -(-num_items // chunk_size)
        self._work, self._num_items, self._chunk_size = work, num_items, chunk_size
        self._changed = threading.Condition()
        self._next = 0
        self._helpers = 0
        self._error: BaseException | None = None

    def take(self) -> None:
        """Work on chunks until none is left."""
        while True:
            with self._changed:
                if self._next >= self.number:
                    return
                begin = self._next * self._chunk_size
                self._next += 1
            self._work(begin, min(begin + self._chunk_size, self._num_items))

    def help(self) -> None:
        """Take chunks beside the caller's thread; an error ends the work of all and is kept."""
        with self._changed:
            if self._next >= self.number:
                return
            self._helpers += 1
        error = None
        try:
            self.take()
        except BaseException as raised:
            error = raised
        with self._changed:
            self._helpers -= 1
            if error is not None:
                self._error = self._error or error
                self._next = self.number
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody start on another chunk, wait for the helpers, and raise an error of theirs."""
        with self._changed:
            self._next = self.number
            self._changed.wait_for(lambda: self._helpers == 0)
        if self._error is not None:
            raise self._error


def _start_helpers(work: Callable[[], None], number: int) -> None:
    """Run `work` on up to `number` other threads: on fewer where no more can be started, as under
    a container's limit of processes, and on none where the interpreter is shutting down.
    """
    global _pool, _pool_size
    if number < 1:
        return
    with _lock:
        if _pool is None or _pool_size < number:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool = ThreadPoolExecutor(number, thread_name_prefix="eplb")
            _pool_size = number
        try:
            for _ in range(number):
                _pool.submit(work)
        except RuntimeError:
            # The pool keeps what it could start no thread for; with the pool that is forgotten, and
            # the next plan tries again. Its threads end when they have done what they are at.
            _pool.shutdown(wait=False, cancel_futures=True)
            _pool, _pool_size = None, 0


def _forget_pool() -> None:
    """After a fork the threads are gone: the child makes its own."""
    global _lock, _pool, _pool_size
    _lock = threading.Lock()
    _pool = None
    _pool_size = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
