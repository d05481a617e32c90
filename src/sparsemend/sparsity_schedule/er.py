"""ER: Erdos-Renyi densities, one rate per linear from its shape.

Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science", arXiv 1707.04780; a baseline of the papers on block
rates.  In decoder blocks it spares narrow projections and takes from the wide ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsemend.blocks.find import prunable_linears
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule
from sparsemend.sparsity_schedule.rates import erdos_renyi
from sparsemend.sparsity_schedule.rates.units import Units, check_pattern


@dataclass(kw_only=True)
class Er(SparsitySchedule):
    """Rates by linear, kept weights in proportion to outputs + inputs."""

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
        """Raises ValueError with an N:M pattern, which rates by linear contradict."""
        check_pattern(pattern, "linear")
        shapes = {n: (m.out_features, m.in_features) for n, m in prunable_linears(model).items()}
        rates = erdos_renyi.rates(shapes, sparsity)
        units = Units.of(model, "linear")
        return units.allocation([rates[name] for name in units.members], sparsity, pattern)
