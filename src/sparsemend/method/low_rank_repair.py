"""The base of the methods that train two factors of one rank beside every prunable linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from sparsemend.method.adapter.low_rank import check_ranks, factors
from sparsemend.method.trained import TrainedRepair


@dataclass(kw_only=True)
class LowRankRepair(TrainedRepair):
    """Trains A (R, I) and B (O, R) of every adapter that `attach` puts in."""

    low_rank: ClassVar[bool] = True

    rank: int
    alpha: float

    def check_model(self, model: PreTrainedModel, supports: object) -> None:
        check_ranks(model, self.rank)

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        return factors(model)
