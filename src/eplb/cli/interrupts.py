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

    def quit_now(*_: object) -> None:
        console.show_cursor()
        os._exit(INTERRUPTED)

    with _on_interrupt(quit_now):
        yield


@contextmanager
def stopping_on_interrupt(console: Console) -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C was pressed; at the second the process ends."""
    pressed = 0

    def note(*_: object) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            console.show_cursor()
            os._exit(INTERRUPTED)
        print("eplb: stopping; Ctrl-C again quits at once", file=sys.stderr)  # noqa: T201

    with _on_interrupt(note):
        yield lambda: pressed > 0


@contextmanager
def _on_interrupt(handler: Callable[..., None]) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
