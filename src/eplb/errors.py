"""Every error that the project raises, so that one `except eplb.EplbError` catches them all.

    EplbError
    ├── LoadsError          loads, or counts made from them, that cannot be planned (a ValueError)
    ├── ClusterError        GPUs, nodes, slots and groups that do not fit together (a ValueError)
    ├── PlacementError      a placement that no cluster could hold (a ValueError)
    ├── FormatError         a file that is not what it claims to be (a ValueError)
    ├── OptionError         a choice that there is not (a ValueError)
    ├── PolicyError         a policy that cannot be loaded, or that fails (a ValueError)
    ├── UnsolvedError       no proven optimum within the time given (a RuntimeError)
    └── MissingExtraError   a package that an optional part needs is not installed (an ImportError)

Messages name the value and what would do.
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
    """Loads, or counts made from them, that cannot be planned."""


class ClusterError(EplbError, ValueError):
    """GPUs, nodes, slots and groups that do not fit together."""


class PlacementError(EplbError, ValueError):
    """A placement that no cluster could hold."""


class FormatError(EplbError, ValueError):
    """A file that is not what it claims to be."""


class OptionError(EplbError, ValueError):
    """A choice that there is not."""


class PolicyError(EplbError, ValueError):
    """A policy that cannot be loaded, or that fails."""


class UnsolvedError(EplbError, RuntimeError):
    """No proven optimum within the time given."""


class MissingExtraError(EplbError, ImportError):
    """A package that an optional part needs is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'eplb[{extra}]'")
        self._arguments = (package, extra, purpose)

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str, str]]:
        """Errors travel between processes by their arguments, not by their message."""
        return type(self), self._arguments
