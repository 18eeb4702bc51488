"""The command line: parse, call, print. Errors are one line on stderr and exit code 2."""

import codecs
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

__all__ = ["main"]

_KINDS = {"integer": "a whole number", "number": "a number", "float": "a number"}
"""In our words what Typer, by its version, calls an integer, a number or a float."""


def main() -> None:
    """Entry point of the `eplb` command."""
    sys.exit(_flushed(_run()))


def _run() -> int | str | None:
    """Run the command that was given; its exit code."""
    # BLAS starts its threads when numpy is imported, and ends the process where it cannot.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What is imported takes a moment, in which Ctrl-C would be a traceback.
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from eplb.checks import printable
    from eplb.cli.commands import app
    from eplb.errors import EplbError

    signal.signal(signal.SIGINT, before)
    codecs.register_error("eplb", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if _asks_for_ascii():
            stream.reconfigure(encoding="ascii", errors="eplb")
        elif codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="eplb")
    try:
        with _telling_notes():
            code: int | str | None = app(standalone_mode=False)
    except SystemExit as done:
        return done.code
    except KeyboardInterrupt:
        return 130
    except (EplbError, MemoryError, OverflowError, OSError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        return _fail(printable(_as_typed(said)))
    except Exception as error:
        # Typer brings its own click or not, by version, and so the class of these errors.
        if not hasattr(error, "format_message"):
            raise
        return _fail_usage(error)
    return code


def _as_typed(said: str) -> str:
    """An error that begins with a parameter's name, with the option that was typed for it."""
    found = re.match(r"(?:num_)?([a-z_]+) (?=is |are )", said)
    if found is None:
        return said
    option = f"--{found[1].replace('_', '-')}"
    typed = any(each.split("=", 1)[0] == option for each in sys.argv[1:])
    return f"{option} {said[found.end() :]}" if typed else said


def _asks_for_ascii() -> bool:
    """Whether the locale is named as C's, where Python prints UTF-8 all the same."""
    said = os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8")
    return not said and os.environ.get("LC_ALL") in ("C", "POSIX")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What is printed for characters that a terminal without UTF-8 cannot show."""
    from eplb.checks import PLAIN

    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in unknown), error.end


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


def _fail_usage(error: Any) -> int:
    """One line for a command line that cannot be parsed, or the help where no command is given."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())  # noqa: T201
        return 2
    said = error.format_message()
    names = getattr(getattr(error, "param", None), "opts", [])
    arguments = [part for word in sys.argv[1:] for part in word.split("=", 1)]
    # Of an option that is given twice, the last counts.
    for name, value in reversed(list(pairwise(arguments))):
        if name in names and said.startswith("Invalid value"):
            said = error.message.removeprefix("Value error, ").removeprefix(f"{value!r} is ")
            for kind, words in _KINDS.items():
                said = f"give {words}" if f"a valid {kind}" in said else said
            said = f"{name} is {value!r}: {said}"
    help_of = "" if error.ctx is None else f" ({error.ctx.command_path} --help)"
    return _fail(f"{' '.join(said.split()).removesuffix('.')}{help_of}")


def _fail(line: str) -> int:
    print(f"eplb: {line}", file=sys.stderr)  # noqa: T201
    return 2
