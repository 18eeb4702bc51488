"""Every error that the project raises, so that one `except eplb.EplbError` catches them all.

    EplbError
    ├── LoadsError          loads, or counts of them, that cannot be planned (a ValueError)
    ├── ClusterError        GPUs, nodes, slots and groups that do not fit together (a ValueError)
    ├── PlacementError      an invalid placement (a ValueError)
    ├── FormatError         a file that cannot be read as, or written in, a format (a ValueError)
    ├── OptionError         an unknown or invalid option (a ValueError)
    ├── PolicyError         a policy that cannot be loaded, or that fails (a ValueError)
    ├── UnsolvedError       no optimum was proven within the time limit (a RuntimeError)
    └── MissingExtraError   an optional feature's package is not installed (an ImportError)

Messages name the value and say which values are valid.
"""

__all__ = [
    "ClusterError",
    "EplbError",
    "FormatError",
    "LoadsError",
    "MissingExtraError",
    "OptionError",
    "PlacementError",
    "PolicyError",
    "UnsolvedError",
]


class EplbError(Exception):
    """The root of every error that the project raises."""


class LoadsError(EplbError, ValueError):
    """Loads, or counts derived from them, that cannot be planned."""


class ClusterError(EplbError, ValueError):
    """GPUs, nodes, slots and groups that do not fit together."""


class PlacementError(EplbError, ValueError):
    """An invalid placement, such as one that lacks an expert."""


class FormatError(EplbError, ValueError):
    """A file that cannot be read as, or written in, a known format."""


class OptionError(EplbError, ValueError):
    """An unknown or invalid option."""


class PolicyError(EplbError, ValueError):
    """A policy that cannot be loaded, or that fails."""


class UnsolvedError(EplbError, RuntimeError):
    """No optimum was proven within the time limit."""


class MissingExtraError(EplbError, ImportError):
    """A package that an optional feature needs is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        # The package by its own name: that works whatever eplb was installed from.
        super().__init__(
            f"{purpose} needs {package}: pip install {package}, or eplb with its extra {extra!r}"
        )
        self._arguments = (package, extra, purpose)

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str, str]]:
        """Errors travel between processes by their arguments, not by their message."""
        return type(self), self._arguments
