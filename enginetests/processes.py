"""Processes forked from one that has imported what they need: importing an engine takes longer than
most of what is tried with it.
"""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any
from unittest.mock import patch

__all__ = ["in_processes"]


def _call(function: str, *arguments: Any) -> None:
    module, _, name = function.rpartition(".")
    getattr(importlib.import_module(module), name)(*arguments)


def in_processes(
    loaded: str | None,
    function: str,
    *arguments: tuple[Any, ...],
    path: Sequence[Path] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[Any]:
    """What each of several processes sends.

    Args:
        loaded: a module that the process they are forked from has imported. That process is started
            by the first call, and others use it. None for processes that are each started afresh.
        function: a module's function, "module.function", which gets a connection to send by, and
            its arguments.
        arguments: of each process.
        path: where modules are looked for first, in the process that all are forked from, or in
            each that is started afresh.
        environment: variables of the same.
    """
    context: Any = multiprocessing.get_context("spawn" if loaded is None else "forkserver")
    if loaded is not None:
        context.set_forkserver_preload([loaded])
    ends = [context.Pipe(duplex=False) for _ in arguments]
    started = [
        context.Process(target=_call, args=(function, end, *given), daemon=True)
        for (_, end), given in zip(ends, arguments, strict=True)
    ]
    searched = os.pathsep.join([*map(str, path), str(Path(__file__).parent), *sys.path])
    variables = {"PYTHONPATH": searched, "OMP_NUM_THREADS": "1", **environment}
    # Else each process would import the script that this one runs.
    no_script = {"__main__": ModuleType("__main__")}
    try:
        with patch.dict(os.environ, variables), patch.dict(sys.modules, no_script):
            for each in started:
                each.start()
        for _, end in ends:
            end.close()  # here, so that a process that ends is seen to
        waiting = {end: number for number, (end, _) in enumerate(ends)}
        said: list[Any] = [None] * len(started)
        while waiting:
            ready = connection.wait(waiting, timeout=500)
            assert ready, f"processes {sorted(waiting.values())} hang"
            for end, number in list(waiting.items()):
                if end in ready:
                    said[number] = end.recv()  # EOFError where the process failed
                    del waiting[end]
        return said
    finally:
        for each in started:
            each.kill()
            each.join()
