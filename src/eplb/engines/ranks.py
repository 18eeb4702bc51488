"""Ranks agree on each map before one of them runs it, or keep what runs.

Every rank plans for itself, so a rank with other settings, another version, another history or no
memory left would run another map than the others, and answers would be wrong. Ranks compare through
the key-value store that the engine's group was made with, never by a collective: a rank without
this plug-in would meet a collective of ours with the engine's next one.

1. A round is one comparison. Each rank sets its answer and counts itself. The last one to come
   reads all answers and writes the verdict; the others wait for it.
2. A rank that has waited too long writes a verdict that names those who are missing. The store
   keeps the first verdict of a round, so all ranks read the same one, whoever is slow or has died.
3. A rank sends five messages a round at most, whatever the number of ranks, and the store keeps
   one answer a rank and at most two verdicts for each kind of call.
4. The first round is about versions and settings. Where a rank differs or is missing there, the
   engine's own policy answers on all ranks, and each call says why, until the group is another.
5. Every later round is about one map, by digest. Where maps differ, all ranks keep what runs and
   drop their histories, so that the next call agrees. Where slots come or go, what runs is no
   answer, and the engine's own policy answers on all; its map is compared too. A rank that is
   missing from such a round counts as missing from then on.
6. Rounds are told apart by what a call is for and how often that has been asked before, not by the
   order of all calls: an engine calls from two threads.
"""

import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from eplb import __version__
from eplb.checks import in_one_line
from eplb.engines.log import failure
from eplb.engines.rebalances import Outcome
from eplb.engines.settings import Settings

_SECONDS = 20.0
"""To wait for other ranks. Engines give up their own collectives after 300 s or more."""
_SLOWER = 4.0
"""Another rank may take so many times as long for a plan as this one did."""
_MOST_NAMED = 8


class Member(NamedTuple):
    """This process in a group of ranks.

    Attributes:
        group: the engine's, another object where the ranks are others.
        store: a torch.distributed store that all ranks of the group share.
        name: tells the group from others that share the store.
        rank: this process's number in the group.
        size: ranks of the group.
    """

    group: Any
    store: Any
    name: str
    rank: int
    size: int


def default_member() -> Member | None:
    """This process in torch's default group; None where there is none."""
    try:
        from torch import distributed
    except ImportError:
        return None
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    store = distributed.distributed_c10d._get_default_store()
    rank, size = distributed.get_rank(), distributed.get_world_size()
    return Member(distributed.group.WORLD, store, "world", rank, size)


class _Answer(NamedTuple):
    """What a rank gives in a round: what is compared, and why it is nothing."""

    fields: list[str]
    reason: str = ""


