"""Masked full fine-tuning: every kept weight trains, W := keep * W after every step.

The upper reference of all adapter methods (PERP, Zimmer et al. 2023, arXiv 2312.15230, compares
against it).  The gradient is multiplied by keep before clipping and the weight is projected after
the step, so AdamW's moments and decay stay zero off the support.  With `mask_update` the support
itself moves while it trains (dense_update).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback
from torch import nn
from transformers import PreTrainedModel

from sparsemend.blocks.names import saved_name
from sparsemend.method.base import Workbench
from sparsemend.method.masked_full.dense_update import RULES, DenseUpdate, UpdateRule
from sparsemend.method.masked_full.masked_full_checks import check_weights
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparse.linear import sparse_linears
from sparsemend.training.plan import check_choice


@dataclass(kw_only=True)
class MaskedFull(TrainedRepair):
    """Trains the kept weights themselves; scope `linears` (prunable ones) or `all`."""

    scope: str
    mask_update: str
    update_interval: int
    update_until: float
    initial_drop_rate: float
    drop_schedule: str
    momentum: float
    evolution: DenseUpdate = field(init=False, repr=False, compare=False)  # unless mask_update=none

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("mask_update", self.mask_update, RULES)
        if self.mask_update != "none":
            check_choice("optimizer", self.optimizer, ("adamw", "sgd", "muon"))
            check_choice("precision", self.precision, ("32-true", "bf16-mixed", "bf16-true"))
        if self.scope not in ("linears", "all"):
            raise ValueError(f"method.scope {self.scope!r} is not one of: linears, all")

    def check_model(self, model: PreTrainedModel, supports: object) -> None:
        """Raise ValueError if the model's dtype would round most updates of its weights away."""
        check_weights(str(model.dtype).removeprefix("torch."), self.precision)

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        """Record where supports start if they will move; nothing is attached."""
        self.check_model(model, None)
        if self.mask_update != "none":
            if not bench.pattern.unstructured:
                raise ValueError(
                    f"method.mask_update={self.mask_update} moves weights anywhere in a linear, "
                    f"which breaks pattern {bench.pattern}; set method.mask_update=none"
                )
            # on the host: sent by value to the processes of other devices, and read once a round
            starting = {
                name: linear.packed_keep.to("cpu", copy=True)
                for name, linear in sparse_linears(model)
            }
            self.evolution = DenseUpdate(self._rule(), starting)

    def _rule(self) -> UpdateRule:
        return UpdateRule(
            rule=self.mask_update,
            interval=self.update_interval,
            last=int(self.update_until * self.max_steps),
            initial=self.initial_drop_rate,
            decay=self.drop_schedule,
            momentum=self.momentum,
        )

    def callbacks(self) -> list[Callback]:
        updates = [] if self.mask_update == "none" else [self.evolution]
        return [*super().callbacks(), *updates]

    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        report = super().fold(model)
        if self.mask_update != "none":
            linears = dict(sparse_linears(model))
            report["evolution"] = {
                "linears": [saved_name(model, name) for name in linears],
                "kept": [int(linear.keep.count_nonzero()) for linear in linears.values()],
                "rounds": self.evolution.records,
            }
        return report

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        if self.scope == "all":
            return list(model.parameters())
        return [linear.weight for _, linear in sparse_linears(model)]
