"""LoRA on the sparse model: the baseline that keeps its adapter apart.

    y = x W^T + s (drop(x) A^T) B^T,   s = alpha / r   (Hu et al. 2021, arXiv 2106.09685)

The update is dense, so merging it fills the zeros in.  The repaired model therefore stays base +
adapter and is measured so; the adapter is saved in the layout of PEFT and the base beside it keeps
its zeros.  `allow_densify` merges all the same and reports the sparsity that this costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from sparsemend.method.adapter.fold import adapters
from sparsemend.method.adapter.lora import LoraLinear, attach_lora
from sparsemend.method.adapter.low_rank import (
    SCALE_RULES,
    check_adapter,
    scale_of,
)
from sparsemend.method.adapter.peft_layout import load_peft, peft_scale, save_peft
from sparsemend.method.base import Workbench
from sparsemend.method.low_rank_repair import LowRankRepair
from sparsemend.sparse.count import support_sparsity
from sparsemend.sparse.linear import SparseLinear
from sparsemend.training.plan import check_choice


@dataclass(kw_only=True)
class Lora(LowRankRepair):
    """Trains A and B beside the frozen sparse weights and leaves them there."""

    foldable: ClassVar[bool] = False
    holds_support: ClassVar[bool] = False

    scale_rule: str
    dropout: float
    allow_densify: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapter(self.rank, self.alpha, self.dropout)
        check_choice("scale_rule", self.scale_rule, SCALE_RULES)

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        scale = scale_of(self.alpha, self.rank, self.scale_rule)
        attach_lora(model, rank=self.rank, scale=scale, dropout=self.dropout, seed=bench.seed)

    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        """Leave base and adapter apart, or (allow_densify) merge them on an all-kept support."""
        if not self.allow_densify:
            return {"merged": False}
        before = support_sparsity(model)
        for name, adapter in list(adapters(model)):
            model.set_submodule(name, densify(adapter))
        return {"merged": True, "lost_sparsity": before - support_sparsity(model)}

    def save_adapter(self, model: PreTrainedModel, folder: Path, *, base: str) -> None:
        """Write PEFT's adapter_config.json and adapter_model.safetensors; nothing once merged."""
        linears = {name: m for name, m in adapters(model) if isinstance(m, LoraLinear)}
        if linears:
            save_peft(
                {name: (m.lora_a, m.lora_b) for name, m in linears.items()},
                model,
                folder,
                base=base,
                alpha=self.alpha,
                dropout=self.dropout,
                rank_stabilised=self.scale_rule == "alpha_over_sqrt_r",
            )

    @torch.no_grad()
    def load_adapter(self, model: PreTrainedModel, folder: Path) -> None:
        """Attach the factors of `folder` with the scale that its config states, or else ours."""
        factors = load_peft(folder)
        scale = peft_scale(folder, factors)
        if scale is None:
            scale = scale_of(self.alpha, self.rank, self.scale_rule)
        for name, (a, b) in factors.items():
            base = model.get_submodule(name)
            assert isinstance(base, SparseLinear)
            adapter = LoraLinear(base, a, scale, self.dropout).train(model.training)
            adapter.lora_b.copy_(b)
            model.set_submodule(name, adapter)
        model.requires_grad_(False)


@torch.no_grad()
def densify(adapter: SparseLinear) -> SparseLinear:
    """The dense effective weight of an adapter, with every position in its support."""
    weight = nn.Parameter(adapter.effective_weight().detach().clone(), requires_grad=False)
    return SparseLinear(weight, adapter.bias, torch.ones_like(weight, dtype=torch.bool))
