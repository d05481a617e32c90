"""Two callbacks: one holds supports while a method trains, the other moves them when due.

Each leaves the invariant true by itself, so their order cannot matter.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from sparsemend.sparse.linear import sparse_linears, zero_off_

log = logging.getLogger(__name__)


def log_mask_update(trainer: Trainer, moved: Mapping[str, float], *, step: int) -> None:
    """Record a mask update in every logger of a fit, as `masks/<name>` for each entry.

    moved: `dropped` and `grown`, the positions that left and entered, and counts of the method's
    own.  step: of the loggers, which count the first optimizer step as 0.  Unlike
    `LightningModule.log` this repeats nothing at the steps in between.
    """
    for logger in trainer.loggers:  # none on ranks above 0
        logger.log_metrics({f"masks/{name}": float(n) for name, n in moved.items()}, step=step)
    if trainer.is_global_zero:
        shown = "  ".join(f"{name} {value:g}" for name, value in moved.items())
        log.info("step %d  masks  %s", step + 1, shown)


class EnforceMasks(Callback):
    """Multiplies gradients by keep before the optimizer step and projects weights after it."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        for _, linear in sparse_linears(pl_module):
            if linear.weight.grad is not None:
                zero_off_(linear.weight.grad, linear.keep)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        for _, linear in sparse_linears(pl_module):
            if linear.weight.requires_grad:
                linear.project_()


class UpdateMasks(Callback):
    """Moves supports between optimizer steps, at most once per step (drop-and-grow).

    moves_supports: also of plain sparse linears, so that checkpoints hold them; False where every
    layer says itself what moves.
    """

    moves_supports: ClassVar[bool] = True

    def __init__(self) -> None:
        self._seen = 0

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether supports move after optimizer step `step` (1-based)."""

    @abstractmethod
    def update(
        self, module: LightningModule, optimizer: Optimizer, step: int
    ) -> Mapping[str, float] | None:
        """Move supports through `set_effective_` and reset the optimizer state of what moved.

        Returns what moved over all linears, as `log_mask_update` takes it; None records nothing.
        """

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if step > self._seen:
            self._seen = step
            if self.due(step):
                moved = self.update(pl_module, trainer.optimizers[0], step)
                if moved:
                    log_mask_update(trainer, moved, step=step - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = state_dict["seen"]