class Agreement:
    """What an engine is answered, on all ranks alike.

    Args:
        find: this process in the group that plans; None where it plans for itself alone.
        settings: what it plans by; a text where it cannot plan, which says why.
        own: the engine's own planner, as lines call it.
        logger: of the engine.
        forget: drops what this rank remembers of earlier calls.
    """

    def __init__(
        self,
        find: Callable[[], Member | None],
        settings: Settings | str,
        own: str,
        logger: logging.Logger,
        forget: Callable[[], object],
    ) -> None:
        self._find = find
        self._settings = _of_settings(settings)
        self._own = own
        self._logger = logger
        self._forget = forget
        self._lock = threading.Lock()
        self._ranks: _Ranks | None = None
        self._met = False

    def refuse(self) -> None:
        """Tell other ranks that this one cannot plan, and wait for nothing. Never raises."""
        try:
            ranks = self._current()
            if ranks is not None:
                ranks.settle(self._settings, wait=False)
        except Exception as error:
            failure(self._logger, error, "other ranks are not told that this one cannot plan")

    def meet(self) -> None:
        """Compare versions and settings where all ranks are at the same point; say what differs, at
        the first call. Never raises.
        """
        if self._met:
            return
        self._met = True
        try:
            ranks = self._current()
            wrong = "" if ranks is None else ranks.settle(self._settings)
            if wrong:
                self._logger.warning("eplb: %s; %s answers on all ranks", wrong, self._own)
        except Exception as error:
            failure(self._logger, error, f"{self._own} answers")

    def agreed(self) -> bool:
        """Whether all ranks plan, by the same settings; a call that plans says what differs."""
        ranks = self._current()
        return ranks is None or not ranks.settle(self._settings)

    def alike(self, kind: str, made: NDArray[np.int64] | Exception, *, spent: float = 0.0) -> bool:
        """Whether all ranks plan, and have the same array; says what differs.

        Args:
            kind: of the question, the same on all ranks, which all ask it.
            made: what this rank has, or why it has nothing.
            spent: seconds that this rank needed for it.
        """
        ranks = self._current()
        if ranks is None:
            return True
        if not self.agreed():
            return False
        wrong = ranks.compare(kind, _of_map(made), spent=spent)
        if wrong:
            self._logger.warning("eplb: %s: %s; no rank uses it", kind, wrong)
        return not wrong

    def timed(self) -> Callable[[str, NDArray[np.int64] | Exception], bool]:
        """`alike`, of what this rank needs the seconds from now on for."""
        begin = time.perf_counter()
        return lambda kind, made: self.alike(kind, made, spent=time.perf_counter() - begin)

    def answer(
        self,
        kind: str,
        plan: Callable[[], NDArray[np.int64]],
        running: NDArray[np.int64] | None,
        form: Callable[[NDArray[np.int64]], Any],
        theirs: Callable[[], Any],
        tell: Callable[[Outcome], object] | None = None,
        beside: Callable[[NDArray[np.int64]], NDArray[np.int64] | None] = lambda _: None,
    ) -> Any:
        """A map in the engine's form, the same on all ranks. Raises what `theirs` raises.

        Args:
            kind: what the call is for, the same on all ranks.
            plan: makes this planner's map, [L, P].
            running: the map that runs, None where it is no answer.
            form: makes of a map what the engine takes.
            theirs: makes the engine's own answer, whose map is the whole or the first part of it.
            tell: is told on the first rank what all are answered.
            beside: makes of this planner's map what else must be the same on all ranks.
        """
        begin = time.perf_counter()
        answer, decision, agreed = self._answer(kind, plan, running, form, theirs, beside)
        seconds = time.perf_counter() - begin
        if tell is not None:
            try:
                if self.is_first():
                    tell(Outcome(decision, _map_in(answer), seconds, agreed))
            except Exception as error:
                failure(self._logger, error, "the log does not say what this rebalance does")
        return answer

    def is_first(self) -> bool:
        """Whether this process is the first rank of its group, or alone."""
        member = self._find()
        return member is None or member.rank == 0

    def _answer(
        self,
        kind: str,
        plan: Callable[[], NDArray[np.int64]],
        running: NDArray[np.int64] | None,
        form: Callable[[NDArray[np.int64]], Any],
        theirs: Callable[[], Any],
        beside: Callable[[NDArray[np.int64]], NDArray[np.int64] | None],
    ) -> tuple[Any, Literal["planned", "kept", "own"], bool]:
        """The answer, whose it is, and whether ranks agree."""
        try:
            ranks = self._current()
            wrong = "" if ranks is None else ranks.settle(self._settings)
        except Exception as error:
            failure(self._logger, error, f"{self._own} answers")
            return theirs(), "own", False
        if wrong:
            self._logger.warning("eplb: %s; %s answers on all ranks", wrong, self._own)
            return theirs(), "own", False
        begin = time.perf_counter()
        made: NDArray[np.int64] | Exception
        more: NDArray[np.int64] | None = None
        try:
            made = plan()
            more = beside(made)
        except Exception as error:
            made = error
        if ranks is not None:
            wrong = ranks.compare(kind, _of_map(made, more), spent=time.perf_counter() - begin)
        if not wrong and not isinstance(made, Exception):
            return form(made), "planned", True
        stays = bool(wrong) and running is not None and not (ranks and ranks.wrong)
        instead = "what runs stays" if stays else f"{self._own} answers"
        agreed = not wrong
        if isinstance(made, Exception):
            failure(self._logger, made, instead)
        if wrong:
            self._forget()
            self._logger.warning("eplb: %s; %s on all ranks", wrong, instead)
        if stays and running is not None:
            return form(running), "kept", False
        answer = theirs()
        if ranks is not None and not ranks.wrong:
            wrong = ranks.compare(f"{kind}/own", _of_map(_map_in(answer)))
            if wrong and running is not None:
                self._logger.warning("eplb: %s; what runs stays on all ranks", wrong)
                return form(running), "kept", False
            if wrong:
                self._logger.error("eplb: %s, by %s: restart the engine", wrong, self._own)
            agreed = agreed and not wrong
        return answer, "own", agreed

    def _current(self) -> "_Ranks | None":
        """The ranks of the group that is in force now; None where this process is alone.

        Where ranks have come or gone, those that stay have seen more than those that are new.
        """
        member = self._find()
        if member is None or member.size == 1:
            return None
        with self._lock:
            if self._ranks is None or self._ranks.member.group is not member.group:
                if self._ranks is not None:
                    self._forget()
                self._ranks = _Ranks(member)
            return self._ranks


