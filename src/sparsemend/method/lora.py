"""LoRA on the sparse model: the baseline that keeps its adapter apart.

    y = x W^T + s (drop(x) A^T) B^T,   s = alpha / r   (Hu et al. 2021, arXiv 2106.09685)

The update is dense, so merging it fills the zeros in.  The repaired model therefore stays base +
adapter, which is what is measured; the adapter is saved in the layout of PEFT and the base beside
it keeps its zeros.  `allow_densify` merges all the same and reports the sparsity that cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsemend.masks import SparseLinear, support_sparsity
from sparsemend.method.base import TrainedRepair, Workbench, adapters
from sparsemend.method.low_rank import (
    SCALE_RULES,
    LowRankLinear,
    attach_adapters,
    check_adapter,
    check_ranks,
    factors,
    kaiming_start,
    scale_of,
)
from sparsemend.method.peft_layout import load_peft, save_peft
from sparsemend.training_plan import check_choice


class LoraLinear(LowRankLinear):
    """x W^T + scale * (drop(x) A^T) B^T; the base alone lies on the support."""

    holds_support = False

    def __init__(self, base: SparseLinear, start: Tensor, scale: float, dropout: float) -> None:
        super().__init__(base, start, scale)
        self.dropout = nn.Dropout(dropout)

    def effective_weight(self) -> Tensor:
        return (self.wide_weight() + self.update()).to(self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        inner = F.linear(self.dropout(input), self.lora_a.to(input.dtype)) * self.scale
        return super(SparseLinear, self).forward(input) + F.linear(
            inner, self.lora_b.to(inner.dtype)
        )


def attach_lora(
    model: PreTrainedModel, *, rank: int, scale: float, dropout: float, seed: int
) -> None:
    """Give every SparseLinear a LoraLinear with Kaiming-uniform A drawn in module order."""
    generator = torch.Generator().manual_seed(seed)

    def make(name: str, linear: SparseLinear) -> LoraLinear:
        start = kaiming_start(rank, linear.in_features, generator)
        return LoraLinear(linear, start, scale, dropout)

    attach_adapters(model, make)


@dataclass(kw_only=True)
class Lora(TrainedRepair):
    """Trains A and B beside the frozen sparse weights and leaves them there."""

    foldable: ClassVar[bool] = False
    holds_support: ClassVar[bool] = False

    rank: int
    alpha: float
    scale_rule: str
    dropout: float
    allow_densify: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapter(self.rank, self.alpha, self.dropout)
        check_choice("scale_rule", self.scale_rule, SCALE_RULES)

    def check_model(self, model: PreTrainedModel, supports: object) -> None:
        check_ranks(model, self.rank)

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        scale = scale_of(self.alpha, self.rank, self.scale_rule)
        attach_lora(model, rank=self.rank, scale=scale, dropout=self.dropout, seed=bench.seed)

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        return factors(model)

    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        """Nothing, or (allow_densify) the dense sum with an all-kept support."""
        if not self.allow_densify:
            return {"merged": False}
        before = support_sparsity(model)
        for name, adapter in list(adapters(model)):
            model.set_submodule(name, densified(adapter))
        return {"merged": True, "lost_sparsity": before - support_sparsity(model)}

    def save_adapter(self, model: PreTrainedModel, folder: Path, *, base: str) -> None:
        """PEFT's adapter_config.json and adapter_model.safetensors; nothing once merged."""
        found = {name: m for name, m in adapters(model) if isinstance(m, LoraLinear)}
        if found:
            save_peft(
                {name: (m.lora_a, m.lora_b) for name, m in found.items()},
                model,
                folder,
                base=base,
                alpha=self.alpha,
                dropout=self.dropout,
                rank_stabilised=self.scale_rule == "alpha_over_sqrt_r",
            )

    @torch.no_grad()
    def load_adapter(self, model: PreTrainedModel, folder: Path) -> None:
        scale = scale_of(self.alpha, self.rank, self.scale_rule)
        for name, (a, b) in load_peft(folder).items():
            base = model.get_submodule(name)
            assert isinstance(base, SparseLinear)
            adapter = LoraLinear(base, a, scale, self.dropout).train(model.training)
            adapter.lora_b.copy_(b)
            model.set_submodule(name, adapter)
        model.requires_grad_(False)


@torch.no_grad()
def densified(adapter: SparseLinear) -> SparseLinear:
    """The dense effective weight of an adapter, with every position in its support."""
    weight = nn.Parameter(adapter.effective_weight().detach().clone(), requires_grad=False)
    return SparseLinear(weight, adapter.bias, torch.ones_like(weight, dtype=torch.bool))
