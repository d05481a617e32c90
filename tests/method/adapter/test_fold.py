"""Folding has one adapter's second weight in memory, not the model's."""

from __future__ import annotations

import weakref

import pytest
import torch
from support.contracts import pruned_model
from torch import Tensor

from sparsemend.method.adapter import fold
from sparsemend.method.adapter.fold import adapters, fold_adapters
from sparsemend.method.adapter.low_rank import attach_adapters
from sparsemend.sparse.linear import SparseLinear, sparse_linears


class Doubled(SparseLinear):
    """An adapter whose effective weight is a tensor of its own."""

    def effective_weight(self) -> Tensor:
        return 2 * self.weight


def test_adapters_are_let_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, folded = pruned_model(), fold.fold_linear
    before = {name: linear.weight.detach().clone() for name, linear in sparse_linears(model)}
    attach_adapters(model, lambda _, linear: Doubled(linear.weight, linear.bias, linear.keep))
    assert len(list(adapters(model))) == len(before)
    seen: list[weakref.ref[SparseLinear]] = []

    def watched(adapter: SparseLinear) -> SparseLinear:
        assert all(earlier() is None for earlier in seen)
        seen.append(weakref.ref(adapter))
        return folded(adapter)

    monkeypatch.setattr(fold, "fold_linear", watched)
    assert fold_adapters(model) == {"zeroed_by_fold": 0}
    assert not list(adapters(model))
    for name, linear in sparse_linears(model):
        assert torch.equal(linear.weight, 2 * before[name])
