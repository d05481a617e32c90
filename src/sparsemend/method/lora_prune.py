"""LoRA-Prune: train a dense low-rank update, merge it, prune back to the support.

    train: W + s B A        fold: keep * (W + s B A)        s = alpha / r

(PERP, Zimmer et al. 2023, arXiv 2312.15230.)  The factors learn as if the zeros did not exist, so
folding loses what the update held there: the gap that masked LoRA closes.  Trained unmerged,
which is the same function at a lower cost than the reference code's merged form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel

from sparsemend.method.adapter.fold import fold_adapters
from sparsemend.method.adapter.lora import attach_lora
from sparsemend.method.adapter.low_rank import check_adapter
from sparsemend.method.base import Workbench
from sparsemend.method.low_rank_repair import LowRankRepair


@dataclass(kw_only=True)
class LoraPrune(LowRankRepair):
    """Trains A and B as plain LoRA; the fold keeps the update on the support only."""

    holds_support: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapter(self.rank, self.alpha, 0.0)

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        scale = self.alpha / self.rank
        attach_lora(model, rank=self.rank, scale=scale, dropout=0.0, seed=bench.seed)

    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        # a SparseLinear zeroes what lies off the support
        return fold_adapters(model)