_met: WeakKeyDictionary[Any, Counter[str]] = WeakKeyDictionary()
"""Groups of each name that this process has met in a store: all its ranks meet as many."""


class _Ranks:
    """The ranks of one group, who compare until one of them is missing or set otherwise.

    Attributes:
        member: this process.
        wrong: why the engine's own planner answers on all ranks; empty while this one does.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self.wrong = ""
        met = _met.setdefault(member.store, Counter())
        met[member.name] += 1
        self._prefix = f"eplb/{member.name}/{met[member.name]}"
        self._settled = False
        self._rounds: Counter[str] = Counter()
        # Settings are compared by the first call, and calls of other threads wait for that.
        self._lock = threading.RLock()
        self._stores = threading.local()

    def settle(self, settings: _Answer, *, wait: bool = True) -> str:
        """Compare versions and settings where they have not been; what is wrong, or nothing."""
        with self._lock:
            if not self._settled:
                self._settled = True
                self.wrong = self.compare("settings", settings, wait=wait)
            return self.wrong

    def compare(self, kind: str, answer: _Answer, *, spent: float = 0.0, wait: bool = True) -> str:
        """What differs among the answers of the next round of a kind; nothing where none does. This
        rank spent so many seconds on its own.
        """
        try:
            seconds = _SECONDS + _SLOWER * spent if wait else None
            line, missing = self._round(kind, answer, seconds)
        except Exception as error:
            line, missing = f"the store of the ranks fails: {in_one_line(error)}", True
        if missing:
            self.wrong = line
        return line

    def _round(self, kind: str, answer: _Answer, seconds: float | None) -> tuple[str, bool]:
        """What differs, and whether a rank is missing."""
        store, rank, size = self._store(), self.member.rank, self.member.size
        with self._lock:
            self._rounds[kind] += 1
            number = self._rounds[kind]
        if number == 1 and store.add(f"{kind}/{rank}/began", 1) > 1:
            return f"rank {rank} was started again while the other ranks went on", True
        store.set(f"{kind}/{rank}", json.dumps([number, *answer]))
        verdict = f"{kind}/verdict/{number}"
        if store.add(f"{kind}/count", 1) == size * number:
            said = _verdict(
                [json.loads(each) for each in store.multi_get(self._keys(kind))], number
            )
            said = store.compare_set(verdict, "", said)
            store.delete_key(f"{kind}/verdict/{number - 1}")
        elif seconds is None:
            return "", False
        else:
            try:
                store.wait([verdict], timedelta(seconds=seconds))
                said = store.get(verdict)
            except RuntimeError:  # nobody has written one
                given = [
                    json.loads(store.get(key)) if store.check([key]) else None
                    for key in self._keys(kind)
                ]
                said = store.compare_set(verdict, "", _verdict(given, number))
        line, missing = json.loads(said)
        return line, missing

    def _keys(self, kind: str) -> list[str]:
        return [f"{kind}/{rank}" for rank in range(self.member.size)]

    def _store(self) -> Any:
        """The store by a connection of this thread: one that waits blocks all who share it."""
        if not hasattr(self._stores, "store"):
            from torch.distributed.distributed_c10d import PrefixStore

            try:
                store = self.member.store.clone()
            except (AttributeError, RuntimeError):  # of older torch
                store = self.member.store
            self._stores.store = PrefixStore(self._prefix, store)
        return self._stores.store


def _of_settings(settings: Settings | str) -> _Answer:
    if isinstance(settings, str):
        return _Answer([], settings)
    return _Answer([f"{name} {value}" for name, value in agreed_on(settings).items()])


def agreed_on(settings: Settings) -> dict[str, str]:
    """All that maps follow from besides what the engine shows, by name."""
    return {
        "eplb": __version__,
        "EPLB_WINDOWS": str(settings.windows),
        "EPLB_MAX_MOVES": str(settings.max_moves),
        "EPLB_EFFORT": settings.effort,
        "EPLB_DISPATCH": settings.dispatch,
        "EPLB_PINS": "none" if settings.pins is None else str(settings.pins.to_json()),
        "EPLB_INITIAL": _of_file(settings.initial),
        "EPLB_CONTROL": "none" if settings.control is None else "set",
    }


def _of_file(path: Path | None) -> str:
    """What ranks compare of a file, which may lie elsewhere on each host."""
    if path is None:
        return "none"
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"that cannot be read ({error.strerror})"
    return f"of digest {hashlib.blake2b(content, digest_size=8).hexdigest()}"


def _map_in(answer: Any) -> NDArray[np.int64]:
    """[L, P] the map in what an engine is answered: the whole or the first part of it."""
    first = answer[0] if isinstance(answer, tuple) else answer
    return np.asarray(first.cpu().numpy() if hasattr(first, "cpu") else first, np.int64)


def _of_map(made: Any, more: Any = None) -> _Answer:
    if isinstance(made, Exception):
        return _Answer([], in_one_line(made))
    digest = hashlib.blake2b(np.ascontiguousarray(made, np.int64).tobytes(), digest_size=16)
    if more is not None:
        digest.update(np.ascontiguousarray(more, np.int64).tobytes())
    return _Answer([f"a map of digest {digest.hexdigest()}"])


def _verdict(given: Sequence[Any], number: int) -> str:
    """What is said of answers [number of the round, fields, reason] by rank, and whether any lacks.

    Answers that are nothing are alike, whatever their reasons.
    """
    missing = [rank for rank, each in enumerate(given) if each is None or each[0] != number]
    if missing:
        line = (
            f"{_named(missing)} did not answer: eplb is not installed or not switched on there, "
            "or the process has ended"
        )
        return json.dumps([line, True])
    alike: dict[tuple[str, ...], list[int]] = {}
    for rank, (_, fields, _) in enumerate(given):
        alike.setdefault(tuple(fields), []).append(rank)
    # The first of the largest part that has an answer stands for what is usual.
    usual = max(alike, key=lambda fields: (bool(fields), len(alike[fields])))
    said = []
    for fields, ranks in alike.items():
        if not fields and usual:
            said.append(f"{_named(ranks)} cannot plan ({given[ranks[0]][2]})")
        elif fields != usual:
            both = zip_longest(fields, usual, fillvalue="nothing")
            pairs = [pair for pair in both if pair[0] != pair[1]]
            mine, theirs = (", ".join(each) for each in zip(*pairs, strict=True))
            said.append(f"{_named(ranks)} has {mine}, rank {alike[usual][0]} has {theirs}")
    more = [f"and so on, {len(said)} in all"] if len(said) > _MOST_NAMED else []
    return json.dumps(["; ".join(said[:_MOST_NAMED] + more), False])


def _named(ranks: Sequence[int]) -> str:
    """Ranks in a line: all of a few, and the number of the rest."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    more = f" and {len(ranks) - _MOST_NAMED} more" if len(ranks) > _MOST_NAMED else ""
    return f"each of ranks {', '.join(map(str, ranks[:_MOST_NAMED]))}{more}"
