"""Tiny random models of the families that keep linears otherwise than as nn.Linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.sparse.linear import SparseLinear

SPECIAL: dict[str, Any] = {
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
COMMON: dict[str, Any] = {
    **SPECIAL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FOUR = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
GPT = {**SPECIAL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LAYOUTS: dict[str, dict[str, Any]] = {
    "mixtral": {**COMMON, **LOCAL},
    "qwen2_moe": {**COMMON, **FOUR, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**COMMON, **FOUR, "head_dim": 8},
    "deepseek_v3": {**COMMON, **LATENT},
    "gpt_oss": {
        **COMMON,
        **LOCAL,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "olmoe": {**COMMON, **LOCAL, "num_experts": 4},
    "granitemoe": {**COMMON, **LOCAL},
    "llama4_text": {
        **COMMON,
        **LOCAL,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "head_dim": 8,
        "interleave_moe_layer_step": 1,
    },
    "dbrx": {
        **SPECIAL,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "jetmoe": {
        **{key: value for key, value in COMMON.items() if key != "num_attention_heads"},
        **LOCAL,
        "kv_channels": 8,
    },
    "nemotron_h": {
        **COMMON,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
        "layers_block_type": ["moe", "attention"],
        "head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
    },
    "gpt2": GPT,
    "openai-gpt": GPT,
}


def layout_model(family: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny random causal LM as its class stores it, with experts in the class's own forward.

    Biases are not zero, and weights are so large that a wrong row changes logits.
    """
    config = AutoConfig.for_model(family, **LAYOUTS[family])
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(std=0.15)
    model.config.use_cache = False
    return model.eval()


def prune_two_of_four_(model: nn.Module) -> dict[str, Tensor]:
    """Make every prunable linear sparse, 2:4 along its inputs at random; returns the supports."""
    generator = torch.Generator().manual_seed(1)
    supports = {}
    for name, linear in prunable_linears(model).items():
        if type(linear) is not nn.Linear:  # Llama 4's router does more than multiply
            continue
        scores = torch.rand(linear.weight.numel() // 4, 4, generator=generator)
        keep = (scores.argsort(dim=1) < 2).view(linear.weight.shape)
        model.set_submodule(name, SparseLinear(linear.weight, linear.bias, keep))
        supports[name] = keep
    return supports
