"""The linear that LoSA trains: a masked low-rank update whose support and rank move.

    W_eff = keep * (W + s B A),   A (r, I), B (O, r), s fixed while r moves

Moves between rounds leave the function alone.  The support moves by W := keep' * (W_eff' - s B A).
The rank moves too: new rows of A start Kaiming-uniform beside zero columns of B, and components
that go are folded into W, so that no effect shows before the next optimizer step.  With a cap, as
in the released code, the factors always have `cap` rows, of which the first r are in use: growing
beyond the cap does nothing, and the components that shrinking hides are missing from the function
until the rank grows back.

In training y = x W^T + drop(x) (keep * s B A)^T; without dropout, and in evaluation, one product
with W_eff.  Gradients are exact and nothing weight-sized is kept for them (adapter/lors_function).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsemend.method.adapter.lors import LorsLinear
from sparsemend.method.adapter.lors_function import Factors, LorsSettings, times
from sparsemend.method.adapter.lors_operator import lors_linear
from sparsemend.method.adapter.rows import by_rows
from sparsemend.sparse.linear import SparseLinear, zero_off_


class LosaLinear(LorsLinear):
    """`rank` of the rows of A and columns of B are in use, all of them unless there is a cap."""

    def __init__(
        self,
        base: SparseLinear,
        start: Tensor,
        settings: LorsSettings,
        *,
        rank: int,
        dropout: float,
        exact_base: bool,
        nested: bool,
    ) -> None:
        super().__init__(base, start, settings, derived=False)
        self.rank = rank
        self.dropout = dropout
        self.exact_base = exact_base
        self.nested = nested
        self.keeps_merged = False  # for the next window of a walk, see `walks`
        self.merged: Tensor | None = None

    @property
    def used(self) -> tuple[Tensor, Tensor]:
        """A (r, I) and B (O, r), views."""
        return self.lora_a[: self.rank], self.lora_b[:, : self.rank]

    @property
    def factors(self) -> Factors:
        """W, the factors in use, and the support."""
        return Factors(self.weight, *self.used, self.packed_keep)

    def forward(self, input: Tensor) -> Tensor:
        if self.keeps_merged and not (self.training or torch.is_grad_enabled()):
            return by_rows(self._merged_product, input)
        if not (self.training and self.dropout):
            return super().forward(input)
        dropped, alone = F.dropout(input, self.dropout), replace(self.settings, base=0.0)
        update = lors_linear(dropped, self.factors, None, alone)
        return F.linear(input, self.weight, self.bias) + update

    def _merged_product(self, rows: Tensor) -> Tensor:
        if self.merged is None or self.merged.device != rows.device:
            self.merged = self.effective_weight()
        return times(rows.to(self.merged.dtype), self.merged, self.bias)

    @torch.no_grad()
    def set_effective_(self, weight: Tensor, keep: Tensor) -> None:
        """Make `weight` effective on the support by moving the base under the factors.

        With exact_base, a base weight whose effective value stays is not touched; without, it is
        merged and unmerged as in the released code, which rounds twice in a bf16 model.  With
        nested, a weight comes back to the support only if it is not zero, as if the support were
        read from W != 0.
        """
        self.merged = None
        if self.nested:
            keep = keep & (self.keep | (weight != 0))
        if not self.exact_base:
            super().set_effective_(weight, keep)
            return
        stays = (weight == self.effective_weight()) & self.keep
        base = self.weight.clone()
        super().set_effective_(weight, keep)
        self.weight.copy_(torch.where(stays, base, self.weight))
        self.project_()

    @torch.no_grad()
    def set_rank_(self, rank: int, start: Tensor | None) -> None:
        """Use `rank` components; start (rank, I) gives the rows that are new, None under a cap."""
        self.merged = None
        if start is None:
            self.rank = min(rank, len(self.lora_a))
            return
        a, b, stay = self.lora_a, self.lora_b, min(rank, self.rank)
        if stay < self.rank:
            gone = self.scale * (b[:, stay:] @ a[stay:])
            self.weight.copy_(self.wide_weight() + zero_off_(gone, self.keep))
        new = start[stay:].to(a)
        self.rank = rank
        self.lora_a = nn.Parameter(torch.cat([a[:stay], new]), requires_grad=False)
        self.lora_b = nn.Parameter(resize(b[:, :stay], rank, dim=1), requires_grad=False)

    @torch.no_grad()
    def restore_(self, base: Tensor, keep: Tensor, a: Tensor, b: Tensor, rank: int) -> None:
        """Take over base weight, support and factors as they were saved."""
        SparseLinear.set_effective_(self, base, keep)
        self.merged = None
        self.rank = rank
        self.lora_a = nn.Parameter(a.to(self.lora_a.device), requires_grad=False)
        self.lora_b = nn.Parameter(b.to(self.lora_b.device), requires_grad=False)


def resize(tensor: Tensor, size: int, dim: int) -> Tensor:
    """`tensor` cut to `size` along `dim`, or grown by zeros, contiguous."""
    kept = tensor.narrow(dim, 0, min(size, tensor.shape[dim]))
    missing = size - kept.shape[dim]
    shape = list(kept.shape)
    shape[dim] = missing
    return torch.cat([kept, kept.new_zeros(shape)], dim=dim) if missing else kept.contiguous()
