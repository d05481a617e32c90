"""SPP: sparsity-preserving tuning by two vectors' worth of multipliers per linear.

    W_eff[i, j] = W[i, j] (1 + s a[g(i), j] b[i])

The output rows fall into `groups` equal contiguous groups, g(i) is row i's.  A zero times anything
stays zero, so no mask is needed.  b starts at zero and decays as a does, a matrix of one column in
the released code too.  (Lu et al. 2024, arXiv 2405.16057.)

Three forms of one function (T tokens, N weights):

    plain         keeps two weight-sized tensors        10 TN FLOPs
    checkpointed  recomputes them in the backward pass  10 TN
    group_loop    the group formulas, keeps T x O        8 TN

The released code's checkpointing recomputes the product too, 12 TN; ours stops once its factor is
back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sparsemend.blocks.find import called_linears
from sparsemend.blocks.names import saved_name
from sparsemend.method.adapter.fold import adapters, rounds_when_folded
from sparsemend.method.adapter.low_rank import attach_started, wider
from sparsemend.method.base import Workbench
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparse.linear import SparseLinear
from sparsemend.training.plan import check_choice

FORMS = ("group_loop", "plain", "checkpointed")


class SppLinear(SparseLinear):
    """W * (1 + scale * E(a) * b); spp_a (groups, I), spp_b (O, 1), fp32."""

    def __init__(
        self, base: SparseLinear, start: Tensor, *, scale: float, form: str, dropout: float
    ) -> None:
        super().__init__(base.weight, base.bias, base.keep)
        start = start.to(device=base.weight.device, dtype=wider(base.weight.dtype))
        self.spp_a = nn.Parameter(start)
        self.spp_b = nn.Parameter(start.new_zeros(base.out_features, 1))
        self.scale, self.form = scale, form
        self.dropout = nn.Dropout(dropout)

    def effective_weight(self) -> Tensor:
        factor = self.spp_a.repeat_interleave(self.out_features // len(self.spp_a), dim=0)
        multiplier = 1 + self.scale * factor * self.spp_b
        return (self.weight.to(multiplier.dtype) * multiplier).to(self.weight.dtype)

    @torch.no_grad()
    def set_effective_(self, weight: Tensor, keep: Tensor) -> None:
        """Restart the multipliers at one on a new base: a product cannot revive a zero."""
        super().set_effective_(weight, keep)
        self.spp_b.zero_()

    def forward(self, input: Tensor) -> Tensor:
        base = F.linear(input, self.weight, self.bias)
        if self.form == "checkpointed":
            return base + checkpoint(self._product, input, use_reentrant=False)
        if self.form == "plain":
            return base + self._product(input)
        # under autocast the base product has the compute dtype; the weight is cast by groups
        dropped = self.dropout(input).to(base.dtype)
        a, b = self.spp_a, self.spp_b.squeeze(1)
        return base + GroupedProduct.apply(dropped, self.weight, a, b, self.scale)

    def _product(self, input: Tensor) -> Tensor:
        """s drop(x) (W * E(a) * b)^T as plain autograd sees it."""
        a, b = self.spp_a.to(self.weight.dtype), self.spp_b.to(self.weight.dtype)
        factor = a.repeat_interleave(self.out_features // len(a), dim=0)
        scaled = self.weight * factor * b
        return self.scale * F.linear(self.dropout(input), scaled)


@dataclass(kw_only=True)
class Spp(TrainedRepair):
    """Trains a and b of every prunable linear, then multiplies them into the weights."""

    groups: int
    scale: float
    dropout: float
    form: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("form", self.form, FORMS)
        if self.groups < 1:
            raise ValueError(f"method.groups {self.groups} is below 1")
        if self.scale <= 0:
            raise ValueError(f"method.scale {self.scale} is not above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"method.dropout {self.dropout} is not in [0, 1)")

    def check_model(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        for name, linear in called_linears(model).items():
            if linear.out_features % self.groups:
                raise ValueError(
                    f"method.groups={self.groups} does not divide the {linear.out_features} "
                    f"outputs of {saved_name(model, name)}; set method.groups to a divisor of them"
                )

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        self.check_model(model, None)

        def make(linear: SparseLinear, start: Tensor) -> SppLinear:
            return SppLinear(linear, start, scale=self.scale, form=self.form, dropout=self.dropout)

        attach_started(model, make, rank=self.groups, seed=bench.seed)

    def validates_the_fold(self, model: PreTrainedModel) -> bool:
        return not rounds_when_folded(model)  # base and update are two products

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        linears = [m for _, m in adapters(model) if isinstance(m, SppLinear)]
        return [p for linear in linears for p in (linear.spp_a, linear.spp_b)]


class GroupedProduct(torch.autograd.Function):
    """apply(p (..., I), W (O, I), a (groups, I), b (O,), s) -> (..., O)."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = p.reshape(-1, p.shape[-1])
        v = rows.new_empty(rows.shape[0], weight.shape[0])
        for part, factor in _groups(weight, a.to(p.dtype)):
            v[:, part] = (rows * factor) @ weight[part].to(p.dtype).T
        ctx.save_for_backward(p, weight, a, b, v)
        ctx.scale = scale
        return (v * (scale * b).to(p.dtype)).view(*p.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        p, weight, a, b, v = ctx.saved_tensors
        rows, d = p.reshape(-1, p.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        weighted = d * b.to(d.dtype)
        dp = torch.zeros_like(rows)
        da = torch.empty_like(a)
        for group, (part, factor) in enumerate(_groups(weight, a.to(p.dtype))):
            h = weighted[:, part] @ weight[part].to(d.dtype)
            da[group] = ctx.scale * (rows * h).sum(dim=0, dtype=a.dtype)
            dp.addcmul_(h, factor)
        db = ctx.scale * (v * d).sum(dim=0, dtype=b.dtype)
        return dp.mul_(ctx.scale).view(p.shape), None, da, db, None


def _groups(weight: Tensor, a: Tensor) -> list[tuple[slice, Tensor]]:
    """(output rows, their row of a) of every group."""
    size = weight.shape[0] // a.shape[0]
    return [(slice(g * size, (g + 1) * size), row) for g, row in enumerate(a)]
