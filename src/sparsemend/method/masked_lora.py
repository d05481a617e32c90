"""Masked LoRA: a low-rank update that is zero wherever the weight is pruned.

    W_eff = keep * (W + s B A),   s = alpha / r

B (O, R) starts at zero and A (R, I) Kaiming-uniform, so attaching changes nothing, and the mask
is in the forward pass and in the fold alike, so merging loses no zero.  The same function as
MaskLoRA (PERP, Zimmer et al. 2023, arXiv 2312.15230), SparsePEFT (SQFT, Munoz et al. 2024, arXiv
2410.03750) and SP-LoRA.  The two factors are merged into the weight first, so one product per
linear; gradients are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.masks import SparseLinear, sparse_linears
from sparsemend.method.base import TrainedRepair, Workbench


class MaskedLoraLinear(SparseLinear):
    """W_eff = keep * (W + scale * B A); W frozen, A (R, I) and B (O, R) fp32."""

    def __init__(
        self, base: SparseLinear, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__(base.weight, base.bias, base.keep)
        device = base.weight.device
        bound = 1 / math.sqrt(base.in_features)  # kaiming_uniform(a = sqrt 5), as PEFT
        start = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(start.to(device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.scale = scale

    def update(self) -> Tensor:
        """scale * B A, (O, I) fp32, not masked."""
        return self.scale * (self.lora_b @ self.lora_a)

    def effective_weight(self) -> Tensor:
        update = self.update().masked_fill(~self.keep, 0)
        return (self._base() + update).to(self.weight.dtype)

    @torch.no_grad()
    def set_effective_(self, weight: Tensor, keep: Tensor) -> None:
        """Make `weight * keep` effective by moving the base under the adapter."""
        super().set_effective_(weight, keep)
        self.weight.copy_(self._base() - self.update())
        self.project_()

    def _base(self) -> Tensor:
        """The frozen weight in fp32 (fp64 stays), so that a bf16 model rounds the sum once."""
        return self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))


@dataclass(kw_only=True)
class MaskedLora(TrainedRepair):
    """Trains A and B of every prunable linear, then folds them into the sparse weights."""

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"method.rank {self.rank} is below 1")

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        generator = torch.Generator().manual_seed(bench.seed)
        for name, linear in list(sparse_linears(model)):
            adapter = MaskedLoraLinear(linear, self.rank, self.alpha / self.rank, generator)
            model.set_submodule(name, adapter)

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        adapters = [m for m in model.modules() if isinstance(m, MaskedLoraLinear)]
        return [p for adapter in adapters for p in (adapter.lora_a, adapter.lora_b)]
