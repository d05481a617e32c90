"""The linear of LoRS: masked LoRA that keeps nothing weight-sized for the backward pass."""

from __future__ import annotations

from torch import Tensor

from sparsemend.method.adapter.lors_function import Factors, LorsSettings
from sparsemend.method.adapter.lors_operator import lors_linear
from sparsemend.method.adapter.low_rank import LowRankLinear
from sparsemend.sparse.linear import SparseLinear


class LorsLinear(LowRankLinear):
    """`lors_linear` with its factors; with `derived` the support is read from W != 0."""

    def __init__(
        self, base: SparseLinear, start: Tensor, settings: LorsSettings, *, derived: bool
    ) -> None:
        super().__init__(base, start, settings.scale)
        self.settings = settings
        self.derived = derived

    @property
    def packed(self) -> Tensor | None:
        return None if self.derived else self.packed_keep

    @property
    def factors(self) -> Factors:
        """W, A, B and the support."""
        return Factors(self.weight, self.lora_a, self.lora_b, self.packed)

    def effective_weight(self) -> Tensor:
        return self.factors.effective(self.settings)

    def forward(self, input: Tensor) -> Tensor:
        return lors_linear(input, self.factors, self.bias, self.settings)
