"""SparseGPT: optimal brain surgeon, column by column, with one Hessian for all rows.

Frantar and Alistarh 2023, arXiv 2301.00774.  With H^-1 = U^T U (U upper), a weight's score is
w^2 / U_jj^2, and removing w_j moves the columns k to its right by -(w_j / U_jj) U_jk.  Unstructured
pruning scores a block of columns once, on entering it, and removes everything up to and including
one threshold for all rows (authors' code); N:M pruning scores each group on reaching it.

The columns are kept as the rows of a transposed copy, so each step works on contiguous memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemend.blocks.statistics import HeldFactor, Hessian, InverseFactor, Statistic
from sparsemend.pruner.base import Pruned, Pruner
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import (
    checked_finite,
    lowest_of_all,
    lowest_of_layer,
    lowest_per_group,
)

# (scores (J, O) of a block of columns, number of the block) -> removal mask, bool (J, O)
ChooseCount = Callable[[Tensor, int], Tensor]


@dataclass(kw_only=True)
class SparseGPT(Pruner):
    """Chooses the support and updates the weights that stay."""

    takes_gram: ClassVar[bool] = True

    block_size: int
    damping: float

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size {self.block_size} is not at least 1")
        if not self.damping >= 0:
            raise ValueError(f"damping {self.damping} is not at least 0")

    def statistic(self, in_features: int, device: torch.device) -> Hessian:
        """The Hessian of the layer's squared error."""
        return Hessian(in_features, device)

    def settle(self, statistic: Statistic) -> Statistic:
        """The factor of its inverse in the place of a Hessian."""
        assert isinstance(statistic, Hessian)
        return HeldFactor(statistic.inverse_factor(self.damping), self.damping)

    def __call__(
        self, weight: Tensor, statistic: Statistic | None, sparsity: float, pattern: Pattern
    ) -> Pruned:
        pattern = pattern.at(sparsity)
        if pattern.group_size and self.block_size % pattern.group_size:
            raise ValueError(
                f"block_size {self.block_size} is not a multiple of {pattern.group_size}, "
                f"the group of pattern {pattern}"
            )
        nothing_goes = sparsity <= 0 if pattern.unstructured else pattern.kept == pattern.group_size
        if nothing_goes:
            return Pruned(weight, torch.ones_like(weight, dtype=torch.bool))
        if not pattern.unstructured:
            return self._prune(weight, statistic, None, pattern)
        return self._prune(weight, statistic, lambda s, _: lowest_of_layer(s, sparsity), pattern)

    def exactly(self, weight: Tensor, statistic: Statistic | None, zeros: int) -> Pruned:
        """Share the zeros among the column blocks by their widths and prune that many in each."""
        if not zeros:
            return Pruned(weight, torch.ones_like(weight, dtype=torch.bool))
        ends = range(0, weight.shape[1] + self.block_size, self.block_size)
        # rounding the running share down or up keeps every block within one weight of its own
        shares = [zeros * min(end, weight.shape[1]) // weight.shape[1] for end in ends]
        counts = [after - before for before, after in pairwise(shares)]

        def choose(score: Tensor, block: int) -> Tensor:
            return lowest_of_all(score, counts[block])

        return self._prune(weight, statistic, choose, Pattern())

    def _prune(
        self,
        weight: Tensor,
        statistic: Statistic | None,
        choose: ChooseCount | None,
        pattern: Pattern,
    ) -> Pruned:
        factor = self._factor(statistic)
        columns = _live_columns(weight, factor)
        removed = torch.empty_like(columns, dtype=torch.bool)
        for number, start in enumerate(range(0, columns.shape[0], self.block_size)):
            block = slice(start, min(start + self.block_size, columns.shape[0]))
            if choose is not None:
                score = importance(columns[block], factor.diagonal[block])
                removed[block] = choose(score, number)
            eliminate_(columns, removed, block, factor, pattern=pattern)
        pruned = columns.T.to(weight.dtype, memory_format=torch.contiguous_format)
        return Pruned(pruned, ~removed.T.contiguous())

    def score(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """W^2 / diag(U)^2 (O, I), fp32, before any update; dead inputs score 0."""
        factor = self._factor(statistic)
        return importance(_live_columns(weight, factor), factor.diagonal).T.contiguous()

    def _factor(self, statistic: Statistic | None) -> InverseFactor:
        if not isinstance(statistic, Hessian | HeldFactor):
            raise TypeError(f"SparseGPT needs a Hessian, got {type(statistic).__name__}")
        return statistic.inverse_factor(self.damping)


def _live_columns(weight: Tensor, factor: InverseFactor) -> Tensor:
    """W^T (I, O), an fp32 copy with the rows of dead inputs set to 0."""
    columns = weight.T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return checked_finite(columns.masked_fill_(factor.dead.unsqueeze(1), 0))


def importance(columns: Tensor, diagonal: Tensor) -> Tensor:
    """w^2 / U_jj^2 for columns (J, O) and diag(U) (J,)."""
    return columns.square() / diagonal.square().unsqueeze(1)


def eliminate_(
    columns: Tensor,
    removed: Tensor,
    block: slice,
    factor: InverseFactor,
    *,
    pattern: Pattern,
) -> None:
    """Prune one block of the columns (I, O) and compensate in all columns to its right, in place.

    `removed` (I, O) marks the block's pruned weights already, or is filled in here, group by group,
    for an N:M pattern.  A column's value is final once the loop is past it, so the errors e_j = w_j
    of the block's removed weights follow from one product, and the columns beyond the block are
    updated by a single matrix multiplication.
    """
    inside, gone, diagonal = columns[block], removed[block], factor.diagonal[block]
    unit = factor.unit[block]  # rows of U over their diagonal: the division by U_jj is in there
    beyond = unit[:, block.stop :]
    unit = unit[:, block]
    _compensate_(inside, gone, unit, diagonal, pattern.kept, pattern.group_size)
    errors = inside * gone
    columns[block.stop :].addmm_(beyond.T, errors, alpha=-1)
    inside.masked_fill_(gone, 0)


# an operator of torch's, so that a dry run on tensors without values does not take every column
@torch.library.custom_op("sparsemend::compensate_", mutates_args=("inside", "gone"))
def _compensate_(
    inside: Tensor, gone: Tensor, unit: Tensor, diagonal: Tensor, kept: int, group_size: int
) -> None:
    """Go through the columns of a block, (J, O), and compensate in those to the right, in place.

    gone (J, O), unit (J, J), diagonal (J,); kept, group_size: of an N:M pattern, whose groups are
    chosen on the way; group_size 0: gone is given.
    """
    for j in range(inside.shape[0]):
        if group_size and j % group_size == 0:
            group = slice(j, j + group_size)
            score = importance(inside[group], diagonal[group])
            gone[group] = lowest_per_group(score.T, Pattern(kept, group_size)).T
        inside[j + 1 :].addr_(unit[j, j + 1 :], inside[j] * gone[j], alpha=-1)


@register_flop_formula(torch.ops.sparsemend.compensate_)
def _(inside: torch.Size, *_: Any, **__: Any) -> int:
    """Operations for shapes: a column moves those to its right, half of them on average."""
    return inside[0] * inside[0] * inside[1]


@_compensate_.register_fake
def _(
    inside: Tensor, gone: Tensor, unit: Tensor, diagonal: Tensor, kept: int, group_size: int
) -> None:
    return
