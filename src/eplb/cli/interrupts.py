"""Ctrl-C: end at once where nothing is half done, or after the step at hand where there is."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from eplb.cli.terminal import printing_to_stderr, progress_bar, waiting

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

PLANNING = "planning; kernels are compiled once on a machine"


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal that something is being done, which Ctrl-C ends at once."""
    console = Console(stderr=True)
    with quitting_on_interrupt(console), waiting(console, what):
        yield


@contextmanager
def stepping(what: str) -> Iterator[Callable[[int, int], bool]]:
    """Show on a terminal how many steps are done, of policies, which may print themselves. Gives a
    function to call with the steps that are done and those that there are: false after Ctrl-C.
    """
    console = Console(stderr=True)
    with (
        printing_to_stderr(),
        stopping_on_interrupt(console) as stopped,
        progress_bar(console, what) as advance,
    ):

        def step(done: int, wanted: int) -> bool:
            advance(done, wanted)
            return not stopped()

        yield step


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
