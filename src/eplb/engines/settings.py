"""The settings of a plug-in: environment variables, checked before anything runs.

Engines pass none of their options on to a plug-in, so there is no other way. Every process of an
engine must have the same variables, because every rank plans for itself.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from eplb.checks import Budget, budget_from, whole_number
from eplb.errors import OptionError
from eplb.planning.pins import Pins, pins_in
from eplb.planning.problem import Effort

VARIABLES = {
    "EPLB_POLICY": '"eplb" replaces the engine\'s own planner by this one',
    "EPLB_WINDOWS": "maximum number of past windows of load to plan for",
    "EPLB_MAX_MOVES": 'maximum number of experts that GPUs receive: "5%" of slots, "800", "none"',
    "EPLB_EFFORT": "fast, default or thorough",
    "EPLB_DISPATCH": "which copies tokens go to: as the engine says, by a table of this "
    "planner, or by the tokens of each batch",
    "EPLB_THREADS": "maximum number of threads of one process while it plans",
    "EPLB_RECORD": "folder in which to record the loads that vLLM reports",
    "EPLB_RECORD_FILES": "maximum number of windows to keep there",
    "EPLB_INITIAL": "file of the placement that vLLM starts with",
    "EPLB_PINS": "JSON file of what placements must keep to, as of eplb plan --pins",
    "EPLB_CONTROL": "file that pauses and resumes a running engine, or names a placement for it",
    "EPLB_METRICS": "file to write metrics to, which eplb serve-metrics serves",
    "EPLB_ROLE": "name for this engine in logs, metrics and recordings, such as prefill or decode",
}
"""What each variable sets, by name."""

Dispatching = Literal["engine", "table", "batch"]
"""Who says which copy of its expert a token goes to."""

_MOST_WINDOWS = 64
_MOST_FILES = 1_000_000
_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
"""It is the name of a folder too."""
_FIVE_PERCENT = Budget(share=0.05)


@dataclass(frozen=True)
class Settings:
    """How a plug-in plans.

    Attributes:
        windows: most windows to plan for.
        max_moves: most moves at one plan; a share is of all slots of all layers.
        effort: of the planner.
        threads: most threads of one process.
        record: folder for recorded loads, None for none.
        record_files: most windows to keep there.
        dispatch: who says which copy a token goes to.
        initial: file of the placement to start with, None for none.
        role: what this engine does for a service that has others too; None for no label.
        control: file that may ask for something else than a plan, None for none.
        metrics: file of metrics, None for none.
        pins: what placements must keep to, None for nothing.
    """

    windows: int = 16
    max_moves: Budget = _FIVE_PERCENT
    effort: Effort = "fast"
    threads: int = 4
    record: Path | None = None
    record_files: int = 1024
    dispatch: Dispatching = "engine"
    initial: Path | None = None
    role: str | None = None
    control: Path | None = None
    metrics: Path | None = None
    pins: Pins | None = None

    def __str__(self) -> str:
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        said["pins"] = None if self.pins is None else self.pins.to_json()
        return ", ".join(f"{name} {value}" for name, value in said.items() if value is not None)


def is_on(environment: Mapping[str, str]) -> bool:
    """Whether the environment selects this planner.

    Raises:
        OptionError: an unknown EPLB_POLICY.
    """
    policy = environment.get("EPLB_POLICY", "").strip().lower()
    if policy in {"", "default", "off"}:
        return False
    if policy == "eplb":
        return True
    raise OptionError(
        f"EPLB_POLICY is {policy!r}: give eplb, or default for the engine's own planner"
    )


def settings_from(environment: Mapping[str, str]) -> Settings:
    """The settings of environment variables, `VARIABLES`.

    Raises:
        OptionError: an invalid value.
        FormatError: a file of pins that cannot be read.
    """
    standard = Settings()
    moves = environment.get("EPLB_MAX_MOVES")
    names = ("EPLB_RECORD", "EPLB_INITIAL", "EPLB_CONTROL", "EPLB_METRICS")
    record, initial, control, metrics = (
        Path(given) if (given := environment.get(name)) else None for name in names
    )
    pins = environment.get("EPLB_PINS")
    return Settings(
        _number(environment, "EPLB_WINDOWS", standard.windows, _MOST_WINDOWS),
        standard.max_moves if moves is None else budget_from(moves, "EPLB_MAX_MOVES"),
        _choice(environment, "EPLB_EFFORT", standard.effort, get_args(Effort)),
        _number(environment, "EPLB_THREADS", standard.threads, _MOST_FILES),
        record,
        _number(environment, "EPLB_RECORD_FILES", standard.record_files, _MOST_FILES),
        _choice(environment, "EPLB_DISPATCH", standard.dispatch, get_args(Dispatching)),
        initial,
        _role(environment),
        control,
        metrics,
        pins_in(Path(pins)) if pins else None,
    )


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables called like those of a plug-in, which none reads: misspelt, perhaps."""
    return sorted(
        name for name in environment if name.startswith("EPLB_") and name not in VARIABLES
    )


def _choice(
    environment: Mapping[str, str], name: str, standard: str, known: tuple[str, ...]
) -> Any:
    chosen = environment.get(name, standard)
    if chosen not in known:
        raise OptionError(f"{name} is {chosen!r}: give {', '.join(known)}")
    return chosen


def _role(environment: Mapping[str, str]) -> str | None:
    role = environment.get("EPLB_ROLE", "").strip()
    if role and not _ROLE.fullmatch(role):
        raise OptionError(
            f"EPLB_ROLE is {role!r}: give up to 32 letters, digits, - or _, such as prefill"
        )
    return role or None


def _number(environment: Mapping[str, str], name: str, standard: int, most: int) -> int:
    text = environment.get(name)
    if text is None:
        return standard
    given = text.strip()
    number = int(given) if given.isascii() and given.isdecimal() else text
    return whole_number(number, name, most=most)
