"""The contract of every repair method, and the template of the trained ones.

`repair(model, bench)` works in place and leaves every invariant true: supports hold, the model is
foldable as promised, nothing of the training machinery stays behind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.masks import SparseLinear, check_supports, sparse_linears
from sparsemend.pattern import Pattern
from sparsemend.pruner.base import Pruner
from sparsemend.training import EnforceMasks, RepairModule, TrainerFactory, TrainingPlan


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """What a method may use besides the model.

    calibration: token batches (B, T); train and validation: windows (N, T), empty where the
    method does not train.
    """

    calibration: Sequence[Tensor]
    train: Tensor
    validation: Tensor
    pruner: Pruner
    allocation: Mapping[str, float]  # full linear name -> sparsity
    sparsity: float
    pattern: Pattern
    load_dense: Callable[[], PreTrainedModel]
    make_trainer: TrainerFactory
    device: torch.device
    offload: bool
    out: Path
    seed: int
    resume_from: Path | None = None


class RepairMethod(ABC):
    """Repairs a pruned model in place."""

    foldable: ClassVar[bool] = True
    holds_support: ClassVar[bool] = True
    needs_calibration: ClassVar[bool] = False
    needs_dense: ClassVar[bool] = False  # reads dense weights; refused on pruned checkpoints

    @abstractmethod
    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        """Repair `model` in place; returns diagnostics for the result (may be empty)."""


@dataclass(kw_only=True)
class TrainedRepair(TrainingPlan, RepairMethod):
    """attach -> Trainer.fit(RepairModule) -> fold.

    A method says what it attaches and which parameters it trains; loops, precision, checkpoints
    and mask enforcement are shared.
    """

    @abstractmethod
    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        """Replace or wrap modules in place so that the model's function does not change."""

    @abstractmethod
    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """The parameters this method trains; everything else is frozen."""

    def callbacks(self) -> list[Callback]:
        """What the method brings to the Trainer."""
        return [EnforceMasks()]

    def fold(self, model: PreTrainedModel) -> None:
        """Replace every adapter by a SparseLinear with the same effective weight."""
        for name, adapter in list(sparse_linears(model)):
            if type(adapter) is not SparseLinear:
                model.set_submodule(name, folded(adapter))

    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        torch.manual_seed(bench.seed)
        self.attach(model, bench)
        model.requires_grad_(False)
        parameters = self.trainable(model)
        if not parameters:
            raise ValueError(f"{type(self).__name__} found nothing to train in this model")
        for parameter in parameters:
            parameter.requires_grad_(True)
        module = RepairModule(
            model, self, self.callbacks(), bench.train, bench.validation, seed=bench.seed
        )
        report = module.fit(bench.make_trainer, out=bench.out, resume_from=bench.resume_from)
        model.requires_grad_(False).eval().zero_grad(set_to_none=True)
        self.fold(model)
        check_supports(model)
        return {**report, "trained_parameters": sum(p.numel() for p in parameters)}


@torch.no_grad()
def folded(adapter: SparseLinear) -> SparseLinear:
    """A plain SparseLinear holding the adapter's effective weight in its base weight's dtype."""
    weight = adapter.effective_weight().detach().to(adapter.weight.dtype)
    bias = adapter.bias
    return SparseLinear(nn.Parameter(weight.clone(), requires_grad=False), bias, adapter.keep)
