"""Fold adapters into plain sparse linears and count what that loses."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn

from sparsemend.blocks.room import return_freed
from sparsemend.sparse.linear import SparseLinear, sparse_linears

log = logging.getLogger(__name__)


def adapters(model: nn.Module) -> Iterator[tuple[str, SparseLinear]]:
    """(full name, module) of every SparseLinear that carries an adapter."""
    for name, linear in sparse_linears(model):
        if type(linear) is not SparseLinear:
            yield name, linear


def fold_adapters(model: nn.Module) -> dict[str, int]:
    """Replace every adapter by a SparseLinear of its effective weight and count what that lost.

    Kept weights that the fold rounds or cancels to exactly 0 stay in the support but add to the
    sparsity.  One linear at a time has two weights.
    """
    lost = 0
    for name in [name for name, _ in adapters(model)]:
        adapter = model.get_submodule(name)
        assert isinstance(adapter, SparseLinear)
        plain = fold_linear(adapter)
        lost += _lost(adapter, plain)
        model.set_submodule(name, plain)
        del adapter  # with its weight, before the next one has two
        return_freed()  # supports, which stay, lie between what was freed
    if lost:
        log.warning("%d kept weights became exactly zero when the adapters were folded in", lost)
    return {"zeroed_by_fold": lost}


@torch.no_grad()
def _lost(adapter: SparseLinear, plain: SparseLinear) -> int:
    """The kept weights of an adapter's base that are exactly 0 in its fold."""
    return int(((plain.weight == 0) & (adapter.weight != 0)).count_nonzero())


def rounds_when_folded(model: nn.Module) -> bool:
    """Whether folding rounds: a linear's weight is narrower than the fp32 of its adapter."""
    return any(linear.weight.dtype.itemsize < 4 for _, linear in sparse_linears(model))


@torch.no_grad()
def fold_linear(adapter: SparseLinear) -> SparseLinear:
    """A plain SparseLinear holding the adapter's effective weight in its base weight's dtype."""
    weight = adapter.effective_weight().detach().to(adapter.weight.dtype)
    if weight.data_ptr() == adapter.weight.data_ptr():
        weight = weight.clone()
    return SparseLinear(nn.Parameter(weight, requires_grad=False), adapter.bias, adapter.keep)
