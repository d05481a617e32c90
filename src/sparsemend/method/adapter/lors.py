"""The linear of LoRS: masked LoRA that keeps nothing weight-sized for the backward pass."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsemend.method.adapter.lors_function import LorsFunction, LorsSettings, fused_weight
from sparsemend.method.adapter.low_rank import LowRankLinear
from sparsemend.method.adapter.rows import by_rows
from sparsemend.sparse.linear import SparseLinear


class LorsLinear(LowRankLinear):
    """LorsFunction with its factors; with `derived` the support is read from W != 0."""

    def __init__(
        self, base: SparseLinear, start: Tensor, settings: LorsSettings, *, derived: bool
    ) -> None:
        super().__init__(base, start, settings.scale)
        self.settings = settings
        self.derived = derived

    @property
    def packed(self) -> Tensor | None:
        return None if self.derived else self.packed_keep

    def effective_weight(self) -> Tensor:
        return fused_weight(self.weight, self.lora_a, self.lora_b, self.packed, self.settings)

    def forward(self, input: Tensor) -> Tensor:
        settings = self.settings
        device = input.device.type
        if torch.is_autocast_enabled(device):
            settings = replace(settings, dtype=torch.get_autocast_dtype(device))

        def product(rows: Tensor) -> Tensor:
            output: Tensor = LorsFunction.apply(
                rows, self.weight, self.lora_a, self.lora_b, self.bias, self.packed, settings
            )
            return output

        return by_rows(product, input)
