"""ER: Erdos-Renyi densities, one rate per linear from its shape.

Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science", arXiv 1707.04780; a baseline of the papers on block
rates.  In decoder blocks it spares narrow projections and takes from the wide ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule
from sparsemend.sparsity_schedule.rates import erdos_renyi
from sparsemend.sparsity_schedule.rates.units import Units


@dataclass(kw_only=True)
class Er(SparsitySchedule):
    """Rates by linear, kept weights in proportion to outputs + inputs."""

    streams: ClassVar[bool] = True

    def decide(
        self, model: nn.Module, calibration: Calibration, sparsity: float, pattern: Pattern
    ) -> Allocation:
        shapes = {n: (m.out_features, m.in_features) for n, m in prunable_linears(model).items()}
        rates = erdos_renyi.rates(shapes, sparsity)
        units = Units.of(model, "linear")
        return units.allocation([rates[name] for name in units.members], sparsity, pattern)
