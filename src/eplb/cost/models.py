"""Models by name: the shape of their expert layers, and what their experts weigh.

Figures are those of each model's `config.json`, read there or where `source` says. For another
model, or one served in another number format, `dataclasses.replace` a preset or make a `Model`.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from eplb.checks import find_named, real_number, whole_number
from eplb.errors import OptionError

__all__ = [
    "EXPERT_BYTES", "MODELS", "Model", "NumberFormat", "expert_bytes_of", "find_model",
    "model_of_shape",
]  # fmt: skip

_MOST_BYTES = 2**50

NumberFormat = Literal["bf16", "fp8", "int8", "fp4"]


@dataclass(frozen=True)
class Model:
    """A mixture-of-experts model as it is served. An expert is three matrices: gate, up and down.

    Attributes:
        name: of the model.
        num_layers: layers, dense ones too.
        num_moe_layers: layers with experts.
        num_experts: E, experts of a layer that tokens are routed to; shared ones are no part.
        top_k: experts that a token is routed to in a layer.
        hidden_size: numbers of a token between layers.
        expert_size: width of an expert (`moe_intermediate_size`).
        bytes_per_weight: of an expert's weights, with their scales.
        number_format: that its products are computed in.
        dispatch_bytes: of one number of a token on its way to an expert, with its scale.
        combine_bytes: of one on its way back.
        kv_numbers: numbers that the KV cache keeps of a token, in all layers together. Layers that
            keep a window or a state of fixed size keep none for a token more. None where no such
            number is known.
        num_groups: groups of experts that a token's experts are chosen by.
        topk_groups: how many of them a token's experts are in; None where it chooses from all.
        source: where the figures are from.

    Raises:
        OptionError: a figure that no model has.
    """

    name: str
    num_layers: int
    num_moe_layers: int
    num_experts: int
    top_k: int
    hidden_size: int
    expert_size: int
    bytes_per_weight: float
    number_format: NumberFormat = "bf16"
    dispatch_bytes: float = 2.0
    combine_bytes: float = 2.0
    kv_numbers: int | None = None
    source: str = "given"
    num_groups: int = 1
    topk_groups: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_moe_layers", "num_experts", "top_k", "hidden_size"):
            whole_number(getattr(self, name), name)
        whole_number(self.expert_size, "expert_size")
        if self.kv_numbers is not None:
            whole_number(self.kv_numbers, "kv_numbers")
        for name in ("bytes_per_weight", "dispatch_bytes", "combine_bytes"):
            real_number(getattr(self, name), name, "bytes")
        if self.num_moe_layers > self.num_layers:
            raise OptionError(
                f"num_moe_layers is {self.num_moe_layers}: the model has {self.num_layers} layers"
            )
        whole_number(self.num_groups, "num_groups", most=self.num_experts)
        if self.topk_groups is not None:
            whole_number(self.topk_groups, "topk_groups", most=self.num_groups)
        if self.top_k > self.num_experts:
            raise OptionError(f"top_k is {self.top_k}: a layer has {self.num_experts} experts")
        if self.number_format not in get_args(NumberFormat):
            formats = ", ".join(get_args(NumberFormat))
            raise OptionError(f"number_format is {self.number_format!r}: give one of {formats}")

    @property
    def expert_weights(self) -> int:
        """Weights of one expert of one layer."""
        return 3 * self.hidden_size * self.expert_size

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert of one layer."""
        return round(self.expert_weights * self.bytes_per_weight)

    @property
    def kv_bytes(self) -> int | None:
        """Bytes of a token in the KV cache, in BF16; None where no such number is known."""
        return None if self.kv_numbers is None else 2 * self.kv_numbers


_FP8_SENT = 1 + 4 / 128
"""Bytes of a number in FP8 with one FP32 scale for each 128, as DeepEP sends them."""
_MXFP4 = 17 / 32
"""Bytes of a weight in MXFP4: 4 bits, and one scale of 8 bits for each 32."""
_INT4 = 18 / 32
"""Bytes of a weight of 4 bits with a scale of 16 bits for each 32, as Kimi-K2.5 has them."""
_MLA = 61 * (512 + 64)
"""Numbers of a token in 61 layers of latent attention: its latent, and the part with positions."""

