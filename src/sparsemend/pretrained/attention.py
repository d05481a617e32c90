"""Whether a model can compute the attention that `model.attention` asks for, and which it can."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig

from sparsemend.pretrained.cause import cause

ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flex_attention")


def check_attention(
    path: str, auto: Any, config: PreTrainedConfig, attention: str, trust_remote_code: bool
) -> None:
    """Raise ValueError where the model cannot compute the attention that was asked for."""

    def refusal(name: str) -> Exception | None:
        try:
            with torch.device("meta"):
                auto.from_config(
                    copy.deepcopy(config),
                    attn_implementation=name,
                    trust_remote_code=trust_remote_code,
                )
        except (ValueError, ImportError) as error:
            return error
        return None

    error = refusal(attention)
    if error is None:
        return
    possible = [name for name in ATTENTIONS if name != attention and refusal(name) is None]
    if not possible:
        return  # something else is wrong, which loading will tell
    raise ValueError(
        f"model.attention={attention} does not work with model {path} here: {cause(error)}; give "
        f"{' or '.join(possible)}, or null for the model's own choice"
    ) from error
