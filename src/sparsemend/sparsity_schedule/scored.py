"""The common base of OWL, DLP and AlphaPruning: a score per unit, a map to rates, a budget.

The published codes let a rate leave its range: OWL and DLP raise rates <= 0 to 0.01 and miss the
target, AlphaPruning fails above 1.  budget=exact clips to [min_sparsity, max_sparsity] and moves
all rates until the parameter-weighted mean is the target again; budget=reference does what those
codes do.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsemend.blocks.statistics import InputNorm
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import checked_finite
from sparsemend.sparsity_schedule.base import Allocation, Granularity
from sparsemend.sparsity_schedule.measured import MeasuringSchedule
from sparsemend.sparsity_schedule.rates.budget import to_budget, weighted_mean
from sparsemend.sparsity_schedule.rates.units import Units

log = logging.getLogger(__name__)

LOWEST = 0.01  # OWL's code puts it in the place of a rate <= 0


@dataclass(kw_only=True)
class ScoredSchedule(MeasuringSchedule):
    """Scores every unit of the dense model, maps scores to rates, keeps the budget."""

    streams: ClassVar[bool] = True
    shaping: ClassVar[frozenset[str]] = frozenset(
        {"spread", "budget", "min_sparsity", "max_sparsity"}
    )

    granularity: Granularity
    budget: str
    min_sparsity: float
    max_sparsity: float

    @abstractmethod
    def measure(self, model: nn.Module, calibration: Calibration) -> list[float]:
        """One score per unit of the dense model, in order."""

    @abstractmethod
    def rates(
        self, scores: Sequence[float], weights: Sequence[int], sparsity: float
    ) -> list[float]:
        """Rates by the published map, with weighted mean `sparsity`; they may leave [0, 1]."""

    @property
    def varies_by(self) -> Granularity:
        return self.granularity

    def rates_of(
        self, measured: list[float], model: nn.Module, sparsity: float, pattern: Pattern
    ) -> Allocation:
        """Raises ValueError where a reference rate is beyond what a block may lose."""
        units, scores = Units.of(model, self.granularity), measured
        rates = self.rates(scores, units.weights, sparsity)
        if self.budget == "reference":
            return self._as_coded(units, rates, scores, sparsity, pattern)
        low, high = self.min_sparsity, self.max_sparsity
        kept = to_budget(rates, units.weights, sparsity, low, high)
        moved = sum(not low <= rate <= high for rate in rates)
        if moved:
            log.warning(
                "%d of %d rates lay outside [%g, %g]; they were clipped and all rates shifted to "
                "keep the mean %g",
                *(moved, len(rates), low, high, sparsity),
            )
        return units.allocation(kept, sparsity, pattern, scores=scores)

    def _as_coded(
        self,
        units: Units,
        rates: Sequence[float],
        scores: Sequence[float],
        sparsity: float,
        pattern: Pattern,
    ) -> Allocation:
        """Clamp as the references do, or with a mixed pattern round every block by itself."""
        if pattern.mixed:
            size = pattern.group_size
            removed = round(size * sparsity)
            # OWL's code rounds the offset from the target, halves to even
            rates = [(removed + round(size * (rate - sparsity))) / size for rate in rates]
        else:
            rates = [rate if rate > 0 else LOWEST for rate in rates]
        most = pattern.largest_rate
        for name, rate in zip(units.members, rates, strict=True):
            if not 0 <= rate <= most:
                raise ValueError(
                    f"sparsity_schedule.budget=reference gives {name} the sparsity {rate:.4f}, "
                    f"which is not in [0, {most:g}]; lower sparsity_schedule.spread or use "
                    "sparsity_schedule.budget=exact"
                )
        missed = abs(weighted_mean(rates, units.weights) - sparsity)
        if missed > 1e-9:
            log.warning("budget=reference misses the mean %g by %.6f", sparsity, missed)
        by_linear = units.by_linear(rates)
        named = dict(zip(units.members, scores, strict=True))
        return Allocation(by_linear, units.size, sparsity, missed + 1e-9, named)


@torch.no_grad()
def reduce_scores(
    model: nn.Module,
    calibration: Calibration,
    reduce: Callable[[list[Tensor]], float],
    *,
    granularity: Granularity,
) -> list[float]:
    """`reduce` of the Wanda scores |W| * sqrt(v) of every unit, from one pass of the dense model.

    Nothing is pruned between blocks, so each sees the dense outputs of the one before it.  reduce
    receives the scores (O, I), fp32, of all linears of the unit that tokens reach; a unit without
    one gets the mean of the others.
    """
    values: list[float | None] = []
    for visit in calibration.walk(model):
        statistics = visit.observe(InputNorm)
        names = list(visit.linears)
        if not names:
            continue
        for unit in [names] if granularity == "block" else [[name] for name in names]:
            seen = [_score(visit.linears[n], statistics[n]) for n in unit if n in statistics]
            values.append(reduce(seen) if seen else None)
    scored = [value for value in values if value is not None]
    return [sum(scored) / len(scored) if value is None else value for value in values]


def _score(linear: nn.Linear, statistic: object) -> Tensor:
    assert isinstance(statistic, InputNorm)
    return checked_finite(linear.weight.float().abs() * statistic.squared.sqrt())
