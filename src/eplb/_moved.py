"""Old paths of public modules: they still import, as the module at its new path, with a warning."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "install"]

MOVED = {
    "eplb.forecast": "eplb.planning.forecast",
    "eplb.hardware": "eplb.cost.gpus",
    "eplb.models": "eplb.cost.models",
    "eplb.policies": "eplb.replaying.policies",
    "eplb.solver.exact": "eplb.planning.exact",
}
"""New path by old path."""


class _Finder:
    """Answers for old paths alone, with the module that stands at the new one.

    It is finder and loader at once, without their base classes, whose import takes 10 ms.
    """

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Where an old path leads."""
        del path, target
        if fullname not in MOVED:
            return None
        return ModuleSpec(fullname, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module at the new path."""
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is {new} now", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        # The import system is about to put the old path's in its place.
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run a second time; the module stays known by its new path."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let old paths be found."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
