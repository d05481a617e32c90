"""The callbacks that every fit gives the Trainer: its checkpoints, speed, progress lines.

A line per validation is for every reader; between them a log file gets lines of StageLines, where
a terminal has Lightning's bars.
"""

from __future__ import annotations

import logging
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from sparsemend.errors import brief
from sparsemend.sparse.count import support_sparsity
from sparsemend.terminal import StageLines
from sparsemend.training.plan import TrainingPlan

log = logging.getLogger(__name__)

VALIDATION_LOSS = "validation/loss"


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights of the lowest validation loss in best.ckpt; nothing goes on from there.

    needed: the fit ends with these weights, so that one that goes on without them would end with
    others.
    """

    def __init__(self, folder: Path, *, needed: bool) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=VALIDATION_LOSS,
            # left to itself Lightning reads validate_every=1 as "once per epoch"
            save_on_train_epoch_end=False,
            enable_version_counter=False,
            save_weights_only=True,
        )
        self.folder, self.needed = Path(str(self.dirpath)), needed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the losses so far, and find their file in this folder, which may have moved.

        Lightning's own would forget the best loss there, and keep a worse one.
        """

        def here(path: str) -> str:
            return path and str(self.folder / Path(path).name)

        moved = {name: here(state_dict[name]) for name in state_dict if name.endswith("_path")}
        models = {here(path): loss for path, loss in state_dict["best_k_models"].items()}
        directory = {"dirpath": self.dirpath, "best_k_models": models}
        super().load_state_dict({**state_dict, **moved, **directory})
        if self.needed:
            self.read()

    def read(self) -> dict[str, Any] | None:
        """The checkpoint's tensors by name, left in the file; None before the first validation.

        Raises ValueError where the file cannot be read.
        """
        if not self.best_model_path:
            return None
        try:
            # mmap: of a model that trains whole a second one would not fit
            checkpoint = torch.load(self.best_model_path, "cpu", mmap=True, weights_only=False)
            state: dict[str, Any] = checkpoint["state_dict"]
        except Exception as error:
            raise ValueError(
                f"{self.best_model_path}, the best weights so far, cannot be read "
                f"({brief(error)}); remove {self.folder}, and the same command trains anew"
            ) from error
        return state


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt every plan.checkpoint_every steps, after that step's validation if any.

    On resume Lightning does not repeat a validation that was due when the checkpoint was written,
    so the checkpoint must not be written before that validation.
    """

    def __init__(self, plan: TrainingPlan, path: Path) -> None:
        self.plan, self.path = plan, path
        self._saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a resumed fit starts at the step of its checkpoint, which within an accumulation of
        # gradients is still the current one
        self._saved = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if step % self.plan.validate_every and step < self.plan.max_steps:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step > self._saved and step % self.plan.checkpoint_every == 0:
            trainer.save_checkpoint(self.path)  # every rank takes part, rank 0 writes
            self._saved = step


class StepLines(Callback):
    """Says every half minute how far the steps, or the batches of a validation, are."""

    def __init__(self, plan: TrainingPlan, window: int) -> None:
        """window: tokens of a training window."""
        self.plan, self.window = plan, window
        self._steps, self._validation = StageLines("training step", 0), StageLines("", 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        first, steps = trainer.global_step, self.plan.max_steps
        tokens = (steps - first) * self.plan.windows_per_step * self.window
        self._steps = StageLines("training step", steps, tokens=tokens, first=first)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._steps.tick(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation = StageLines("validation batch", int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._validation.tick(batch_idx + 1)


class Pace(Callback):
    """Logs the tokens per second of the training steps alone, and a line per validation."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan
        self._tokens, self._seconds, self._started, self._first = 0, 0.0, 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = trainer.global_step

    def step_seconds(self, steps: int) -> float | None:
        """Mean seconds of a step up to `steps`, without validations; None where there was none."""
        made = steps - self._first  # an earlier attempt's are not timed here
        return self._seconds / made if made > 0 else None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._started = perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._seconds += perf_counter() - self._started
        self._tokens += batch[0].numel() * trainer.world_size
        pl_module.log("train/tokens_per_second", self._tokens / self._seconds, prog_bar=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("sparsity/support", support_sparsity(pl_module), prog_bar=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        if not trainer.is_global_zero or "train/loss" not in metrics:
            return
        log.info(
            "step %d/%d  loss %.4f  validation %.4f  %s tokens/s",  # one line of 80 columns
            trainer.global_step,
            self.plan.max_steps,
            metrics["train/loss"],
            metrics[VALIDATION_LOSS],
            f"{self._tokens / self._seconds:,.0f}" if self._seconds else "-",
        )
