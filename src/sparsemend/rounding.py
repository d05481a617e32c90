"""From rates to whole weights: as each pruner's paper does, or to an exact budget.

The published rules drift: Wanda removes int(I s) of every row, at most s, magnitude and SparseGPT
everything up to and including a threshold, at least s.  rounding=exact_budget gives every linear a
whole number of zeros whose sum is the budget to one weight, and has the pruner remove exactly
that many within its own groups; single rows (or SparseGPT's column blocks) take one more than
others.  Zeros of linears that stay dense (no token reaches them, or the model never calls them) are
taken by the others of their block, in proportion to what these keep, and where they are full by
later blocks; a budget that the model cannot hold is refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsemend.blocks.statistics import Statistic
from sparsemend.names import ROUNDINGS
from sparsemend.pruner.base import Pruned, Pruner
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation

log = logging.getLogger(__name__)


class ExactBudget(Pruner):
    """Wraps a pruner so that it removes a whole number of weights, in all exactly the budget.

    Serves one pruning; `rates` then are those by which every linear was pruned.
    """

    def __init__(self, pruner: Pruner, budget: Allocation) -> None:
        self.pruner, self.sizes = pruner, budget.sizes
        self.zeros = {name: round(rate * self.sizes[name]) for name, rate in budget.items()}
        self.ahead = set(self.zeros)  # of blocks that were not pruned yet
        self.debt = 0  # zeros of linears that stay dense, for others to take
        self.moved = 0

    @property
    def rates(self) -> dict[str, float]:
        return {name: zeros / self.sizes[name] for name, zeros in self.zeros.items()}

    def around(self, rates: Mapping[str, float], dense: Collection[str]) -> Mapping[str, float]:
        """Raises ValueError where the linears that are left cannot take the zeros of dense ones."""
        names = [name for name in rates if name in self.zeros]
        self.ahead -= {*names, *dense}
        for name in dense:
            self.debt += self.zeros.get(name, 0)
            self.moved += self.zeros.get(name, 0)
            self.zeros[name] = 0
        room = {name: self.sizes[name] - self.zeros[name] for name in names}
        taken = min(self.debt, sum(room.values()))
        if taken:
            share = dict.fromkeys(room, taken / sum(room.values()))
            for name, zeros in exact_zeros(share, room).items():
                self.zeros[name] += zeros
            self.debt -= taken
        self._check_room()
        return {**rates, **{name: self.zeros[name] / self.sizes[name] for name in names}}

    def to_carry(self) -> Mapping[str, Any]:
        return {
            "zeros": self.zeros,
            "ahead": sorted(self.ahead),
            "debt": self.debt,
            "moved": self.moved,
        }

    def carry_on_(self, values: Mapping[str, Any]) -> None:
        self.zeros, self.ahead = dict(values["zeros"]), set(values["ahead"])
        self.debt, self.moved = values["debt"], values["moved"]

    def _check_room(self) -> None:
        room = sum(self.sizes[name] - self.zeros[name] for name in self.ahead)
        if self.debt > room:
            total = sum(self.sizes[name] for name in self.zeros)
            most = (sum(self.zeros.values()) + room) / total
            raise ValueError(
                f"rounding=exact_budget cannot be met: linears that stay dense leave at most "
                f"{most:.6f} of the prunable weights to remove; set sparsity={most:.4f} or lower, "
                "give more calibration windows, or leave such linears out with prunable.exclude"
            )

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
    return ExactBudget(pruner, exact), exact


def as_pruned(pruner: Pruner, allocation: Allocation) -> Allocation:
    """The rates after a pruning: an exact budget has moved those of linears that stay dense."""
    if not isinstance(pruner, ExactBudget) or not pruner.moved:
        return allocation
    log.info("%d zeros of linears that stay dense were taken by others", pruner.moved)
    return replace(allocation, rates=pruner.rates)


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