# Bytes of a weight, the format computed in, bytes of a number sent to experts and sent back.
_BF16 = (2.0, "bf16", 2.0, 2.0)
_FP8 = (1.0, "fp8", _FP8_SENT, 2.0)
_FP4 = (_MXFP4, "bf16", 2.0, 2.0)
_FP4_IN_FP8 = (_MXFP4, "fp8", _FP8_SENT, 2.0)
_4_BITS = (_INT4, "bf16", 2.0, 2.0)


def _card(name: str) -> str:
    return f"https://huggingface.co/{name}/blob/main/config.json"


_V4_PRO = (
    "https://apxml.com/models/deepseek-v4-pro; all layers have experts, of 4 bits: "
    "https://lzwjava.github.io/deepseek-v4-pro-architecture-and-code-overview-en"
)
_K2_5 = (
    "https://glennklockwood.com/garden/kimi-k2.5; the format of experts: "
    "https://huggingface.co/eatang/Kimi-K2.5-2layer"
)

_MIXTRAL = _card("mistralai/Mixtral-8x7B-Instruct-v0.1")

_ROWS: tuple[tuple[Any, ...], ...] = (
    # Name, layers, those with experts, experts, top k, hidden size, expert size, format,
    # numbers in the KV cache, publisher of the card of that name or another source, groups.
    ("DeepSeek-V3", 61, 58, 256, 8, 7168, 2048, _FP8, _MLA, "deepseek-ai", 8, 4),
    ("DeepSeek-R1", 61, 58, 256, 8, 7168, 2048, _FP8, _MLA, "deepseek-ai", 8, 4),
    # The first three of its layers route by the token's number, and count as well.
    ("DeepSeek-V4-Flash", 43, 43, 256, 6, 4096, 2048, _FP4_IN_FP8, None, "deepseek-ai"),
    ("DeepSeek-V4-Pro", 61, 61, 384, 6, 7168, 3072, _FP4_IN_FP8, None, _V4_PRO),
    ("Kimi-K2", 61, 60, 384, 8, 7168, 2048, _FP8, _MLA, _card("moonshotai/Kimi-K2-Instruct")),
    # The shape of Kimi-K2, with experts of 4 bits.
    ("Kimi-K2.5", 61, 60, 384, 8, 7168, 2048, _4_BITS, _MLA, _K2_5),
    # Experts work on a token that is projected to half its width, 7168, and travels so.
    ("Kimi-K3", 93, 92, 896, 16, 3584, 3072, _FP4, None, "moonshotai"),
    ("GLM-4.5", 92, 89, 160, 8, 5120, 1536, _BF16, 92 * 2 * 8 * 128, "zai-org"),
    ("GLM-5", 78, 75, 256, 8, 6144, 2048, _BF16, None, "zai-org"),
    ("MiniMax-M2", 62, 62, 256, 8, 3072, 1536, _FP8, 62 * 2 * 8 * 128, "MiniMaxAI"),
    ("Mixtral-8x7B", 32, 32, 8, 2, 4096, 14336, _BF16, 32 * 2 * 8 * 128, _MIXTRAL),
    ("Qwen3-30B-A3B", 48, 48, 128, 8, 2048, 768, _BF16, 48 * 2 * 4 * 128, "Qwen"),
    ("Qwen3-235B-A22B", 94, 94, 128, 8, 4096, 1536, _BF16, 94 * 2 * 4 * 128, "Qwen"),
    ("Qwen3.5-397B-A17B", 60, 60, 512, 10, 4096, 1024, _BF16, 15 * 2 * 2 * 256, "Qwen"),
    ("gpt-oss-120b", 36, 36, 128, 4, 2880, 2880, _FP4, 18 * 2 * 8 * 64, "openai"),
    ("gpt-oss-20b", 24, 24, 32, 4, 2880, 2880, _FP4, 12 * 2 * 8 * 64, "openai"),
)


