"""Masked LoRA: a low-rank update that is zero wherever the weight is pruned.

    W_eff = keep * (W + s B A),   s = alpha / r

The mask is in the forward pass and in the fold alike, so merging loses no zero.  One function, in
two graph forms with exact gradients (D = dLoss/dY, N weights, T tokens):

    merge_first   y = x W_eff^T                       6TN + 8rN FLOPs   MaskLoRA, SP-LoRA
    two_gemm      y = x W^T + drop(x) (s keep * BA)^T 10TN + 6rN FLOPs  SparsePEFT as released

merge_first forms W_eff again in the backward pass and keeps nothing weight-sized for it; two_gemm
keeps a weight-sized matrix and its mask (3 bytes per bf16 weight).
MaskLoRA: PERP, Zimmer et al. 2023, arXiv 2312.15230.  SparsePEFT: SQFT, Munoz et al. 2024, arXiv
2410.03750.  In bf16 merge_first rounds the sum to the weight's grid in every forward, two_gemm
only when it folds (the report then has validation/loss/folded beside validation/loss).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.method.adapter.fold import rounds_when_folded
from sparsemend.method.adapter.low_rank import (
    SCALE_RULES,
    attach_started,
    check_adapter,
    scale_of,
)
from sparsemend.method.adapter.masked_lora import MaskedLoraLinear, TwoGemmLinear
from sparsemend.method.base import Workbench
from sparsemend.method.low_rank_repair import LowRankRepair
from sparsemend.sparse.linear import SparseLinear
from sparsemend.training.plan import check_choice


@dataclass(kw_only=True)
class MaskedLora(LowRankRepair):
    """Trains A and B of every prunable linear, then folds them into the sparse weights."""

    scale_rule: str
    form: str
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapter(self.rank, self.alpha, self.dropout)
        check_choice("scale_rule", self.scale_rule, SCALE_RULES)
        check_choice("form", self.form, ("merge_first", "two_gemm"))
        if self.dropout and self.form == "merge_first":
            raise ValueError(
                f"method.dropout {self.dropout} on the adapter's input cannot be expressed once "
                "the update is merged; use method.form=two_gemm or method.dropout=0"
            )

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        scale = scale_of(self.alpha, self.rank, self.scale_rule)

        def make(linear: SparseLinear, start: Tensor) -> MaskedLoraLinear:
            if self.form == "two_gemm":
                return TwoGemmLinear(linear, start, scale, self.dropout)
            return MaskedLoraLinear(linear, start, scale)

        attach_started(model, make, rank=self.rank, seed=bench.seed)

    def validates_the_fold(self, model: PreTrainedModel) -> bool:
        return self.form == "merge_first" or not rounds_when_folded(model)
