"""LoRA-Prune: train a dense low-rank update, merge it, prune back to the support.

    train: W + s B A        fold: keep * (W + s B A)        s = alpha / r

(PERP, Zimmer et al. 2023, arXiv 2312.15230.)  The factors learn as if the zeros did not exist, so
folding loses what the update held there: the gap that masked LoRA closes.  Trained unmerged,
which is the same function at a lower cost than the reference code's merged form.  Validated folded:
the loss that keep_best and patience follow is that of the model that remains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsemend.method.adapter.fold import fold_adapters
from sparsemend.method.adapter.lora import LoraLinear
from sparsemend.method.adapter.low_rank import attach_started, check_adapter
from sparsemend.method.base import Workbench
from sparsemend.method.low_rank_repair import LowRankRepair
from sparsemend.sparse.linear import SparseLinear


class LoraPruneLinear(LoraLinear):
    """LoraLinear while it trains; in eval mode the linear that it folds to."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return super().forward(input)
        return F.linear(input, self.effective_weight().masked_fill(~self.keep, 0), self.bias)


@dataclass(kw_only=True)
class LoraPrune(LowRankRepair):
    """Trains A and B as plain LoRA; the fold keeps the update on the support only."""

    holds_support: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapter(self.rank, self.alpha, 0.0)

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        scale = self.alpha / self.rank

        def make(linear: SparseLinear, start: Tensor) -> LoraPruneLinear:
            return LoraPruneLinear(linear, start, scale, dropout=0.0)

        attach_started(model, make, rank=self.rank, seed=bench.seed)

    def validates_the_fold(self, model: PreTrainedModel) -> bool:
        return True

    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        # a SparseLinear zeroes what lies off the support
        return fold_adapters(model)
