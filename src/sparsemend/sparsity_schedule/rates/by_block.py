"""One rate per block as an allocation to its linears."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparsemend.blocks.find import block_index, find_blocks, linears_of, prunable_linears
from sparsemend.sparsity_schedule.base import Allocation


def block_weights(model: nn.Module) -> list[int]:
    """Prunable weights of every decoder block."""
    blocks = find_blocks(model)[1]
    return [sum(linear.weight.numel() for linear in linears_of(b).values()) for b in blocks]


def block_allocation(
    model: nn.Module, rates: Sequence[float], target: float, tolerance: float = 1e-9
) -> Allocation:
    """The allocation that gives every linear the rate of its block."""
    prefix, _ = find_blocks(model)
    sizes = {name: linear.weight.numel() for name, linear in prunable_linears(model).items()}
    by_name = {name: rates[block_index(name, prefix)] for name in sizes}
    return Allocation(by_name, sizes, target, tolerance)
