"""Ctrl-C: end at once where nothing is half done, or after the step at hand where there is."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["INTERRUPTED", "quitting_on_interrupt", "stopping_on_interrupt"]

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


@contextmanager
def quitting_on_interrupt(console: Console) -> Iterator[None]:
    """End the process on Ctrl-C: the compiler would swallow a KeyboardInterrupt now and then.

    Nothing may be written meanwhile that could be left half done.
    """
    with _on_interrupt(lambda *_: _quit(console)):
        yield


@contextmanager
def stopping_on_interrupt(console: Console) -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C was pressed; at the second the process ends."""
    pressed = 0

    def note(*_: object) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            _quit(console)
        _tell("eplb: stopping; Ctrl-C again quits at once\n")

    with _on_interrupt(note):
        yield lambda: pressed > 0


def _quit(console: Console) -> None:
    try:
        console.show_cursor()
    finally:
        os._exit(INTERRUPTED)


def _tell(line: str) -> None:
    """A line on standard error, past its buffer: what was interrupted may be writing to that."""
    try:
        os.write(sys.stderr.fileno(), line.encode())
    except (OSError, ValueError):
        # There is nowhere to tell it, and that must not end what is to be finished.
        return


@contextmanager
def _on_interrupt(handler: Callable[..., None]) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
