"""The command line: parse, call, print. Errors are one line on stderr and exit code 2."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["main"]


def main() -> None:
    """Entry point of the `eplb` command."""
    sys.exit(_flushed(_run()))


def _run() -> int | str | None:
    """Run the command that was given; its exit code."""
    # What is imported takes a moment, in which Ctrl-C would be a traceback.
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from eplb.checks import printable
    from eplb.cli.commands import app
    from eplb.errors import EplbError

    signal.signal(signal.SIGINT, before)
    try:
        with _telling_notes():
            app()
    except SystemExit as done:
        return done.code
    except KeyboardInterrupt:
        return 130
    except (EplbError, MemoryError, OverflowError, OSError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        return _fail(printable(said))
    return 0


def _flushed(code: int | str | None) -> int | str | None:
    """The exit code when all that was printed is out, where it was going."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is left must not be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code or 1  # whoever read it has gone, and needs no line
        if code == 2:
            return code  # an error has been told
        return _fail(f"the output cannot be written: {error.strerror}")
    return code


@contextmanager
def _telling_notes() -> Iterator[None]:
    """What readers of files leave to the log, as lines beside what is printed."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("eplb: note: %(message)s"))
    logger = logging.getLogger("eplb.formats")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _fail(line: str) -> int:
    print(f"eplb: {line}", file=sys.stderr)  # noqa: T201
    return 2
