"""The template of the trained methods: attach, fit, fold."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from sparsemend.data.base import Examples
from sparsemend.method.adapter.fold import fold_adapters
from sparsemend.method.base import RepairMethod, Workbench, check_gradients
from sparsemend.sparse.linear import check_supports, sparse_linears
from sparsemend.training.batches import StepSplit, count_labels, mean_loss
from sparsemend.training.callbacks import VALIDATION_LOSS
from sparsemend.training.distillation import Teacher
from sparsemend.training.mask_callbacks import EnforceMasks
from sparsemend.training.module import RepairModule
from sparsemend.training.objective import NextToken, Objective
from sparsemend.training.plan import TrainingFields


@dataclass(kw_only=True)
class TrainedRepair(TrainingFields, RepairMethod):
    """attach -> Trainer.fit(RepairModule) -> fold.

    A method says what it attaches and which parameters it trains; loops, precision, checkpoints
    and mask enforcement are shared.  Its `plan` is that of the fields of conf/training.
    """

    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.plan  # raises ValueError here on settings that cannot work

    def check_train(self, train: Examples) -> None:
        check_gradients()

    @abstractmethod
    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        """Replace or wrap modules in place so that the model's function does not change."""

    @abstractmethod
    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """The parameters this method trains; everything else is frozen."""

    def ready_for(self, model: PreTrainedModel, step: int) -> None:
        """Bring an attached `model` to where optimizer step `step` (1-based) begins (benches)."""
        return

    def callbacks(self) -> list[Callback]:
        """The callbacks that the method gives the Trainer."""
        return [EnforceMasks()]

    def objective(self, bench: Workbench) -> Objective:
        """The objective of a step: by the plan, distillation or the next-token loss."""
        distillation = self.plan.distillation
        if distillation.on:
            return Teacher(distillation, bench.load_dense)
        return NextToken()

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer of all parameters that require gradients, by the plan."""
        return self.plan.make_optimizer(model)

    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        """Replace every adapter by a SparseLinear of its effective weight; return diagnostics."""
        return fold_adapters(model)

    def check_validation(self, validation: Examples) -> None:
        """Raise ValueError if the windows that validation reads have no label.

        Without any window a fit is not validated.
        """
        read = validation.first(self.validation_windows)
        if len(read) and not count_labels(read.labels):
            raise ValueError(
                f"the {len(read)} validation windows that method.validation_windows="
                f"{self.validation_windows} reads have no labelled token to measure; raise it, or "
                "leave out of the validation data what is cut before its answer"
            )

    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        self.check_validation(bench.validation)
        torch.manual_seed(bench.seed)
        self.attach(model, bench)
        parameters = self.free_trainable(model)
        module = RepairModule(
            model,
            self.plan,
            self.callbacks(),
            self.make_optimizer,
            bench.train,
            bench.validation,
            seed=bench.seed,
            micro_batch=bench.micro_batch,
            activation_checkpointing=bench.activation_checkpointing,
            objective=self.objective(bench),
        )
        report = module.fit(bench.make_trainer, out=bench.out, resume_from=bench.resume_from)
        report |= module.objective.report()
        model.requires_grad_(False).eval().zero_grad(set_to_none=True)
        report |= self.fold(model)
        check_supports(model)
        if self.foldable and not self.validates_the_fold(model):
            loss = mean_loss(model, module.validation_examples, bench.device, self.at_once(bench))
            report[f"{VALIDATION_LOSS}/folded"] = loss
        return {"trained_parameters": parameters, **report}

    def validates_the_fold(self, model: PreTrainedModel) -> bool:
        """Whether the fit measures the function of the folded `model`, but for fp32 rounding.

        Where not, because it is denser or is rounded in another place, the folded model's own loss
        is reported beside it.
        """
        return self.holds_support

    def at_once(self, bench: Workbench) -> int:
        """The windows of a forward pass outside of training."""
        return StepSplit(windows=self.windows_per_step, micro_batch=bench.micro_batch).at_once

    def free_trainable(self, model: PreTrainedModel) -> int:
        """Freeze all but the trained parameters; return their number without pruned weights."""
        model.requires_grad_(False)
        parameters = self.trainable(model)
        if not parameters:
            raise ValueError(f"{type(self).__name__} found nothing to train in this model")
        for parameter in parameters:
            if self.precision == "bf16-true":
                parameter.data = parameter.data.to(torch.bfloat16)
            parameter.requires_grad_(True)
        pruned = sum(
            linear.keep.numel() - int(linear.keep.count_nonzero())
            for _, linear in sparse_linears(model)
            if linear.weight.requires_grad
        )
        return sum(p.numel() for p in parameters) - pruned
