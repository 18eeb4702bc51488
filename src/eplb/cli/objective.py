"""Options about what a plan keeps low on the busiest GPU, and what they mean."""

from dataclasses import dataclass, field
from typing import Annotated

import typer

from eplb.cli.bundles import one_of
from eplb.cli.service import OwnFigures
from eplb.cluster import Cluster
from eplb.cost.gpus import GPUS, Gpu, find_gpu
from eplb.cost.models import MODELS, Model, find_model, model_of_shape
from eplb.errors import OptionError
from eplb.loads import LoadTrace
from eplb.planning.batches import Batch
from eplb.planning.objectives import OBJECTIVES

_MOST_SIMILAR_GPU = "the most similar of these, and --bandwidth-within and --bandwidth-between"
_MOST_SIMILAR_MODEL = "the most similar of these, and --expert-bytes"


@dataclass(frozen=True)
class ObjectiveOptions:
    """What a plan keeps low, and the steps and the machines that it is of.

    Attributes:
        batch: With --dispatch best: plan for batches to which so many ranks bring so many tokens
            each. Each rank splits its own; with ,together at the end, all split together. With
            --objective, the size of a step. [default: whole windows]
        objective: What to keep low on the busiest GPU: its tokens, the experts that it touches in a
            step, or its time by an estimate for --model and --gpu.
    """

    batch: Annotated[str | None, typer.Option(metavar="TOKENS,TOP_K,RANKS")] = None
    objective: Annotated[str, typer.Option(metavar="|".join(OBJECTIVES))] = "tokens"
    gpu: Annotated[str, one_of(GPUS, "Name of the GPU, for --objective time: {}.")] = "H100"
    model: Annotated[
        str | None,
        one_of(
            MODELS,
            "Name of the model, for --objective time: {}. [default: what the loads say, or one "
            "with as many experts]",
        ),
    ] = None
    own: OwnFigures = field(default_factory=OwnFigures)

    def step(self, rule: str, *, weighs_nodes: bool, speed: str | None) -> Batch | None:
        """The batches that are planned for under a rule of dispatch, None for whole windows.

        Raises:
            OptionError: what is no batch or objective, or does not go together.
        """
        name = f"--objective {self.objective}"
        if self.objective not in OBJECTIVES:
            raise OptionError(f"{name} is not known: give one of {', '.join(OBJECTIVES)}")
        step = None if self.batch is None else batch_of(self.batch)
        if self.objective == "tokens":
            if step is not None and rule != "best":
                raise OptionError(
                    "--batch goes with --dispatch best: other rules split all sizes alike"
                )
            return step
        if step is None:
            raise OptionError(f"{name} needs the size of a step: give --batch")
        if rule not in ("even", "best"):
            raise OptionError(f"{name} goes with --dispatch even or best, and that is {rule}")
        if weighs_nodes:
            raise OptionError(
                f"{name} does not count the nodes that tokens cross: leave out --traffic and "
                "--node-price"
            )
        if self.objective == "time":
            if speed is not None:
                raise OptionError(f"{name} is for GPUs that are alike: leave out --speed")
            find_gpu(self.gpu, _MOST_SIMILAR_GPU)
        return step

    def machines(
        self, trace: LoadTrace, cluster: Cluster, step: Batch | None
    ) -> tuple[Gpu, Model | None]:
        """The GPU and the model whose time it is, None where no time is.

        Raises:
            OptionError: a model that is not known, or none where one is needed.
        """
        card = find_gpu(self.gpu, _MOST_SIMILAR_GPU)
        card = self.own.of_gpu(card, cluster)
        name = trace.model if self.model is None and trace.model in MODELS else self.model
        if name is not None:
            return card, self.own.of_model(find_model(name, _MOST_SIMILAR_MODEL))
        if self.objective != "time" or step is None:
            return card, None
        known = model_of_shape(trace.num_experts, step.top_k)
        if known is not None:
            return card, self.own.of_model(known)
        raise OptionError(
            f"no model that is known routes to {step.top_k} of {trace.num_experts} experts: "
            f"give the most similar as --model: {', '.join(MODELS)}"
        )


def batch_of(text: str) -> Batch:
    """The batches to plan for, of the text of --batch.

    Raises:
        OptionError: another text.
    """
    words = [word.strip() for word in text.split(",")]
    together = words[-1] == "together"
    sizes = words[:-1] if together else words
    if len(sizes) != 3 or not all(each.isascii() and each.isdecimal() for each in sizes):
        raise OptionError(
            f"--batch is {text!r}: give tokens, top_k and ranks as 32,8,16, or 32,8,16,together"
        )
    tokens, top_k, ranks = map(int, sizes)
    return Batch(tokens, top_k, ranks, together)
