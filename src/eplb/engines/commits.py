"""What follows wherever vLLM puts a map in force, all layers at once or layer by layer."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from eplb.engines.log import failure
from eplb.engines.start import unknown_arguments
from eplb.errors import PolicyError

_OF_COMMITS = {
    "_commit_eplb_maps": ("model_state", "new_physical_to_logical_map"),
    "_commit_eplb_maps_for_layer": ("model_state", "new_physical_to_logical_map", "layer"),
    "_pad_out_tensor": ("src", "dst"),
}
"""What of vLLM puts a map in force, and the arguments of each."""


def after_commits(
    function: Callable[[Any, Any, int | None], None], logger: logging.Logger, instead: str
) -> bool:
    """Call a function after vLLM's own, with vLLM's state of the model, the new map from physical
    to logical experts, and the number of the layer, None for all; what it raises is logged, with
    what is done instead. Whether it will be called: it is not where another one is.

    Raises:
        PolicyError: a vLLM that does it otherwise.
    """
    from vllm.distributed.eplb import eplb_state

    commits = [getattr(eplb_state, name, None) for name in _OF_COMMITS]
    if any(hasattr(each, "eplb") for each in commits):
        return False
    for (name, known), theirs in zip(_OF_COMMITS.items(), commits, strict=True):
        if wrong := unknown_arguments(name, theirs, known):
            raise PolicyError(wrong)

    def and_ours(theirs: Any) -> Callable[..., None]:
        @functools.wraps(theirs)
        def commit(
            model_state: Any, new_physical_to_logical_map: Any, layer: int | None = None
        ) -> None:
            more = () if layer is None else (layer,)
            theirs(model_state, new_physical_to_logical_map, *more)
            try:
                function(model_state, new_physical_to_logical_map, layer)
            except Exception as error:
                failure(logger, error, instead)

        commit.eplb = True  # type: ignore[attr-defined]
        return commit

    for name, theirs in list(zip(_OF_COMMITS, commits, strict=True))[:2]:
        setattr(eplb_state, name, and_ours(theirs))
    return True
