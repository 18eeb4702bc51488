"""What the command lines of the benchmarks share."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from eplb.replaying.policies import Peer

__all__ = ["EnginesParser", "OneLineParser", "load_peers", "positive"]


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


def load_peers(paths: Sequence[Path]) -> "list[Peer]":
    """Load each file's `rebalance_experts`; files of one name are numbered.

    Raises:
        PolicyError: a file that is not there, that raises when it is imported, or that has no such
            function.
    """
    from eplb.replaying.policies import load_peer

    peers: list[Peer] = []
    for path in paths:
        # What a peer prints must not mix with what this prints.
        with contextlib.redirect_stdout(sys.stderr):
            peer = load_peer(path)
        name, number = peer.name, 2
        while any(other.name == name for other in peers):
            name, number = f"{peer.name} {number}", number + 1
        peers.append(replace(peer, name=name))
    return peers
