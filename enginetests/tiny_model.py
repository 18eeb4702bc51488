"""A tiny mixture of experts as vLLM loads one: Qwen3-MoE's shape, random weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, EXPERTS, SPARE, TOP_K, WORDS = 3, 16, 4, 4, 256
_HIDDEN, _EXPERT, _HEADS, _KEYS, _HEAD = 64, 32, 4, 2, 32


def write_model(folder: Path, layers: int = LAYERS, experts: int = EXPERTS) -> None:
    """Write the model's files. Routers prefer some experts, as trained ones do."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Qwen3MoeForCausalLM"],
                "model_type": "qwen3_moe",
                "dtype": "float32",
                "vocab_size": WORDS,
                "hidden_size": _HIDDEN,
                "hidden_act": "silu",
                "intermediate_size": 2 * _HIDDEN,
                "max_position_embeddings": 512,
                "num_hidden_layers": layers,
                "num_attention_heads": _HEADS,
                "num_key_value_heads": _KEYS,
                "head_dim": _HEAD,
                "attention_bias": False,
                "rms_norm_eps": 1e-6,
                "rope_theta": 10_000.0,
                "tie_word_embeddings": False,
                "moe_intermediate_size": _EXPERT,
                "num_experts": experts,
                "num_experts_per_tok": TOP_K,
                "norm_topk_prob": True,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "bos_token_id": 1,
                "eos_token_id": 2,
            }
        )
    )
    draw = torch.Generator().manual_seed(7)

    def weights(*shape: int, scale: float = 0.2) -> torch.Tensor:
        return scale * torch.randn(shape, generator=draw)

    tensors = {
        "model.embed_tokens.weight": weights(WORDS, _HIDDEN, scale=1.0),
        "model.norm.weight": torch.ones(_HIDDEN),
        "lm_head.weight": weights(WORDS, _HIDDEN, scale=0.5),
    }
    for layer in range(layers):
        of_layer = {
            "input_layernorm": torch.ones(_HIDDEN),
            "post_attention_layernorm": torch.ones(_HIDDEN),
            "self_attn.q_proj": weights(_HEADS * _HEAD, _HIDDEN),
            "self_attn.k_proj": weights(_KEYS * _HEAD, _HIDDEN),
            "self_attn.v_proj": weights(_KEYS * _HEAD, _HIDDEN),
            "self_attn.o_proj": weights(_HIDDEN, _HEADS * _HEAD),
            "self_attn.q_norm": torch.ones(_HEAD),
            "self_attn.k_norm": torch.ones(_HEAD),
            "mlp.gate": weights(experts, _HIDDEN) * torch.exp(weights(experts, 1, scale=0.8)),
        }
        for expert in range(experts):
            of_layer |= {
                f"mlp.experts.{expert}.gate_proj": weights(_EXPERT, _HIDDEN),
                f"mlp.experts.{expert}.up_proj": weights(_EXPERT, _HIDDEN),
                f"mlp.experts.{expert}.down_proj": weights(_HIDDEN, _EXPERT),
            }
        tensors |= {f"model.layers.{layer}.{name}.weight": each for name, each in of_layer.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
