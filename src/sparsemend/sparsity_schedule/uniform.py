"""Uniform: every linear loses the target fraction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule
from sparsemend.sparsity_schedule.rates.units import Units


@dataclass(kw_only=True)
class Uniform(SparsitySchedule):
    """The same rate everywhere; a mixed pattern spreads its rounding over the blocks."""

    uniform: ClassVar[bool] = True

    def allocate(
        self,
        model: nn.Module,
        batches: Sequence[Tensor],
        sparsity: float,
        pattern: Pattern,
        *,
        device: torch.device | None = None,
        offload: bool = False,
    ) -> Allocation:
        units = Units.of(model, "block")
        if pattern.mixed:
            return units.allocation([sparsity] * len(units.members), sparsity, pattern)
        return Allocation(dict.fromkeys(units.size, sparsity), units.size, sparsity)
