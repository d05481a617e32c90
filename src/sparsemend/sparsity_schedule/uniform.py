"""Uniform: every linear loses the target fraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule
from sparsemend.sparsity_schedule.rates.units import Units


@dataclass(kw_only=True)
class Uniform(SparsitySchedule):
    """The same rate everywhere; a mixed pattern spreads its rounding over the blocks."""

    uniform: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def decide(
        self, model: nn.Module, calibration: Calibration, sparsity: float, pattern: Pattern
    ) -> Allocation:
        units = Units.of(model, "block")
        if pattern.mixed:
            return units.allocation([sparsity] * len(units.members), sparsity, pattern)
        return Allocation(dict.fromkeys(units.size, sparsity), units.size, sparsity)
