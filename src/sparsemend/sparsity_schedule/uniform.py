"""Uniform: every linear loses the target fraction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsemend.blocks import block_index, find_blocks, prunable_linears
from sparsemend.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule, mixed_tolerance
from sparsemend.sparsity_schedule.progression import mixed_kept


@dataclass(kw_only=True)
class Uniform(SparsitySchedule):
    """The same rate everywhere; a mixed pattern spreads its rounding over the blocks."""

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
        sizes = {name: linear.weight.numel() for name, linear in prunable_linears(model).items()}
        if pattern.mixed:
            prefix, blocks = find_blocks(model)
            kept = mixed_kept([sparsity] * len(blocks), pattern.group_size, sparsity)
            rates = {n: 1 - kept[block_index(n, prefix)] / pattern.group_size for n in sizes}
            return Allocation(rates, sizes, sparsity, mixed_tolerance(pattern, len(blocks)))
        return Allocation(dict.fromkeys(sizes, sparsity), sizes, sparsity)
