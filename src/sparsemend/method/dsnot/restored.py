"""A pruned block with its dense weights back, and what it was before.

DSnoT refines supports against dense weights, and takes the inputs of a block's linears with the
whole block dense.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsemend.blocks.find import linears_of
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.sparse.packing import unpack


@dataclass(frozen=True)
class PrunedState:
    """Packed support of a linear before the repair, and its weight, or None if not needed."""

    packed_keep: Tensor
    weight: Tensor | None


def restore_dense_(block: nn.Module, dense: nn.Module, *, weights: bool) -> dict[str, PrunedState]:
    """Put the dense block's weights back on a full support; return every linear's pruned state.

    Names are those within the block.  The states hold the pruned weights only if `weights`.
    """
    states = {}
    originals = linears_of(dense)
    for name, sparse in sparse_linears(block):
        pruned = sparse.effective_weight().clone() if weights else None
        states[name] = PrunedState(sparse.packed_keep.clone(), pruned)
        full = torch.ones_like(sparse.weight, dtype=torch.bool)
        sparse.set_effective_(originals[name].weight, full)
    return states


def take_back_(linear: SparseLinear, state: PrunedState) -> None:
    """Give a linear on its dense weights the support and weight that it had."""
    keep = unpack(state.packed_keep.to(linear.weight.device), linear.in_features)
    weight = linear.weight if state.weight is None else state.weight.to(linear.weight.device)
    linear.set_effective_(weight.clone(), keep)
