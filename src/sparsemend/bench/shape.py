"""The size of a random LLaMA, and the dtype and tokens that a bench gives it by default."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Widths and counts of a LLaMA; dtype and tokens are defaults that bench.yaml refers to."""

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    key_value_heads: int
    vocabulary: int
    dtype: str
    tokens: list[list[int]]

    def model(
        self, *, positions: int, dtype: torch.dtype, device: torch.device, seed: int
    ) -> PreTrainedModel:
        """Random weights in eval mode, made on `device`; the same at every call."""
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=positions,
        )
        torch.manual_seed(seed)
        with device:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.config.use_cache = False
        return model.eval()

    def at_size(self, *, hidden: int, blocks: int) -> Shape:
        """The shape of another width and depth: the width of a head and all proportions stay."""
        return replace(
            self,
            hidden=hidden,
            intermediate=self.intermediate * hidden // self.hidden,
            heads=self.heads * hidden // self.hidden,
            key_value_heads=self.key_value_heads * hidden // self.hidden,
            blocks=blocks,
        )

    def __str__(self) -> str:
        return (
            f"random LLaMA, hidden {self.hidden}, intermediate {self.intermediate}, "
            f"{self.blocks} blocks, vocabulary {self.vocabulary}"
        )
