"""ATP: block rates in arithmetic progression, one common difference for the whole model.

    s_i = S - d (L - 1) / 2 + d (i - 1),   i = 1..L,   |d| <= 2 min(S, 1 - S) / (L - 1)

Huang et al. 2025, "Determining Layer-wise Sparsity for Large Language Models Through a Theoretical
Perspective", arXiv 2502.14770, eq. 10.  Every linear of a block gets its block's rate.  Deviations:
negative differences are allowed down to the symmetric bound (an ablation the authors' code does
not guard), and where blocks differ in size the rates pivot about the centre of the parameters, so
that the mean over weights, not over blocks, is S; the bound follows (rates/progression.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, Granularity, SparsitySchedule
from sparsemend.sparsity_schedule.rates.progression import check_difference, rates
from sparsemend.sparsity_schedule.rates.units import Units


@dataclass(kw_only=True)
class Atp(SparsitySchedule):
    """Rates that grow (or, with a negative difference, shrink) linearly with depth."""

    streams: ClassVar[bool] = True

    common_difference: float

    @property
    def varies_by(self) -> Granularity:
        return "block"

    def decide(
        self, model: nn.Module, calibration: Calibration, sparsity: float, pattern: Pattern
    ) -> Allocation:
        """Raises ValueError beyond the bound of the common difference."""
        units = Units.of(model, "block")
        blocks, weights = len(units.members), units.weights
        most = pattern.largest_rate
        check_difference(self.common_difference, sparsity, blocks, weights, most=most)
        per_block = rates(self.common_difference, sparsity, blocks, weights)
        return units.allocation(per_block, sparsity, pattern)
