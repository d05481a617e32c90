"""SPP: sparsity-preserving tuning by two vectors' worth of multipliers per linear.

    W_eff[i, j] = W[i, j] (1 + s a[g(i), j] b[i])

The output rows fall into `groups` equal contiguous groups, g(i) is row i's.  A zero times anything
stays zero, so no mask is needed.  b starts at zero.  (Lu et al. 2024, arXiv 2405.16057.)

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

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sparsemend.blocks import prunable_linears
from sparsemend.masks import SparseLinear
from sparsemend.method.base import TrainedRepair, Workbench, adapters
from sparsemend.method.low_rank import attach_adapters, kaiming_start, wider
from sparsemend.method.spp_function import GroupedProduct
from sparsemend.training_plan import check_choice

FORMS = ("group_loop", "plain", "checkpointed")


class SppLinear(SparseLinear):
    """W * (1 + scale * E(a) * b); spp_a (groups, I), spp_b (O,), fp32."""

    def __init__(
        self, base: SparseLinear, start: Tensor, *, scale: float, form: str, dropout: float
    ) -> None:
        super().__init__(base.weight, base.bias, base.keep)
        start = start.to(device=base.weight.device, dtype=wider(base.weight.dtype))
        self.spp_a = nn.Parameter(start)
        self.spp_b = nn.Parameter(start.new_zeros(base.out_features))
        self.scale, self.form = scale, form
        self.dropout = nn.Dropout(dropout)

    def effective_weight(self) -> Tensor:
        factor = self.spp_a.repeat_interleave(self.out_features // len(self.spp_a), dim=0)
        one = 1 + self.scale * factor * self.spp_b.unsqueeze(1)
        return (self.weight.to(one.dtype) * one).to(self.weight.dtype)

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
        return base + GroupedProduct.apply(dropped, self.weight, self.spp_a, self.spp_b, self.scale)

    def _product(self, input: Tensor) -> Tensor:
        """s drop(x) (W * E(a) * b)^T as plain autograd sees it."""
        a, b = self.spp_a.to(self.weight.dtype), self.spp_b.to(self.weight.dtype)
        factor = a.repeat_interleave(self.out_features // len(a), dim=0)
        scaled = self.weight * factor * b.unsqueeze(1)
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
        for name, linear in prunable_linears(model).items():
            if linear.out_features % self.groups:
                raise ValueError(
                    f"method.groups={self.groups} does not divide the {linear.out_features} "
                    f"outputs of {name}; set method.groups to a divisor of them"
                )

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        self.check_model(model, None)
        generator = torch.Generator().manual_seed(bench.seed)

        def make(name: str, linear: SparseLinear) -> SppLinear:
            start = kaiming_start(self.groups, linear.in_features, generator)
            return SppLinear(linear, start, scale=self.scale, form=self.form, dropout=self.dropout)

        attach_adapters(model, make)

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        found = [m for _, m in adapters(model) if isinstance(m, SppLinear)]
        return [p for adapter in found for p in (adapter.spp_a, adapter.spp_b)]
