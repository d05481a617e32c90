"""ATP: block rates in arithmetic progression, one common difference for the whole model.

    s_i = S - d (L - 1) / 2 + d (i - 1),   i = 1..L,   |d| <= 2 min(S, 1 - S) / (L - 1)

Huang et al. 2025, "Determining Layer-wise Sparsity for Large Language Models Through a Theoretical
Perspective", arXiv 2502.14770, eq. 10.  Every linear of a block gets its block's rate.  Deviations:
negative differences are allowed down to the symmetric bound (an ablation the authors' code does
not guard), and where blocks differ in size the offset is weighted by parameters so that the mean
over weights, not over blocks, is S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule
from sparsemend.sparsity_schedule.rates.progression import check_difference, rates
from sparsemend.sparsity_schedule.rates.units import Units, check_pattern


@dataclass(kw_only=True)
class Atp(SparsitySchedule):
    """Rates that grow (or, with a negative difference, shrink) linearly with depth."""

    common_difference: float

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
        """Raises ValueError beyond the bound, and with a fixed N:M pattern (undefined there)."""
        check_pattern(pattern, "block")
        units = Units.of(model, "block")
        check_difference(self.common_difference, sparsity, len(units.members))
        per_block = rates(self.common_difference, sparsity, len(units.members), units.weights)
        return units.allocation(per_block, sparsity, pattern)
