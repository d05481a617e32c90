"""Wanda: score_ij = |W_ij| * ||X_j||_2, compared within each output row.

Sun et al. 2024, arXiv 2306.11695.  Exactly int(inputs * sparsity) weights leave every row, so the
realised sparsity is never above the target.  The variant (paper's appendix) removes, per row, the
weakest weights whose scores sum to a share alpha of the row's total, and bisects one alpha for
all rows until the mean sparsity is right.  Where a row's smallest score already exceeds its share
the authors' code fails; here such a row loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsemend.blocks.statistics import InputNorm, Statistic
from sparsemend.pruner.base import Pruned, Pruner
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.running import running_sums
from sparsemend.sparse.selection import (
    checked_finite,
    lowest_over_rows,
    lowest_per_group,
    lowest_per_row,
)


@dataclass(kw_only=True)
class Wanda(Pruner):
    """Scores a weight by its magnitude times the norm of its input."""

    variant: bool

    def statistic(self, in_features: int, device: torch.device) -> InputNorm:
        """The mean over sequences of each input's squared norm."""
        return InputNorm(in_features, device)

    def __call__(
        self, weight: Tensor, statistic: Statistic | None, sparsity: float, pattern: Pattern
    ) -> Pruned:
        removed = self._removal_mask(self.score(weight, statistic), sparsity, pattern)
        return Pruned(weight.masked_fill(removed, 0), ~removed)

    def exactly(self, weight: Tensor, statistic: Statistic | None, zeros: int) -> Pruned:
        """Raises ValueError with the variant, whose threshold gives no exact count."""
        if self.variant:
            raise ValueError("pruner.variant=true has no exact count; use rounding=pruner")
        removed = lowest_over_rows(self.score(weight, statistic), zeros)
        return Pruned(weight.masked_fill(removed, 0), ~removed)

    def score(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """|W| * sqrt(v) (O, I), fp32; raises ValueError if any is NaN or infinite."""
        if not isinstance(statistic, InputNorm):
            raise TypeError(f"Wanda needs an InputNorm, got {type(statistic).__name__}")
        return checked_finite(weight.float().abs() * statistic.squared.sqrt())

    def _removal_mask(self, score: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
        if pattern.unstructured:
            if self.variant:
                return lowest_by_share(score, sparsity)
            return lowest_per_row(score, int(score.shape[1] * sparsity))
        if self.variant:
            raise ValueError(f"pruner.variant=true is unstructured; it has no pattern {pattern}")
        return lowest_per_group(score, pattern.at(sparsity))


def lowest_by_share(score: Tensor, sparsity: float) -> Tensor:
    """Bool (O, I): per row, all scores up to those that sum to alpha of the row's total.

    alpha is bisected in [0, 0.8] from 0.4 until the mean is within 0.001 of `sparsity` or the
    bracket is narrower than that (authors' code); very high targets stay out of reach.
    """
    if sparsity <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    rows = _SortedRows(score)
    alpha, low, high = 0.4, 0.0, 0.8
    threshold, achieved = rows.at(alpha)
    while (achieved - sparsity).abs() > 0.001 and high - low >= 0.001:
        if achieved > sparsity:
            alpha, high = (alpha + low) / 2, alpha
        else:
            alpha, low = (alpha + high) / 2, alpha
        threshold, achieved = rows.at(alpha)
    return score <= threshold


class _SortedRows:
    """Ascending scores of every row and their running sums: one sort serves every alpha."""

    def __init__(self, score: Tensor) -> None:
        self.ascending = score.sort(dim=1).values
        self.running = running_sums(self.ascending, dim=1)
        self.total = score.sum(dim=1, keepdim=True)

    def at(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Each row's threshold (O, 1), -inf where nothing goes, and the mean sparsity, fp32."""
        # The authors compare the mean in fp32; float64 would stop at another alpha.
        count = torch.searchsorted(self.running, self.total * alpha, right=True)
        last = self.ascending.gather(1, (count - 1).clamp(min=0))
        threshold = last.masked_fill(count == 0, -torch.inf)
        removed = torch.searchsorted(self.ascending, threshold, right=True)  # with the ties
        return threshold, removed.sum() / self.ascending.numel()
