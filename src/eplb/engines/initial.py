"""A placement that vLLM starts with: EPLB_INITIAL, in any form that `eplb plan` writes.

vLLM has no place for one. It is what the planner answers at the first rearrangement, which is
brought forward from a quarter of the interval to the first pass. All ranks rearrange in the same
pass or hang, so they compare what they have read before that pass, and where it differs nothing is
brought forward and nobody uses it.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.engines.control import map_of
from eplb.engines.log import failure
from eplb.errors import OptionError

_INSTEAD = "vLLM starts with its own layout"


class Initial:
    """The placement of a file, None for none, until it has been used. `alike` tells whether all
    ranks plan, and have the same array, by a kind of question.
    """

    def __init__(
        self,
        path: Path | None,
        alike: Callable[[str, NDArray[np.int64]], bool],
        logger: logging.Logger,
    ) -> None:
        self._path = path
        self._alike = alike
        self._logger = logger
        self._maps: dict[tuple[int, ...], NDArray[np.int64]] = {}
        self._errors: list[Exception] = []
        self._due = False

    def read(self, state: Any, model: Any) -> None:
        """Read the file for a model that the engine has added to its state. Never raises.

        An engine that drafts with a second model has no placement for that one in the file.
        """
        if self._path is None:
            return
        try:
            if state.parallel_config.enable_elastic_ep:
                raise OptionError("EPLB_INITIAL does not go with elastic expert parallelism")
            phy2log = _map_for(model, self._path)
            self._maps[phy2log.shape[0], model.num_logical_experts, phy2log.shape[1]] = phy2log
        except Exception as error:
            self._errors.append(error)

    def step(self, theirs: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
        """Step vLLM's `EplbState`, rearranging in the first pass where a placement waits for it."""
        profile = kwargs.get("is_profile", len(args) > 1 and args[1])
        if self._path is None or profile:
            return theirs(state, *args, **kwargs)
        self._path = None
        before = state.expert_rearrangement_step
        if self._agreed():
            self._due = True
            state.expert_rearrangement_step = state.expert_rearrangement_step_interval - 1
        answer = theirs(state, *args, **kwargs)
        if self._due and before + 1 < state.expert_rearrangement_step_interval:
            # The first plan for loads comes when it would have come.
            state.expert_rearrangement_step = before + 1
        return answer

    def take(self, model: tuple[int, ...], *, loaded: bool) -> NDArray[np.int64] | None:
        """[L, P] what to answer at a model's first rearrangement, by its L, E and P, once; None
        where there is none. The engine shows no load where it tries what memory a rearrangement
        takes.
        """
        return self._maps.pop(model, None) if self._due or loaded else None

    def _agreed(self) -> bool:
        """Whether ranks have read the same; where they have not, none of them uses it."""
        none = np.zeros(0, np.int64)
        read = [none, *(self._maps[model].ravel() for model in sorted(self._maps))]
        alike = self._alike("EPLB_INITIAL", np.concatenate(read))
        if not alike:
            self._maps.clear()
        elif not self._maps and self._errors:
            failure(self._logger, self._errors[0], _INSTEAD)
        return bool(self._maps)


def _map_for(model: Any, path: Path) -> NDArray[np.int64]:
    """[L, P] the placement in a file, for the MoE layers of a model of vLLM's."""
    from eplb.formats.placements import load_placement

    num_slots = model.num_physical_experts
    found = [
        re.search(r"\blayers\.([0-9]+)\.", str(getattr(layer, "layer_name", "")))
        for layer in model.moe_layers
    ]
    numbers = [int(each.group(1)) for each in found if each is not None]
    placement = load_placement(
        path,
        num_slots // model.num_local_physical_experts,
        num_experts=model.num_logical_experts,
        layers=numbers if numbers and len(numbers) == model.num_moe_layers else None,
    )
    return map_of(placement, path, model.num_moe_layers, num_slots)
