"""RIA: a weight's share of its row and of its column, times a power of its input's norm.

    R_ij = |W_ij| / sum_k |W_kj|  +  |W_ij| / sum_k |W_ik|        score_ij = R_ij * ||X_j||_2^a

Zhang et al. 2024, "Plug-and-Play: an efficient post-training pruning method for large language
models" (ICLR).  Relative importance keeps whole channels from dying.  Scores are compared over the
whole matrix, as the authors' code does by default, or within rows.  An all-zero row or column
scores 0 where that code divides 0 by 0.  Its channel permutation for N:M is left out: the zeros of
a permuted linear are N:M only in an order that the exported model does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsemend.blocks.statistics import InputNorm, Statistic
from sparsemend.pruner.base import Pruned, Pruner
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import (
    checked_finite,
    lowest_of_all,
    lowest_of_layer,
    lowest_over_rows,
    lowest_per_group,
    lowest_per_row,
)


@dataclass(kw_only=True)
class RIA(Pruner):
    """Scores a weight by its relative importance and the norm of its input."""

    power: float
    group: Literal["layer", "row"]
    shares_in: Literal["float32", "weight_dtype"]

    def __post_init__(self) -> None:
        if self.group not in ("layer", "row"):
            raise ValueError(f"group {self.group!r} is not one of: layer, row")
        if self.shares_in not in ("float32", "weight_dtype"):
            raise ValueError(f"shares_in {self.shares_in!r} is not one of: float32, weight_dtype")
        if not self.power >= 0:
            raise ValueError(
                f"power {self.power} is not at least 0; 0 ignores the inputs (RI), 0.5 is RIA"
            )

    def statistic(self, in_features: int, device: torch.device) -> InputNorm:
        """The mean over sequences of each input's squared norm."""
        return InputNorm(in_features, device)

    def __call__(
        self, weight: Tensor, statistic: Statistic | None, sparsity: float, pattern: Pattern
    ) -> Pruned:
        removed = self._removal_mask(self.score(weight, statistic), sparsity, pattern)
        return Pruned(weight.masked_fill(removed, 0), ~removed)

    def exactly(self, weight: Tensor, statistic: Statistic | None, zeros: int) -> Pruned:
        lowest = lowest_over_rows if self.group == "row" else lowest_of_all
        removed = lowest(self.score(weight, statistic), zeros)
        return Pruned(weight.masked_fill(removed, 0), ~removed)

    def score(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """R * v^(a/2) (O, I), fp32; raises ValueError if any is NaN or infinite."""
        if not isinstance(statistic, InputNorm):
            raise TypeError(f"RIA needs an InputNorm, got {type(statistic).__name__}")
        magnitude = weight.abs()
        magnitude = magnitude.float() if self.shares_in == "float32" else magnitude
        loudness = statistic.squared.sqrt() ** self.power
        return checked_finite(relative_importance(magnitude).float() * loudness)

    def _removal_mask(self, score: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
        if not pattern.unstructured:
            return lowest_per_group(score, pattern.at(sparsity))
        if self.group == "row":
            return lowest_per_row(score, int(score.shape[1] * sparsity))
        return lowest_of_layer(score, sparsity)


def relative_importance(magnitude: Tensor) -> Tensor:
    """Each weight's share of its column plus its share of its row, (O, I).

    magnitude: (O, I) >= 0; the shares are in its dtype.  In half precision a wide matrix has few
    distinct shares, and the ties decide the mask.
    """
    return _share(magnitude, dim=0) + _share(magnitude, dim=1)


def _share(magnitude: Tensor, *, dim: int) -> Tensor:
    total = magnitude.sum(dim=dim, keepdim=True)
    return magnitude / total.masked_fill(total == 0, 1)
