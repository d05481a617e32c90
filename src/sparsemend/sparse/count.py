"""Exact counts of zeros per linear, per block and of a model, beside the rates asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsemend.blocks.choice import dense_linears
from sparsemend.blocks.find import block_index, find_blocks, prunable_linears
from sparsemend.blocks.names import saved_name, with_saved_names
from sparsemend.blocks.residency import visit_linears
from sparsemend.sparse.linear import SparseLinear, sparse_linears


def sparsity_report(model: nn.Module) -> SparsityReport:
    """Exact zeros per linear, per block and of all parameters."""
    per_linear = {name: count_zeros(linear) for name, linear in visit_linears(model)}
    prefix, _ = find_blocks(model)
    per_block: dict[str, LinearCount] = {}
    for name, count in per_linear.items():
        block = f"{prefix}.{block_index(name, prefix)}"
        per_block[block] = per_block.get(block, LinearCount(0, 0)) + count
    parameters = sum(p.numel() for p in model.parameters())
    return SparsityReport(per_linear, per_block, parameters, tuple(dense_linears(model)))


def asked_per_block(model: nn.Module, asked: Mapping[str, float]) -> dict[str, float]:
    """Block name -> parameter-weighted mean of the rates asked of its linears."""
    prefix, _ = find_blocks(model)
    removed: dict[str, float] = {}
    weights: dict[str, int] = {}
    for name, linear in prunable_linears(model).items():
        block = f"{prefix}.{block_index(name, prefix)}"
        size = linear.weight.numel()
        removed[block] = removed.get(block, 0.0) + asked[name] * size
        weights[block] = weights.get(block, 0) + size
    return {block: removed[block] / size for block, size in weights.items()}


@torch.no_grad()
def effective_sparsity(model: nn.Module) -> float:
    """Exact fraction of zeros in the effective weights of the prunable linears.

    It is below the sparsity of the weights only where a dense adapter is kept beside them.
    """
    counts = [
        zeros_of(m.effective_weight() if isinstance(m, SparseLinear) else m.weight)
        for _, m in visit_linears(model)
    ]
    return sum(counts, LinearCount(0, 0)).sparsity


def sparsity_section(
    model: nn.Module,
    report: SparsityReport,
    asked: Mapping[str, float],
    *,
    target: float,
    pattern: str,
    effective: float,
) -> dict[str, Any]:
    """The `sparsity` section: asked and achieved, of prunable and of all parameters.

    Linears and blocks have the names there that `model` is saved with; in `report` and `asked` they
    have those of its modules.
    """
    per_linear = {
        name: {"asked": asked[name], "achieved": count.sparsity}
        for name, count in report.per_linear.items()
    }
    per_block = {name: count.sparsity for name, count in report.per_block.items()}
    return {
        "target": target,
        "pattern": pattern,
        "achieved": report.of_prunable,
        "effective": effective,
        "achieved_of_all_parameters": report.of_all,
        "prunable_weights": report.total.weights,
        "zeros": report.total.zeros,
        "per_block": with_saved_names(model, per_block),
        "per_linear": with_saved_names(model, per_linear),
        "excluded": [saved_name(model, name) for name in report.excluded],
    }


@dataclass(frozen=True)
class LinearCount:
    """Zeros among the weights of one linear, or of a group of them."""

    zeros: int
    weights: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0

    def __add__(self, other: LinearCount) -> LinearCount:
        return LinearCount(self.zeros + other.zeros, self.weights + other.weights)


@dataclass(frozen=True)
class SparsityReport:
    """Exact zero counts over the prunable linears of a model, by the names of its modules.

    Prunable means nn.Linear inside a decoder block: embeddings, head, norms and biases are out, and
    so are the linears in `excluded`, which prunable.include and exclude leave dense.
    """

    per_linear: Mapping[str, LinearCount]
    per_block: Mapping[str, LinearCount]
    all_parameters: int
    excluded: tuple[str, ...] = ()

    @property
    def total(self) -> LinearCount:
        return sum(self.per_linear.values(), LinearCount(0, 0))

    @property
    def of_prunable(self) -> float:
        return self.total.sparsity

    @property
    def of_all(self) -> float:
        return self.total.zeros / self.all_parameters if self.all_parameters else 0.0


@torch.no_grad()
def count_zeros(linear: nn.Linear) -> LinearCount:
    """Exact `== 0` count of the effective weight, or of the base that carries an open adapter."""
    if isinstance(linear, SparseLinear) and linear.holds_support:
        return zeros_of(linear.effective_weight())
    return zeros_of(linear.weight)


def zeros_of(weight: Tensor) -> LinearCount:
    """Exact `== 0` count of a matrix."""
    return LinearCount(weight.numel() - int(weight.count_nonzero()), weight.numel())


def support_sparsity(model: nn.Module) -> float:
    """Exact fraction of zeros in the weights of all SparseLinears (0 where there are none)."""
    counts = (count_zeros(linear) for _, linear in sparse_linears(model))
    return sum(counts, LinearCount(0, 0)).sparsity
