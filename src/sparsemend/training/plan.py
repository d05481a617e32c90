"""Every knob of a fit, checked before anything is loaded.

The fields stand apart from the plans that check and use them: a method has the fields among its
own, flat as in its yaml, and makes its plan from them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sparsemend.training.distillation import Distillation
from sparsemend.training.optimizers import OPTIMIZERS, make_optimizer

CHOICES = {
    "optimizer": OPTIMIZERS,
    "precision": ("32-true", "bf16-mixed", "16-mixed", "bf16-true"),
    "schedule": (
        "constant",
        "constant_with_warmup",
        "cosine",
        "cosine_with_restarts",
        "linear",
        "polynomial",
    ),
}
POLYNOMIAL_END = 1e-7  # the rate in which transformers lets this schedule end
COUNTS = (
    "max_steps",
    "windows_per_step",
    "validate_every",
    "validation_windows",
    "checkpoint_every",
)


@dataclass(kw_only=True)
class StepFields:
    """The fields of a StepPlan."""

    learning_rate: float
    min_learning_rate: float
    optimizer: str
    betas: list[float]
    weight_decay: float
    schedule: str
    warmup_fraction: float
    gradient_clip: float
    precision: str


@dataclass(kw_only=True)
class StepPlan(StepFields):
    """The settings of the optimizer and its steps, whatever the loss."""

    def __post_init__(self) -> None:
        self._check_learning_rates()
        self._check_betas()
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"method.warmup_fraction {self.warmup_fraction} is not in [0, 1]")
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.optimizer == "adamw_8bit" and not importlib.util.find_spec("bitsandbytes"):
            raise ValueError(
                "method.optimizer=adamw_8bit needs bitsandbytes, which is not installed; "
                "pip install bitsandbytes, or use method.optimizer=adamw"
            )

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer of all parameters that require gradients."""
        return make_optimizer(
            self.optimizer,
            {name: p for name, p in model.named_parameters() if p.requires_grad},
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=self.both_betas,
        )

    @property
    def both_betas(self) -> tuple[float, float]:
        """`betas` as AdamW takes them."""
        first, second = self.betas
        return first, second

    def _check_betas(self) -> None:
        if len(self.betas) != 2:
            raise ValueError(
                f"method.betas={list(self.betas)} are not two numbers; AdamW's are [0.9,0.999]"
            )
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"method.betas={list(self.betas)}: {beta} is not in [0, 1)")

    def _check_learning_rates(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"method.learning_rate {self.learning_rate} is not above 0")
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise ValueError(
                f"method.min_learning_rate {self.min_learning_rate} is not in [0, "
                f"method.learning_rate = {self.learning_rate}]"
            )
        if self.min_learning_rate and self.schedule != "cosine":
            raise ValueError(
                f"method.min_learning_rate {self.min_learning_rate} is the floor of "
                f"schedule=cosine, not of {self.schedule}; set it to 0 or schedule=cosine"
            )
        if self.schedule == "polynomial" and not self.learning_rate > POLYNOMIAL_END:
            raise ValueError(
                f"method.learning_rate {self.learning_rate} is not above {POLYNOMIAL_END}, where "
                "schedule=polynomial ends; raise it, or set method.schedule=linear"
            )
        if self.schedule == "polynomial" and self.warmup_fraction == 1:
            raise ValueError(
                "method.warmup_fraction 1 leaves schedule=polynomial no step to fall in; lower it, "
                "or set method.schedule=linear"
            )


@dataclass(kw_only=True)
class TrainingFields(StepFields):
    """The fields of a TrainingPlan; the values live in conf/training/default.yaml."""

    max_steps: int
    windows_per_step: int
    validate_every: int
    validation_windows: int
    patience: int | None  # None: no early stop
    keep_best: bool
    checkpoint_every: int
    compile: bool
    group_by_length: bool
    distill: Mapping[str, Any]

    @property
    def plan(self) -> TrainingPlan:
        """The plan of these fields as they are now; raises ValueError where it cannot work."""
        return TrainingPlan(**{field.name: getattr(self, field.name) for field in PLANNED})


@dataclass(kw_only=True)
class TrainingPlan(TrainingFields, StepPlan):
    """Every knob of a fit."""

    def __post_init__(self) -> None:
        for name in COUNTS:
            check_count(name, getattr(self, name))
        check_patience(self.patience)
        super().__post_init__()
        if self.group_by_length and self.compile:
            raise ValueError(
                "method.group_by_length=true saves nothing with method.compile=true, whose batches "
                "are all as long as a window; set one of them to false"
            )
        _ = self.distillation  # raises ValueError here on settings that cannot work

    @property
    def distillation(self) -> Distillation:
        """`distill`, checked."""
        return Distillation(**self.distill)


PLANNED = fields(TrainingFields)


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless `value` is at least 1."""
    if value < 1:
        raise ValueError(f"method.{name} {value} is below 1")


def check_patience(patience: int | None) -> None:
    """Raise ValueError unless it is at least 1, or None: never stop early."""
    if patience is not None:
        check_count("patience", patience)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError naming the choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"method.{name} {value!r} is not one of: {', '.join(choices)}")


def learning_rate_schedule(plan: StepPlan, optimizer: Optimizer, steps: int) -> LRScheduler:
    """The learning rate over K = `steps`: min + (max - min)(1 + cos(pi k/K)) / 2 for cosine."""
    # here, since with PEFT and bitsandbytes installed it may initialise CUDA, in a process from
    # which others are forked
    from transformers import get_scheduler

    floored = plan.min_learning_rate > 0
    return get_scheduler(
        "cosine_with_min_lr" if floored else plan.schedule,
        optimizer,
        num_warmup_steps=int(plan.warmup_fraction * steps),
        num_training_steps=steps,
        scheduler_specific_kwargs={"min_lr": plan.min_learning_rate} if floored else None,
    )
