"""Global: one threshold over the pooled scores of all linears.

The rate of a linear is the share of its weights among the round(S sum n) lowest scores of the
model.  Which weights go is left to the pruner: with rounding=exact_budget magnitude by layer and
score=magnitude removes exactly those below the threshold (by the pruner's own rounding one more,
and what ties with it), a pruner by row the same number spread over its
rows.  At high sparsity this empties whole linears (OWL and DSA quote a perplexity of 5147 at 70 %).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsemend.blocks.residency import visit_linears
from sparsemend.blocks.statistics import InputNorm
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import checked_finite
from sparsemend.sparsity_schedule.base import Allocation, Granularity, SparsitySchedule
from sparsemend.sparsity_schedule.global_checks import check_options
from sparsemend.sparsity_schedule.rates.pooled import lowest_counts
from sparsemend.sparsity_schedule.rates.units import Units


@dataclass(kw_only=True)
class Global(SparsitySchedule):
    """Rates from one threshold on magnitudes, or on the Wanda scores of the dense model."""

    streams: ClassVar[bool] = True

    score: str
    granularity: Granularity

    def __post_init__(self) -> None:
        check_options(vars(self))

    @property
    def needs_calibration(self) -> bool:
        return self.score == "wanda"

    @property
    def varies_by(self) -> Granularity:
        return self.granularity

    @torch.no_grad()
    def decide(
        self, model: nn.Module, calibration: Calibration, sparsity: float, pattern: Pattern
    ) -> Allocation:
        norms: dict[str, Tensor] = {}
        if self.needs_calibration:
            for visit in calibration.walk(model):
                for name, statistic in visit.observe(InputNorm).items():
                    assert isinstance(statistic, InputNorm)
                    norms[visit.full_name(name)] = statistic.squared.sqrt()

        # one that no token reaches stays dense; it is asked for the mean
        units = Units.of(model, self.granularity)
        reached = [name for name in units.size if name in norms or not self.needs_calibration]
        counts = {name: round(sparsity * size) for name, size in units.size.items()}

        def scores() -> Iterator[Tensor]:
            for name, linear in visit_linears(model, what="scores"):
                if self.needs_calibration and name not in norms:
                    continue
                score = calibration.bring(linear.weight).float().abs()
                if name in norms:
                    score *= norms[name].to(score.device)
                yield checked_finite(score)

        others = sum(counts[name] for name in units.size.keys() - set(reached))
        pooled = lowest_counts(scores, round(sparsity * sum(units.size.values())) - others)
        counts |= zip(reached, pooled, strict=True)
        return units.from_counts(counts, sparsity, pattern)
