"""Masked full fine-tuning: every kept weight trains, W := keep * W after every step.

The upper reference of all adapter methods (PERP, Zimmer et al. 2023, arXiv 2312.15230, compares
against it).  The gradient is multiplied by keep before clipping and the weight is projected after
the step, so AdamW's moments and decay stay zero off the support.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from sparsemend.masks import sparse_linears
from sparsemend.method.base import TrainedRepair, Workbench


@dataclass(kw_only=True)
class MaskedFull(TrainedRepair):
    """Trains the kept weights themselves; scope `linears` (prunable ones) or `all`."""

    scope: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("linears", "all"):
            raise ValueError(f"method.scope {self.scope!r} is not one of: linears, all")

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        """Nothing to attach: the weights are the parameters, and must be able to move."""
        if model.dtype != torch.float32 and self.precision != "bf16-true":
            raise ValueError(
                f"method=masked_full trains the weights in place, and at usual learning rates "
                f"{model.dtype} rounds most updates away; set model.dtype=float32 and, for speed, "
                "method.precision=bf16-mixed, or ask for it with method.precision=bf16-true"
            )

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        if self.scope == "all":
            return list(model.parameters())
        return [linear.weight for _, linear in sparse_linears(model)]
