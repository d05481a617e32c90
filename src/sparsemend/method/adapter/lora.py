"""A low-rank update beside a sparse weight: y = x W^T + s (drop(x) A^T) B^T."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsemend.method.adapter.low_rank import LowRankLinear, attach_started
from sparsemend.sparse.linear import SparseLinear


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

    def make(linear: SparseLinear, start: Tensor) -> LoraLinear:
        return LoraLinear(linear, start, scale, dropout)

    attach_started(model, make, rank=rank, seed=seed)
