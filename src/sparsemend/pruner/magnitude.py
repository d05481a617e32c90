"""Magnitude: the smallest |W| go, the baseline of every pruning paper.

With `layer` one threshold serves the whole matrix and everything up to and including it goes,
slightly more than asked; this is the rule of the baseline in Wanda's repository.  With `row`
exactly int(inputs * sparsity) weights leave every row, as in DSnoT's starting mask (Zhang et al.
2024, arXiv 2310.08915).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparsemend.blocks.statistics import Statistic
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
class Magnitude(Pruner):
    """Scores a weight by its magnitude."""

    needs_calibration: ClassVar[bool] = False

    group: Literal["layer", "row"]

    def __post_init__(self) -> None:
        if self.group not in ("layer", "row"):
            raise ValueError(f"group {self.group!r} is not one of: layer, row")

    def statistic(self, in_features: int, device: torch.device) -> None:
        """None: magnitudes need no inputs."""
        return None

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
        """|W| (O, I), fp32."""
        return checked_finite(weight.float().abs())

    def _removal_mask(self, score: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
        if not pattern.unstructured:
            return lowest_per_group(score, pattern.at(sparsity))
        if self.group == "row":
            return lowest_per_row(score, int(score.shape[1] * sparsity))
        return lowest_of_layer(score, sparsity)
