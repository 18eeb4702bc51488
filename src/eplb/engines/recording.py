"""Recording of the loads that an engine shows, for plans made offline: a file a window.

A thread of its own writes, so that a slow disk holds up no engine. Files are written to the side
and renamed, the oldest are removed, and a folder that cannot be written costs one line in the log.
"""

import atexit
import logging
import os
import queue
import re
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb.engines.log import failure, once

_WAITING = 4
"""Windows that may wait to be written; what comes then is not recorded."""
_SECONDS_AT_EXIT = 2.0
_NAME = re.compile(r"loads-[0-9]+-[0-9]+-[0-9]+\.npz")


def is_recorded(name: str) -> bool:
    """Whether a file of this name is one that was recorded here."""
    return _NAME.fullmatch(name) is not None


class Recorder:
    """Writes windows to a folder that `eplb.load_trace` reads as one trace.

    Models, and stages of a pipeline, which have other layers, get a folder each within it, called
    after their layers and experts and the first rank that runs them: `58x256`, `58x256-rank8`.

    Args:
        folder: where to write; it is made. `~` is the user's home, as in a shell: who starts an
            engine may not be one.
        most: windows to keep in each folder, those of earlier runs among them.
        logger: of the engine.
    """

    def __init__(self, folder: Path, most: int, logger: logging.Logger) -> None:
        # Unlike pathlib's, it leaves `~` as it is where there is no home.
        self._folder = Path(os.path.expanduser(folder))  # noqa: PTH111
        self._most = most
        self._logger = logger
        self._run = ""
        self._number = 0
        self._waiting: queue.Queue[tuple[NDArray[np.float64], Path, float]] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None

    def add(self, loads: NDArray[np.float64], first_rank: int = 0) -> None:
        """Record a window [L, E] of the ranks that `first_rank` is the first of. Never waits."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._write, daemon=True, name="eplb-record")
            self._thread.start()
            # Not before: the process that made this may have forked since.
            self._run = f"loads-{time.time_ns()}-{os.getpid()}"
            atexit.register(self.wait, _SECONDS_AT_EXIT)
        stage = f"-rank{first_rank}" if first_rank else ""
        folder = self._folder / f"{loads.shape[0]}x{loads.shape[1]}{stage}"
        self._number += 1
        try:
            path = folder / f"{self._run}-{self._number:07}.npz"
            self._waiting.put_nowait((loads.copy(), path, time.time()))
        except queue.Full:
            once(
                self._logger,
                "slow",
                f"{self._folder} takes windows more slowly than they come: some are not recorded",
            )

    def wait(self, seconds: float) -> None:
        """Wait until what was recorded is written, but not longer than so many seconds."""
        end = time.monotonic() + seconds
        while self._waiting.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)

    def _write(self) -> None:
        while True:
            loads, path, when = self._waiting.get()
            try:
                self._write_one(loads, path, when)
            except Exception as error:
                failure(self._logger, error, "the engine goes on, and this window is not recorded")
            finally:
                self._waiting.task_done()

    def _write_one(self, loads: NDArray[np.float64], path: Path, when: float) -> None:
        from eplb.formats import save_trace
        from eplb.loads import LoadTrace

        path.parent.mkdir(parents=True, exist_ok=True)
        # Room first: where the disk is full of these files, it is room for the next one.
        kept = sorted(
            (entry.stat().st_mtime_ns, entry.name)
            for entry in path.parent.iterdir()
            if is_recorded(entry.name)
        )
        for _, name in kept[: max(0, len(kept) - self._most + 1)]:
            (path.parent / name).unlink(missing_ok=True)
        save_trace(LoadTrace(loads, times=np.array([when])), path)
