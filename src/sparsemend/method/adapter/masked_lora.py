"""A low-rank update under the mask: y = x (keep * (W + s B A))^T."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sparsemend.method.adapter.lors_function import Factors, LorsSettings
from sparsemend.method.adapter.lors_operator import lors_linear
from sparsemend.method.adapter.low_rank import LowRankLinear
from sparsemend.sparse.linear import SparseLinear

TILE_ROWS = 512  # of the gradient at a time: fewer slow the product, more leave the cache


class MaskedLoraLinear(LowRankLinear):
    """W_eff = keep * (W + scale * B A), merged before the product.

    It is built again for the backward pass, which forms the exact gradient a strip at a time.
    """

    @property
    def settings(self) -> LorsSettings:
        return LorsSettings(self.scale, "exact_tiled", TILE_ROWS, "float32", self.weight.dtype)

    @property
    def factors(self) -> Factors:
        """W, A, B and the support."""
        return Factors(self.weight, self.lora_a, self.lora_b, self.packed_keep)

    def effective_weight(self) -> Tensor:
        return self.factors.effective(self.settings)

    def forward(self, input: Tensor) -> Tensor:
        return lors_linear(input, self.factors, self.bias, self.settings)


class TwoGemmLinear(MaskedLoraLinear):
    """MaskedLoraLinear as a base product and an update product, with dropout on the latter."""

    def __init__(self, base: SparseLinear, start: Tensor, scale: float, dropout: float) -> None:
        super().__init__(base, start, scale)
        self.dropout = nn.Dropout(dropout)

    def masked_update(self) -> Tensor:
        return self.update() * self.keep

    def forward(self, input: Tensor) -> Tensor:
        update = self.masked_update().to(input.dtype)
        return F.linear(input, self.weight, self.bias) + F.linear(self.dropout(input), update)
