"""How a plug-in gets into an engine: whether what it replaces is what it knows, calls around the
engine's own, and what it does before the engine says that it is ready.
"""

import functools
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from eplb.checks import in_one_line
from eplb.engines.log import failure
from eplb.engines.ranks import Agreement, Member
from eplb.engines.settings import Settings, is_on, settings_from


def switch_on(
    replace: Callable[[Settings], Callable[..., object] | None],
    where: tuple[str, str, str],
    find: Callable[[], Member | None],
    own: str,
    instead: str,
    logger: logging.Logger,
) -> None:
    """Replace an engine's own planner where EPLB_POLICY says so; say so, or why not. Never raises.

    What `replace` returns is called after the method of the engine's that is its start.
    """
    try:
        if not is_on(os.environ):
            return
        at_start = replace(settings_from(os.environ))
    except ImportError as error:
        failure(logger, error, instead)
        return
    except Exception as error:
        failure(logger, error, instead)
        refuse = Agreement(find, in_one_line(error), own, logger, lambda: None).refuse

        def at_start(*_: Any, **__: Any) -> None:
            refuse()

    if at_start is not None:
        after(*where, at_start)


def unknown_arguments(name: str, function: Any, known: Sequence[str]) -> str:
    """What a function of the engine's takes where that is not what is known, in order; nothing
    where it is. The function is None where the engine has none of that name.
    """
    found = () if function is None else tuple(inspect.signature(function).parameters)
    if found == tuple(known):
        return ""
    taken = f"takes {', '.join(found)}" if found else "is not there"
    return f"{name} {taken}; known is {', '.join(known)}"


class _Awaited:
    """A finder of modules that lets one be found by the others, and sees it once it has run."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.then: list[Callable[[Any], None]] = []

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_more(module: Any) -> None:
                run(module)
                for then in self.then:
                    then(module)

            spec.loader.exec_module = run_and_more  # type: ignore[method-assign]
        return spec


def around(module: str, name: str, method: str, function: Callable[..., Any]) -> None:
    """Call a function in place of a method of the engine's, in processes that import it.

    The function gets the method, and what the method would get, the object first; it must raise
    nothing else than the method does. Where the module has no such class or method, nothing is
    replaced. A method is replaced once.
    """

    def wrap(imported: Any) -> None:
        cls = getattr(imported, name, None)
        theirs = getattr(cls, method, None)
        if theirs is None or hasattr(theirs, "eplb"):
            return

        @functools.wraps(theirs)
        def ours(*args: Any, **kwargs: Any) -> Any:
            return function(theirs, *args, **kwargs)

        ours.eplb = True  # type: ignore[attr-defined]
        setattr(cls, method, ours)

    if module in sys.modules:
        wrap(sys.modules[module])
        return
    awaited = [each for each in sys.meta_path if getattr(each, "module", None) == module]
    if not awaited:
        awaited = [_Awaited(module)]
        sys.meta_path.insert(0, awaited[0])
    awaited[0].then.append(wrap)  # type: ignore[attr-defined]


def after(module: str, name: str, method: str, function: Callable[..., object]) -> None:
    """Call a function after each call of a method of the engine's, as `around` does.

    It gets what the method got, the object first, and must not raise.
    """

    def and_more(theirs: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = theirs(*args, **kwargs)
        function(*args, **kwargs)
        return answer

    around(module, name, method, and_more)


@functools.cache
def compile_kernels(logger: logging.Logger, *, tables: bool = False) -> None:
    """Have every kernel of plans ready, and of tables of dispatch where these are wanted, so that
    no rebalance waits for one. Never raises.

    Processes of one machine that share a cache wait for the first of them to fill it.
    """
    try:
        from eplb.engines.tables import compile_tables
        from eplb.planning.plan import warmup
        from eplb.solver.jit import filling

        with filling() as empty:
            if empty:
                logger.warning("eplb: compiling, once on this machine: this takes up to a minute")
            warmup()
            if tables:
                compile_tables()
    except Exception as error:
        failure(logger, error, "the planner is compiled at the first plan")
