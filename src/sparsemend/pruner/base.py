"""The contract of every pruner: weight and statistics in, weight and support out.

A pruner is pure: it sees no model, no module, no config.  Score-based pruners also offer their
score, which training-free repair starts from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsemend.blocks.statistics import Statistic
from sparsemend.sparse.pattern import Pattern


@dataclass(frozen=True)
class Pruned:
    """New weight (O, I) in the dtype of the old one, and keep (O, I) bool."""

    weight: Tensor
    keep: Tensor


class Pruner(ABC):
    """Chooses the support of one linear.

    prunes: it takes weights away.  reads_support: the checkpoint is pruned already and brings its
    support, whose sparsity the run keeps.  takes_gram: it sums X^T X of the inputs (estimates).
    """

    needs_calibration: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    reads_support: ClassVar[bool] = False
    takes_gram: ClassVar[bool] = False

    @abstractmethod
    def statistic(self, in_features: int, device: torch.device) -> Statistic | None:
        """A fresh accumulator of the input statistic this pruner needs of a linear, or None."""

    @abstractmethod
    def __call__(
        self, weight: Tensor, statistic: Statistic | None, sparsity: float, pattern: Pattern
    ) -> Pruned:
        """Prune `weight` (O, I) to `sparsity` (fraction of zeros) or to an N:M `pattern`."""

    def exactly(self, weight: Tensor, statistic: Statistic | None, zeros: int) -> Pruned:
        """Prune exactly `zeros` weights of `weight` (O, I), within the groups of this pruner."""
        raise ValueError(f"{type(self).__name__} has no exact count; use rounding=pruner")

    def around(self, rates: Mapping[str, float], dense: Collection[str]) -> Mapping[str, float]:
        """The rates by which linears of a block are pruned, while those in `dense` lose nothing.

        rates: as they were asked, by full name.  Asked block by block, before any is pruned.
        """
        return rates

    def to_carry(self) -> Mapping[str, Any]:
        """What it hands from one block to the next, as JSON values, for a resumed pruning."""
        return {}

    def carry_on_(self, values: Mapping[str, Any]) -> None:
        """Take up what `to_carry` gave after the last block that an earlier attempt pruned."""
        return

    def settle(self, statistic: Statistic) -> Statistic:
        """A complete statistic in the form in which several prunings share it.

        What no rate changes is computed here once, for all linears of one input.
        """
        return statistic

    def score(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """Importance (O, I), fp32; higher stays.  DSnoT ranks it for its initial mask."""
        raise ValueError(f"{type(self).__name__} has no score; DSnoT cannot start from it")

    def supports(self, model_path: str | Path) -> Mapping[str, Tensor] | None:
        """Supports (O, I) by linear name that a pruned checkpoint states; None: read its zeros."""
        return None
