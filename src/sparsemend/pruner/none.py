"""No pruning: every weight stays, as pretraining and dense references need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsemend.blocks.statistics import Statistic
from sparsemend.pruner.base import Pruned, Pruner
from sparsemend.sparse.pattern import Pattern


@dataclass(kw_only=True)
class NoPruner(Pruner):
    """Keeps every weight, zero or not."""

    needs_calibration: ClassVar[bool] = False
    prunes: ClassVar[bool] = False

    def statistic(self, in_features: int, device: torch.device) -> None:
        """None: the inputs are not read."""
        return None

    def __call__(
        self, weight: Tensor, statistic: Statistic | None, sparsity: float, pattern: Pattern
    ) -> Pruned:
        """Raises ValueError when some sparsity is asked for."""
        if sparsity != 0 or not pattern.unstructured:
            raise ValueError(
                f"pruner=none removes nothing, but sparsity {sparsity} with pattern {pattern} is "
                "asked for; set sparsity=0 and pattern=unstructured"
            )
        return Pruned(weight, torch.ones_like(weight, dtype=torch.bool))

    def exactly(self, weight: Tensor, statistic: Statistic | None, zeros: int) -> Pruned:
        """Raises ValueError when some zeros are asked for."""
        return self(weight, statistic, zeros / weight.numel(), Pattern())
