"""What a plug-in says in an engine's log: each thing once, in one line."""

import logging
import os
import re
from collections.abc import Sequence

from eplb.checks import in_one_line
from eplb.engines.settings import Settings, unknown_variables

_told: set[tuple[str, str]] = set()


def once(logger: logging.Logger, key: str, message: str) -> None:
    """Warn of something, unless this process has warned of it before."""
    if (logger.name, key) in _told:
        return
    _told.add((logger.name, key))
    logger.warning("eplb: %s", message)


def failure(logger: logging.Logger, error: Exception, instead: str) -> None:
    """Warn, once for each cause, of what went wrong and of what is done instead.

    Errors have one cause where they differ in numbers alone, or in the file that a disk refused.
    """
    message = in_one_line(error)
    cause = error.strerror if isinstance(error, OSError) and error.strerror else message
    # Letters beside digits belong to them in the hexadecimal names of temporary files.
    cause = re.sub(r"[0-9a-f]*[0-9][0-9a-f.+-]*", "#", cause)
    once(logger, f"{type(error).__name__} {cause} {instead}", f"{message}; {instead}")
    logger.debug("eplb: where that came from", exc_info=error)


def by_batch(logger: logging.Logger, own: str) -> None:
    """Say that batches are dispatched by their tokens, in place of the engine's own way."""
    logger.warning(
        "eplb: each batch is split over copies by its own tokens, on each rank for itself, in "
        "place of %s",
        own,
    )


def switched_on(
    logger: logging.Logger,
    instead_of: str,
    settings: Settings,
    engine: str,
    checked: Sequence[str],
) -> None:
    """Say once that the plug-in is on, in place of what, in an engine as "vLLM 0.33.0", and what a
    user may not expect: another version than those that it was checked with, unknown variables.

    Said where the engine builds its EPLB state, on the first rank: plug-ins are registered in
    processes too that never plan.
    """
    once(logger, "switched on", f"this planner replaces {instead_of}: {settings}")
    if engine.rsplit(" ", 1)[-1] not in checked:
        known = ", ".join(checked)
        once(logger, engine, f"{engine} is untested; this plug-in was tested with {known}")
    if unknown := unknown_variables(os.environ):
        once(logger, "unknown", f"unknown variables are ignored: {', '.join(unknown)}")
