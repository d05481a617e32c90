"""From rates to whole weights: as each pruner's paper does, or to an exact budget.

The published rules drift: Wanda removes int(I s) of every row, at most s, magnitude and SparseGPT
everything up to and including a threshold, at least s.  rounding=exact_budget gives every linear a
whole number of zeros whose sum is the budget to one weight, and has the pruner remove exactly
that many within its own groups; single rows (or SparseGPT's column blocks) take one more than
others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsemend.blocks.statistics import Statistic
from sparsemend.names import ROUNDINGS
from sparsemend.pruner.base import Pruned, Pruner
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation


class ExactBudget(Pruner):
    """Wraps a pruner so that it removes exactly the nearest whole number of weights."""

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        return self.pruner.needs_calibration

    def statistic(self, in_features: int, device: torch.device) -> Statistic | None:
        return self.pruner.statistic(in_features, device)

    def __call__(
        self, weight: Tensor, statistic: Statistic | None, sparsity: float, pattern: Pattern
    ) -> Pruned:
        """Raises ValueError with an N:M pattern, which fixes the number itself."""
        if not pattern.unstructured:
            raise ValueError(f"pattern {pattern} fixes the zeros itself; use rounding=pruner")
        return self.pruner.exactly(weight, statistic, round(sparsity * weight.numel()))


def apply_rounding(
    rounding: str, pruner: Pruner, allocation: Allocation
) -> tuple[Pruner, Allocation]:
    """The pruner and the rates with which `rounding` (pruner | exact_budget) prunes."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding={rounding} is not one of {', '.join(ROUNDINGS)}")
    if rounding == "pruner":
        return pruner, allocation
    sizes = allocation.sizes
    rates = {name: zeros / sizes[name] for name, zeros in exact_zeros(allocation, sizes).items()}
    half_a_weight = 0.5 / sum(sizes[name] for name in rates)
    tolerance = allocation.tolerance + half_a_weight
    exact = Allocation(rates, sizes, allocation.target, tolerance, allocation.scores)
    return ExactBudget(pruner), exact


def exact_zeros(rates: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, int]:
    """Zeros per linear that add up to the budget, round(sum of rate * size), exact to one weight.

    Whole parts first, then one each by the largest remainder; ties go to the earlier linear.
    """
    ideal = {name: rate * sizes[name] for name, rate in rates.items()}
    # a product within rounding error of a whole number is that number
    zeros = {name: math.floor(value + 1e-6) for name, value in ideal.items()}
    missing = round(math.fsum(ideal.values())) - sum(zeros.values())
    for name in sorted(ideal, key=lambda name: zeros[name] - ideal[name])[:missing]:
        zeros[name] += 1
    return zeros
