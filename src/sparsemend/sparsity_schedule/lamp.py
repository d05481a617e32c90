"""LAMP: a global threshold on magnitudes that are made comparable between layers.

With the weights of one linear in ascending order of magnitude

    score(w_u) = w_u^2 / sum_{v >= u} w_v^2

so the largest weight of every linear scores 1 and no linear is emptied before all others are down
to their last weight.  Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning",
arXiv 2010.07611.  The score ranks the weights of a linear as their magnitude does, so magnitude
by layer with rounding=exact_budget removes exactly those below the threshold (by its own rounding
one more, and what ties with it); other pruners take the rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsemend.blocks.precision import sums_dtype
from sparsemend.blocks.residency import visit_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.running import running_sums
from sparsemend.sparse.selection import checked_finite
from sparsemend.sparsity_schedule.base import Allocation, Granularity, SparsitySchedule
from sparsemend.sparsity_schedule.lamp_checks import check_options
from sparsemend.sparsity_schedule.rates.pooled import lowest_counts
from sparsemend.sparsity_schedule.rates.units import Units


@dataclass(kw_only=True)
class Lamp(SparsitySchedule):
    """Rates from one threshold on LAMP scores."""

    streams: ClassVar[bool] = True

    granularity: Granularity

    def __post_init__(self) -> None:
        check_options(vars(self))

    @property
    def varies_by(self) -> Granularity:
        return self.granularity

    @torch.no_grad()
    def decide(
        self, model: nn.Module, calibration: Calibration, sparsity: float, pattern: Pattern
    ) -> Allocation:
        units = Units.of(model, self.granularity)
        counts = lowest_counts(
            lambda: (
                ascending_scores(calibration.bring(linear.weight))
                for _, linear in visit_linears(model, what="scores")
            ),
            round(sparsity * sum(units.size.values())),
        )
        return units.from_counts(dict(zip(units.size, counts, strict=True)), sparsity, pattern)


def ascending_scores(weight: Tensor) -> Tensor:
    """LAMP scores of all weights in ascending order, fp32 (O I,); sums in float64.

    Weights of a linear that is zero throughout score 0.
    """
    wide = checked_finite(weight).flatten().to(sums_dtype(weight.device))
    squared = wide.square().sort().values
    above = running_sums(squared.flip(0), dim=0).flip(0)
    return torch.where(above > 0, squared / above, 0.0).float()
