"""The learning rate over the steps of a fit."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from sparsemend.training_plan import StepPlan


def learning_rate_schedule(plan: StepPlan, optimizer: Optimizer, steps: int) -> LRScheduler:
    """The learning rate over K = `steps`: min + (max - min)(1 + cos(pi k/K)) / 2 for cosine."""
    floored = plan.min_learning_rate > 0
    return get_scheduler(
        "cosine_with_min_lr" if floored else plan.schedule,
        optimizer,
        num_warmup_steps=int(plan.warmup_fraction * steps),
        num_training_steps=steps,
        scheduler_specific_kwargs={"min_lr": plan.min_learning_rate} if floored else None,
    )
