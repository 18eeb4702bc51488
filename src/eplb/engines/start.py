"""What a plug-in does where the engine builds its EPLB state, before it says that it is ready."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from eplb.engines.log import failure

__all__ = ["after", "compile_kernels"]


def after(cls: type, method: str, function: Callable[[], object]) -> None:
    """Call a function after each call of a method of the engine's, once for each name of it."""
    theirs = getattr(cls, method)
    names: frozenset[str] = getattr(theirs, "eplb_after", frozenset())
    name = f"{function.__module__}.{function.__qualname__}"
    if name in names:
        return

    @functools.wraps(theirs)
    def method_and_more(*args: Any, **kwargs: Any) -> Any:
        answer = theirs(*args, **kwargs)
        function()
        return answer

    method_and_more.eplb_after = names | {name}  # type: ignore[attr-defined]
    setattr(cls, method, method_and_more)


@functools.cache
def compile_kernels(logger: logging.Logger) -> None:
    """Have every kernel of plans ready, so that no rebalance waits for one. Never raises.

    Processes of one machine that share a cache wait for the first of them to fill it.
    """
    try:
        from eplb.planning.plan import warmup
        from eplb.solver.jit import filling

        with filling() as empty:
            if empty:
                logger.warning("eplb: compiling, once on this machine: this takes up to a minute")
            warmup()
    except Exception as error:
        failure(logger, error, "the planner is compiled at the first plan")
