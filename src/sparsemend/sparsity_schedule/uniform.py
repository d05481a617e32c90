"""Uniform: every linear loses the target fraction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sparsemend.blocks import prunable_linears
from sparsemend.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule


@dataclass(kw_only=True)
class Uniform(SparsitySchedule):
    """The same rate everywhere."""

    def allocate(
        self, model: nn.Module, batches: Sequence[Tensor], sparsity: float, pattern: Pattern
    ) -> Allocation:
        sizes = {name: linear.weight.numel() for name, linear in prunable_linears(model).items()}
        return Allocation(dict.fromkeys(sizes, sparsity), sizes, sparsity)
