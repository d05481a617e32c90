"""The contract of every repair method, and the template of the trained ones.

`repair(model, bench)` works in place and leaves every invariant true: supports hold, the model is
foldable as promised, nothing of the training machinery stays behind.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.batches import mean_loss
from sparsemend.data.base import Examples
from sparsemend.distillation import Teacher
from sparsemend.mask_callbacks import EnforceMasks
from sparsemend.masks import SparseLinear, check_supports, sparse_linears
from sparsemend.objective import NextToken, Objective
from sparsemend.pattern import Pattern
from sparsemend.pruner.base import Pruner
from sparsemend.resume import PARTS
from sparsemend.training import RepairModule, TrainerFactory
from sparsemend.training_callbacks import VALIDATION_LOSS
from sparsemend.training_plan import TrainingPlan

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """What a method may use besides the model.

    calibration: token batches (B, T); train and validation: labelled windows (N, T), empty where
    the method does not train.
    """

    calibration: Sequence[Tensor]
    train: Examples
    validation: Examples
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
    rounding: str = "pruner"  # how rates become whole weights, see `rounding`
    resume_from: Path | None = None

    @property
    def parts(self) -> Path:
        """Folder for one file per finished part (block, round) of the work, each written whole.

        It holds files only where an earlier attempt of this very configuration is continued.
        """
        return self.out / PARTS


class RepairMethod(ABC):
    """Repairs a pruned model in place.

    foldable: the result is one sparse matrix per linear; otherwise base and adapter stay apart.
    holds_support: effective weights lie on the support also while the method works.
    """

    foldable: ClassVar[bool] = True
    holds_support: ClassVar[bool] = True
    needs_calibration: ClassVar[bool] = False
    needs_dense: ClassVar[bool] = False  # reads dense weights; refused on pruned checkpoints
    # sparsities of single linears become the method's own, their mean stays; `asked` of the
    # diagnostics gives them by name
    reallocates: ClassVar[bool] = False

    @abstractmethod
    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        """Repair `model` in place; returns diagnostics for the result (may be empty)."""

    def check_train(self, train: Examples) -> None:
        """Raise ValueError, before the model is loaded, where these windows cannot train it."""
        return

    def check_model(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        """Raise ValueError, before any long work, where this model cannot be repaired so.

        supports: bool (O, I) per linear of an already pruned checkpoint, None before pruning.
        """
        return

    def save_adapter(self, model: PreTrainedModel, folder: Path, *, base: str) -> None:
        """Write what is kept apart from the weights of `base`; nothing for foldable methods."""
        return


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

    def ready_for(self, model: PreTrainedModel, step: int) -> None:
        """Bring an attached `model` to where optimizer step `step` (1-based) begins (benches)."""
        return

    def callbacks(self) -> list[Callback]:
        """What the method brings to the Trainer."""
        return [EnforceMasks()]

    def objective(self, bench: Workbench) -> Objective:
        """What a step minimises, as the plan has it."""
        if self.distillation.on:
            return Teacher(self.distillation, bench.load_dense)
        return NextToken()

    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        """Replace every adapter by a SparseLinear with the same effective weight; diagnostics."""
        return fold_adapters(model)

    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        torch.manual_seed(bench.seed)
        self.attach(model, bench)
        parameters = self.free_trainable(model)
        module = RepairModule(
            model,
            self,
            self.callbacks(),
            bench.train,
            bench.validation,
            seed=bench.seed,
            objective=self.objective(bench),
        )
        report = module.fit(bench.make_trainer, out=bench.out, resume_from=bench.resume_from)
        report |= module.objective.report()
        model.requires_grad_(False).eval().zero_grad(set_to_none=True)
        report |= self.fold(model)
        check_supports(model)
        if self.foldable and not self.holds_support:
            # what validation saw was denser than what is left
            loss = mean_loss(model, module.validation_examples, bench.device, self.batch_size)
            report[f"{VALIDATION_LOSS}/folded"] = loss
        return {**report, "trained_parameters": parameters}

    def free_trainable(self, model: PreTrainedModel) -> int:
        """Freeze all but what is trained; how many parameters that is, pruned weights apart."""
        model.requires_grad_(False)
        parameters = self.trainable(model)
        if not parameters:
            raise ValueError(f"{type(self).__name__} found nothing to train in this model")
        for parameter in parameters:
            if self.precision == "bf16-true":
                parameter.data = parameter.data.to(torch.bfloat16)
            parameter.requires_grad_(True)
        pruned = sum(
            int((~linear.keep).sum())
            for _, linear in sparse_linears(model)
            if linear.weight.requires_grad
        )
        return sum(p.numel() for p in parameters) - pruned


def adapters(model: nn.Module) -> Iterator[tuple[str, SparseLinear]]:
    """(full name, module) of every SparseLinear that carries an adapter."""
    for name, linear in sparse_linears(model):
        if type(linear) is not SparseLinear:
            yield name, linear


def fold_adapters(model: nn.Module) -> dict[str, int]:
    """Replace every adapter by a SparseLinear of its effective weight; what that lost."""
    before = dict(adapters(model))
    for name, adapter in before.items():
        model.set_submodule(name, folded(adapter))
    return count_lost(before, model)


def count_lost(before: Mapping[str, SparseLinear], model: nn.Module) -> dict[str, int]:
    """How many kept weights folding rounded or cancelled to exactly zero, also as a warning.

    They stay in the support but add to the sparsity.  before: the adapters that were replaced.
    """
    lost = 0
    for name, adapter in before.items():
        after = model.get_submodule(name).weight
        lost += int(((after == 0) & (adapter.weight != 0)).sum())
    if lost:
        log.warning("%d kept weights became exactly zero when the adapters were folded in", lost)
    return {"zeroed_by_fold": lost}


@torch.no_grad()
def folded(adapter: SparseLinear) -> SparseLinear:
    """A plain SparseLinear holding the adapter's effective weight in its base weight's dtype."""
    weight = adapter.effective_weight().detach().to(adapter.weight.dtype)
    bias = adapter.bias
    return SparseLinear(nn.Parameter(weight.clone(), requires_grad=False), bias, adapter.keep)
