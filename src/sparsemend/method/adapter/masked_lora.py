"""A low-rank update under the mask: y = x (keep * (W + s B A))^T."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sparsemend.method.adapter.low_rank import LowRankLinear
from sparsemend.sparse.linear import SparseLinear


class MaskedLoraLinear(LowRankLinear):
    """W_eff = keep * (W + scale * B A), merged before the product."""

    def masked_update(self) -> Tensor:
        return self.update() * self.keep

    def effective_weight(self) -> Tensor:
        return (self.wide_weight() + self.masked_update()).to(self.weight.dtype)


class TwoGemmLinear(MaskedLoraLinear):
    """MaskedLoraLinear as a base product and an update product, with dropout on the latter."""

    def __init__(self, base: SparseLinear, start: Tensor, scale: float, dropout: float) -> None:
        super().__init__(base, start, scale)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        update = self.masked_update().to(input.dtype)
        return F.linear(input, self.weight, self.bias) + F.linear(self.dropout(input), update)
