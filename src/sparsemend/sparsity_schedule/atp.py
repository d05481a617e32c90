"""ATP: block rates in arithmetic progression, one common difference for the whole model.

    s_i = S - d (L - 1) / 2 + d (i - 1),   i = 1..L,   |d| <= 2 min(S, 1 - S) / (L - 1)

Huang et al. 2025, "Determining Layer-wise Sparsity for Large Language Models Through a Theoretical
Perspective", arXiv 2502.14770, eq. 10.  Every linear of a block gets its block's rate.  Deviations:
negative differences are allowed down to the symmetric bound (an ablation the authors' code does
not guard), and where blocks differ in size the offset is weighted by parameters so that the mean
over weights, not over blocks, is S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsemend.blocks import block_index, find_blocks, linears_of
from sparsemend.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule, mixed_tolerance
from sparsemend.sparsity_schedule.progression import check_difference, mixed_kept, rates


@dataclass(kw_only=True)
class Atp(SparsitySchedule):
    """Rates that grow (or, with a negative difference, shrink) linearly with depth."""

    common_difference: float

    def allocate(
        self,
        model: nn.Module,
        batches: Sequence[Tensor],
        sparsity: float,
        pattern: Pattern,
        *,
        device: torch.device | None = None,
        offload: bool = False,
    ) -> Allocation:
        """Raises ValueError beyond the bound, and with a fixed N:M pattern (undefined there)."""
        prefix, blocks = find_blocks(model)
        check_difference(self.common_difference, sparsity, len(blocks))
        if not pattern.unstructured and not pattern.mixed:
            raise ValueError(
                f"sparsity_schedule=atp with the fixed pattern {pattern} is undefined; use "
                f"pattern=mixed:{pattern.group_size}, which gives each block its own N"
            )
        sizes = {
            f"{prefix}.{index}.{name}": linear.weight.numel()
            for index, block in enumerate(blocks)
            for name, linear in linears_of(block).items()
        }
        weights = [sum(m.weight.numel() for m in linears_of(b).values()) for b in blocks]
        per_block = rates(self.common_difference, sparsity, len(blocks), weights)
        tolerance = 1e-9
        if pattern.mixed:
            size = pattern.group_size
            kept = mixed_kept(per_block, size, sparsity)
            per_block = [1 - n / size for n in kept]
            tolerance = mixed_tolerance(pattern, len(blocks))
        by_name = {name: per_block[block_index(name, prefix)] for name in sizes}
        return Allocation(by_name, sizes, sparsity, tolerance)
