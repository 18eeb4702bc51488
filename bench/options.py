"""What the command lines of the benchmarks share."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

__all__ = ["EnginesParser", "OneLineParser", "positive"]


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        self.exit(2, f"{self.prog}: {message}\n")


class EnginesParser(OneLineParser):
    """The options of a script that runs what `make test-engines` has fetched: where that is, and
    whether to judge.

    Args:
        about: what the script does, in its own lines.
    """

    def __init__(self, about: str | None) -> None:
        super().__init__(description=about, formatter_class=argparse.RawTextHelpFormatter)
        self.add_argument(
            "--engines", type=Path, required=True, help="what make test-engines fetched"
        )
        self.add_argument(
            "--check", action="store_true", help="judge; exit with 1 if a bar is missed"
        )

    def whole_engines(self, asked: argparse.Namespace, needed: str) -> Path:
        """The folder of engines to start as the tests do, whose helpers can be imported then.

        Args:
            asked: what the command line says.
            needed: a pattern of a file in that folder, without which no engine starts.
        """
        engines: Path = asked.engines.resolve()
        if not any(engines.glob(needed)):
            self.error(f"{engines} has no {needed}: make test-engines fetches it")
        tests = Path(__file__).resolve().parents[1] / "enginetests"
        sys.path += [str(tests), str(engines / "site")]
        return engines


def positive(text: str) -> int:
    """A whole number of 1 or more, for `argparse`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)