def _model(name: str, *figures: Any) -> Model:
    *shape, served, kv_numbers, source = figures[:9]
    source = source if "://" in source else _card(f"{source}/{name}")
    found: list[Any] = [name, *shape, *served, kv_numbers, source, *figures[9:]]
    return Model(*found)


MODELS: dict[str, Model] = {row[0]: _model(*row) for row in _ROWS}
"""Models in the number format that their weights are published in: FP8 for DeepSeek-V3 and -R1,
Kimi-K2 and MiniMax (the scales of 128 x 128 weights are left out: 1 / 4096); BF16 for GLM, Mixtral
and Qwen; MXFP4 for DeepSeek-V4, Kimi-K3 and gpt-oss, and whole numbers of 4 bits for Kimi-K2.5, of
which all but DeepSeek-V4 are computed in BF16.

`kv_numbers` are layers x (keys and values) x heads that keep them x their size, or layers x the
latent. Of Qwen3.5 every fourth layer keeps tokens and of gpt-oss every second, the others a state
or a window. DeepSeek-V4 and Kimi-K3 keep less of older tokens, and GLM-5 an index beside the
latent: they have no such number here.
"""

_ALSO = {
    "DeepSeek-V3.1": "DeepSeek-V3",
    "DeepSeek-V3.2": "DeepSeek-V3",
    "DeepSeek-V3-0324": "DeepSeek-V3",
    "DeepSeek-R1-0528": "DeepSeek-R1",
    "GLM-4.6": "GLM-4.5",
    "GLM-4.7": "GLM-4.5",
    "GLM-5.1": "GLM-5",
    "Kimi-K2-Instruct": "Kimi-K2",
    "Mixtral-8x7B-Instruct-v0.1": "Mixtral-8x7B",
    "Mixtral-8x7B-v0.1": "Mixtral-8x7B",
}
"""Models whose expert layers are those of another, by the name of that."""

_RELEASE = re.compile(r"([-_](exp|instruct|thinking|base|chat|terminus|speciale|[0-9]{4}))+$", re.I)
"""Ends of names by which releases of a model differ, whose expert layers are alike. Those that name
a format of weights are none.
"""

EXPERT_BYTES: dict[str, int] = {name: model.expert_bytes for name, model in MODELS.items()}
"""Bytes of one expert of one layer of each model."""


_INSTEAD = (
    "an eplb.cost.Model with num_layers, num_moe_layers, num_experts, top_k, hidden_size, "
    "expert_size and bytes_per_weight"
)


def find_model(name: str, instead: str = _INSTEAD) -> Model:
    """The figures of a model by its name; case, dashes, publisher and release do not matter.

    Args:
        name: such as "deepseek-ai/DeepSeek-V3" or "Qwen/Qwen3-235B-A22B-Instruct-2507".
        instead: what the message of an error tells a user to give for a model that is not known.

    Raises:
        OptionError: the name is not known. The message has the nearest name and all known ones.
    """
    return find_named(_RELEASE.sub("", str(name)), MODELS, "model", instead, _ALSO)


def model_of_shape(num_experts: int, top_k: int | None) -> Model | None:
    """The first known model whose layers have so many experts, of which a token goes to so many."""
    sizes = (num_experts, top_k)
    return next((each for each in MODELS.values() if (each.num_experts, each.top_k) == sizes), None)


def expert_bytes_of(model: str | None, said: int | None = None) -> int | None:
    """Bytes of an expert's weights in one layer: those said, or the model's; None where unknown.

    Raises:
        OptionError: no whole number from 1 to 2**50.
    """
    if said is None:
        return EXPERT_BYTES.get(model or "")
    size = whole_number(said, "expert_bytes")
    if size > _MOST_BYTES:
        raise OptionError(f"expert_bytes is {size}: give {_MOST_BYTES} or less")
    return size
