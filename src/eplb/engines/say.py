"""What a plug-in says in an engine's log: each thing once, in one line."""

import logging

from eplb.peers import said

__all__ = ["failure", "once"]

_told: set[tuple[str, str]] = set()


def once(logger: logging.Logger, key: str, message: str) -> None:
    """Warn of something, unless this process has warned of it before."""
    if (logger.name, key) in _told:
        return
    _told.add((logger.name, key))
    logger.warning("eplb: %s", message)


def failure(logger: logging.Logger, error: Exception, instead: str) -> None:
    """Warn, once for each kind of error, of what went wrong and of what is done instead."""
    once(logger, f"{type(error).__name__} {instead}", f"{said(error)}; {instead}")
    logger.debug("eplb: where that came from", exc_info=error)
