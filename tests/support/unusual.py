"""Tiny random models of families whose blocks differ from those of a LLaMA."""

from __future__ import annotations

from typing import Any

import torch
from support.families import COMMON
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

PER_LAYER = {
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
}
UNUSUAL: dict[str, dict[str, Any]] = {
    # reads the weight of dt_proj alone; the residual stream is fp32 in a bf16 model
    "mamba": {"state_size": 2, "time_step_rank": 4},
    "jamba": {  # blocks of two kinds
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "mamba_d_state": 2,
        "mamba_dt_rank": 4,
        "num_experts": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "cpmant": {"dim_ff": 48, "dim_head": 8, "prompt_length": 4},  # blocks return two values
    "openai-gpt": {"num_hidden_layers": 2},  # blocks return a list
    # an embedding of the tokens for every block, keys that later blocks read, several states
    "gemma3n_text": {
        **PER_LAYER,
        "altup_num_inputs": 2,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {**PER_LAYER, "global_head_dim": 8},
    "falcon": {"alibi": False},  # a linear class of its own, whose output is changed in place
    "olmo": {"clip_qkv": 0.5},  # clips the outputs of linears in place
    # the cross-attention of a decoder alone is never called
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 48, "is_decoder": True},
    "hrm_text": {},  # runs its blocks several times
    "rwkv": {"num_hidden_layers": 8, "attention_hidden_size": 32, "context_length": 64},  # rescales
}


def unusual_model(family: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny random causal LM of one of UNUSUAL, in eval mode, with weights that matter."""
    config = AutoConfig.for_model(family, **{**COMMON, **UNUSUAL[family]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.config.use_cache = False
    return model.eval()


class Experts(nn.Module):
    """Experts of which the tokens choose by the sign of their first feature, in place of an MLP.

    The last is chosen by none.
    """

    def __init__(self, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.mlp = mlp

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.flatten(0, -2)
        chosen = (rows[:, 0] > 0).long()
        output = self.mlp(hidden).flatten(0, -2)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero().view(-1)
            output = output.index_add(0, mine, expert(rows[mine]))
        return output.view(hidden.shape)


def with_experts(model: PreTrainedModel) -> PreTrainedModel:
    """A LLaMA-like model with `Experts` in its second block, in place."""
    layer = model.model.layers[1]
    torch.manual_seed(3)
    layer.mlp = Experts(layer.mlp, model.config.hidden_size)
    return model.eval()
