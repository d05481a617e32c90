"""Fold adapters into plain sparse linears and count what that loses."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from sparsemend.sparse.linear import SparseLinear, sparse_linears

log = logging.getLogger(__name__)


def adapters(model: nn.Module) -> Iterator[tuple[str, SparseLinear]]:
    """(full name, module) of every SparseLinear that carries an adapter."""
    for name, linear in sparse_linears(model):
        if type(linear) is not SparseLinear:
            yield name, linear


def fold_adapters(model: nn.Module) -> dict[str, int]:
    """Replace every adapter by a SparseLinear of its effective weight and count what that lost."""
    before = dict(adapters(model))
    for name, adapter in before.items():
        model.set_submodule(name, fold_linear(adapter))
    return count_lost(before, model)


def count_lost(before: Mapping[str, SparseLinear], model: nn.Module) -> dict[str, int]:
    """Count the kept weights that folding rounded or cancelled to exactly zero; warn if any.

    They stay in the support but add to the sparsity.  before: the adapters that were replaced.
    """
    lost = 0
    for name, adapter in before.items():
        after = model.get_submodule(name).weight
        lost += int(((after == 0) & (adapter.weight != 0)).sum())
    if lost:
        log.warning("%d kept weights became exactly zero when the adapters were folded in", lost)
    return {"zeroed_by_fold": lost}


def rounds_when_folded(model: nn.Module) -> bool:
    """Whether folding rounds: a linear's weight is narrower than the fp32 of its adapter."""
    return any(linear.weight.dtype.itemsize < 4 for _, linear in sparse_linears(model))


@torch.no_grad()
def fold_linear(adapter: SparseLinear) -> SparseLinear:
    """A plain SparseLinear holding the adapter's effective weight in its base weight's dtype."""
    weight = adapter.effective_weight().detach().to(adapter.weight.dtype)
    bias = adapter.bias
    return SparseLinear(nn.Parameter(weight.clone(), requires_grad=False), bias, adapter.keep)
