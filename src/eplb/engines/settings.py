"""What a user says of a plug-in: environment variables, checked before anything runs.

A plug-in has no other way to be told: engines pass none of their options on. Every process of an
engine must be given the same ones, because every rank plans for itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from eplb.errors import OptionError
from eplb.planning.plan import Effort

__all__ = ["VARIABLES", "Settings", "is_on", "settings_from", "unknown_variables"]

VARIABLES = {
    "EPLB_POLICY": '"eplb" puts this planner in place of the engine\'s own',
    "EPLB_WINDOWS": "windows of load to plan for: so many past ones, or so many of those shown",
    "EPLB_MAX_MOVES": 'most experts that GPUs receive at a plan: "5%" of all slots, "800", "none"',
    "EPLB_EFFORT": "fast, default or thorough",
    "EPLB_THREADS": "most threads of one process while it plans",
    "EPLB_RECORD": "folder to record the loads in, that vLLM shows",
    "EPLB_RECORD_FILES": "most windows to keep there",
}
"""Variables by name, and what they say."""

_MOST_WINDOWS = 64
_MOST_FILES = 1_000_000


@dataclass(frozen=True)
class Settings:
    """How a plug-in plans.

    Attributes:
        windows: most windows to plan for.
        max_moves: most moves at one plan, None for any number.
        max_share: the same as a share of all slots of all layers, None for any.
        effort: of the planner.
        threads: most threads of one process.
        record: folder for recorded loads, None for none.
        record_files: most windows to keep there.
    """

    windows: int = 16
    max_moves: int | None = None
    max_share: float | None = 0.05
    effort: Effort = "fast"
    threads: int = 4
    record: Path | None = None
    record_files: int = 1024

    def budget(self, num_layers: int, num_slots: int) -> int | None:
        """Most moves at one plan of so many layers of so many slots; None for any number."""
        if self.max_share is not None:
            return int(self.max_share * num_layers * num_slots)
        return self.max_moves

    def __str__(self) -> str:
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(f"{name} {value}" for name, value in said.items() if value is not None)


def is_on(environment: Mapping[str, str]) -> bool:
    """Whether a user asked for this planner.

    Raises:
        OptionError: an EPLB_POLICY that nobody knows.
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
        OptionError: a value that does not do.
    """
    standard = Settings()
    max_moves, max_share = _moves(environment, standard)
    effort = environment.get("EPLB_EFFORT", standard.effort)
    for known in get_args(Effort):
        if effort == known:
            break
    else:
        raise OptionError(f"EPLB_EFFORT is {effort!r}: give {', '.join(get_args(Effort))}")
    record = environment.get("EPLB_RECORD")
    return Settings(
        _number(environment, "EPLB_WINDOWS", standard.windows, _MOST_WINDOWS),
        max_moves,
        max_share,
        known,
        _number(environment, "EPLB_THREADS", standard.threads, _MOST_FILES),
        Path(record) if record else None,
        _number(environment, "EPLB_RECORD_FILES", standard.record_files, _MOST_FILES),
    )


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables called like those of a plug-in, which none reads: misspelt, perhaps."""
    return sorted(
        name for name in environment if name.startswith("EPLB_") and name not in VARIABLES
    )


def _number(environment: Mapping[str, str], name: str, standard: int, most: int) -> int:
    text = environment.get(name)
    if text is None:
        return standard
    if not text.strip().isdecimal() or not 1 <= int(text) <= most:
        raise OptionError(f"{name} is {text!r}: give a whole number from 1 to {most}")
    return int(text)


def _moves(environment: Mapping[str, str], standard: Settings) -> tuple[int | None, float | None]:
    text = environment.get("EPLB_MAX_MOVES")
    if text is None:
        return standard.max_moves, standard.max_share
    given = text.strip().lower()
    if given == "none":
        return None, None
    if given.isdecimal():
        return int(given), None
    try:
        share = float(given.removesuffix("%")) / 100.0
    except ValueError:
        share = -1.0
    if not given.endswith("%") or not 0.0 <= share <= 1.0:
        raise OptionError(
            f'EPLB_MAX_MOVES is {text!r}: give a share of all slots like "5%", a whole number, '
            "or none"
        )
    return None, share
