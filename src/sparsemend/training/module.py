"""The one Lightning module that wraps every trained method.

RepairModule knows nothing of adapters or masks: a method hands it trainable parameters and brings
its plan, callbacks and optimizer.  Checkpoints hold what the fit may change, verified before they
are written; a loss or gradient that is not finite stops the fit before the step is
taken.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, distributed, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from sparsemend.blocks.precision import sums_dtype
from sparsemend.blocks.room import return_freed
from sparsemend.config.seeds import mix_seed
from sparsemend.data.base import UNLABELLED, Examples, labelled_lengths
from sparsemend.names import CHECKPOINTS, LAST_CHECKPOINT
from sparsemend.training.batches import (
    Grouping,
    Order,
    SteppedBatches,
    StepSplit,
    count_labels,
    loader,
)
from sparsemend.training.callbacks import (
    VALIDATION_LOSS,
    BestCheckpoint,
    LastCheckpoint,
    Pace,
    StepLines,
)
from sparsemend.training.checkpointed import (
    changing_tensors,
    check_finite,
    check_fixed,
    fixed_supports,
    moves_supports,
    write_fixed,
)
from sparsemend.training.collectives import check_equal_over_ranks, send_buffers
from sparsemend.training.logits import next_token_loss
from sparsemend.training.objective import NextToken, Objective
from sparsemend.training.plan import TrainingPlan, learning_rate_schedule
from sparsemend.training.step_loss import StepLoss

log = logging.getLogger(__name__)


class TrainerFactory(Protocol):
    """Makes a Trainer for this run's hardware and logger from the settings of one fit."""

    def __call__(self, *, callbacks: list[Callback], **settings: Any) -> Trainer: ...


class RepairModule(LightningModule):
    """Next-token training of whatever parameters of `model` require gradients."""

    def __init__(
        self,
        model: PreTrainedModel,
        plan: TrainingPlan,
        method_callbacks: list[Callback],
        make_optimizer: Callable[[nn.Module], Optimizer],
        train: Examples,
        validation: Examples,
        *,
        seed: int,
        micro_batch: int | None,
        activation_checkpointing: bool = False,
        first_step: int = 0,
        objective: Objective | None = None,
    ) -> None:
        """make_optimizer: the optimizer of all parameters that require gradients.

        micro_batch: windows at once in each process, None for all of its share of a step.

        activation_checkpointing: backward recomputes what is inside blocks.

        first_step: optimizer steps of earlier fits, whose data order and draws continue here.
        """
        super().__init__()
        self.model = model
        self.plan = plan
        self.method_callbacks = method_callbacks
        self.make_optimizer = make_optimizer
        self.train_examples = train
        self.validation_examples = validation.first(plan.validation_windows)
        self.seed = seed
        self.micro_batch = micro_batch
        self.activation_checkpointing = activation_checkpointing
        self.order = self._order()
        self.first_step = first_step
        self.objective = objective or NextToken()
        self.strict_loading = False  # checkpoints hold only what is trained
        self._after_fit = ExitStack()
        self._validated = torch.zeros(2, dtype=torch.float64)  # sum of losses, their number
        self._step_loss = StepLoss(1)
        self._fixed = ""  # of the supports that the fit leaves alone, from its start on

    def fit(
        self, make_trainer: TrainerFactory, *, out: Path, resume_from: Path | None
    ) -> dict[str, Any]:
        """Train, then (plan.keep_best) go back to the weights of the lowest validation loss."""
        best = BestCheckpoint(out / CHECKPOINTS, needed=self.plan.keep_best)
        last = LastCheckpoint(self.plan, out / LAST_CHECKPOINT)
        stop: list[Callback] = []
        if self.plan.patience is not None:
            stop += [
                EarlyStopping(
                    VALIDATION_LOSS, patience=self.plan.patience, check_on_train_epoch_end=False
                )
            ]
        lines = StepLines(self.plan, self.train_examples.tokens.shape[1])
        pace = Pace(self.plan)
        trainer = make_trainer(
            callbacks=[best, last, *stop, pace, lines],
            max_steps=self.plan.max_steps,
            max_epochs=1,
            # for bf16-true the method rounds the parameters: Lightning would round every buffer of
            # the model too, the rotary frequencies among them
            precision=self.plan.precision if self.plan.precision != "bf16-true" else "32-true",
            gradient_clip_val=self.plan.gradient_clip or None,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        # the factory alone knows how many processes share a step, and so into what it is split
        count = self._split(trainer.world_size).count
        trainer.accumulate_grad_batches = count
        trainer.val_check_interval = min(self.plan.validate_every, self.plan.max_steps) * count
        if trainer.is_global_zero:
            self._fixed = fixed_supports(self, self.checkpoint_state())
        return_freed()
        with ExitStack() as self._after_fit:
            trainer.fit(self, ckpt_path=resume_from, weights_only=False)
        return_freed()
        if self.plan.keep_best and trainer.is_global_zero and (weights := best.read()) is not None:
            self.load_state_dict(weights, strict=False)
        score = best.best_model_score
        windows = self.plan.windows_per_step
        return {
            "steps": trainer.global_step,
            "step_seconds": pace.step_seconds(trainer.global_step),
            "windows_per_step": windows,
            "tokens": trainer.global_step * windows * self.train_examples.tokens.shape[1],
            VALIDATION_LOSS: None if score is None else float(score),
        }

    @property
    def split(self) -> StepSplit:
        """How this process reads its share of a step."""
        return self._split(self.trainer.world_size, self.global_rank)

    def _split(self, world: int, rank: int = 0) -> StepSplit:
        return StepSplit(
            windows=self.plan.windows_per_step,
            micro_batch=self.micro_batch,
            rank=rank,
            world=world,
        )

    def _order(self) -> Order:
        """The order in which rows are read."""
        grouping = None
        if self.plan.group_by_length:
            lengths = labelled_lengths(self.train_examples.labels)
            grouping = Grouping(lengths, self.plan.windows_per_step)
        return Order(len(self.train_examples), seed=self.seed, grouping=grouping)

    def _labels(self, positions: range) -> int:
        """The labelled positions of the windows read there."""
        return count_labels(self.train_examples.labels[self.order.at(positions)])

    @contextmanager
    def _training_mode(self) -> Iterator[None]:
        """Enter train mode, with checkpointing and compilation until the end."""
        self.model.train()
        if self.activation_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        if self.plan.compile:
            self.model.compile()
        try:
            yield
        finally:
            self.model._compiled_call_impl = None
            if self.activation_checkpointing:
                self.model.activation_checkpointing_disable()

    def on_fit_start(self) -> None:
        self.objective.prepare(self.device)
        # not earlier: a model with these hooks could not be sent to other processes
        self._after_fit.enter_context(self._training_mode())
        if self.trainer.world_size > 1:
            send_buffers(self)

    def on_train_start(self) -> None:
        if self.global_step:
            log.info("going on after step %d of %d", self.global_step, self.plan.max_steps)

    def on_train_end(self) -> None:
        if self.trainer.world_size > 1:
            check_equal_over_ranks(self.checkpoint_state(), self.device)

    def on_train_batch_start(self, batch: list[Tensor], batch_index: int) -> None:
        # dropout draws what it would draw in an uninterrupted run
        number = self.first_step * self.split.count + batch_index
        torch.manual_seed(mix_seed(self.seed, number) * 101 + self.global_rank)

    def on_train_batch_end(self, outputs: Any, batch: list[Tensor], batch_index: int) -> None:
        # Lightning validates before a requested stop, but not after the last of the plan's steps
        if self.global_step >= self.plan.max_steps:
            self.trainer.should_stop = True

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        split, step = self.split, self.first_step + self.global_step
        number = batch_index % split.count
        if number == 0:
            self._step_loss = StepLoss(self._labels(split.whole(step)))
            self._check_labelled()
        returned = self._step_loss.add(
            self.objective(self.model, *batch),
            self._labels(split.part(step, number)),
            shares=split.count * split.world,
        )
        if number == split.count - 1:
            self._log_loss(split.world)
        return returned

    def _check_labelled(self) -> None:
        if not self._step_loss.labels:  # on every rank, so that all stop
            raise ValueError(
                f"the {self.plan.windows_per_step} windows of step {self.global_step + 1} have no "
                "labelled token to learn from; raise method.windows_per_step, or leave out of the "
                "training data what is cut before its answer"
            )

    def _log_loss(self, world: int) -> None:
        """Log the loss of the step that ends; refuse the step if it is not finite."""
        loss = self._step_loss.mean(self.device, world=world)
        if not torch.isfinite(loss):  # the same on every rank, so that all stop
            self._stop("loss", float(loss))
        self.log("train/loss", loss, prog_bar=True)
        for name, part in self._step_loss.part_means().items():
            self.log(name, part, rank_zero_only=True)  # of rank 0's own windows

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm, after masked gradients; refuse a step that is not finite."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        # a scaled half-precision gradient may overflow: its scaler skips the step by itself
        scales = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not scales and not torch.isfinite(norm):
            self._stop("gradient norm", float(norm))
        self.log("train/gradient_norm", norm)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])
        if gradient_clip_val:
            clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def _stop(self, what: str, value: float) -> None:
        raise FloatingPointError(
            f"{what} is {value} at step {self.global_step + 1} of {self.plan.max_steps}; the step "
            "was not taken and checkpoints/last.ckpt, where there is one, is from before it; "
            "lower method.learning_rate"
        )

    def on_validation_epoch_start(self) -> None:
        self._validated = torch.zeros(2, dtype=sums_dtype(self.device), device=self.device)

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        tokens, labels = batch
        count = count_labels(labels)
        if count:
            loss = next_token_loss(self.model, tokens, labels).to(self._validated.dtype)
            self._validated += torch.stack([loss * count, torch.full_like(loss, count)])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            distributed.all_reduce(self._validated)
        total, count = self._validated
        loss = float(total / count)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"validation loss is {loss} at step {self.global_step}; lower method.learning_rate"
            )
        self.log(VALIDATION_LOSS, loss, prog_bar=True)

    def train_dataloader(self) -> DataLoader[Any]:
        batches = SteppedBatches(
            # of its own: the loader reads ahead of the steps, across the end of an epoch
            self._order(),
            self.split,
            steps=self.first_step + self.plan.max_steps,
            start=lambda: self.first_step + self.global_step,
        )
        return loader(self.train_examples, batches, whole=self.plan.compile)

    def val_dataloader(self) -> DataLoader[Any]:
        examples = self.validation_examples
        rows = range(self.global_rank, len(examples), self.trainer.world_size)
        if not rows and len(examples):
            # a rank without a window joins the validation with a window that does not count
            first = examples.first(1)
            rows, examples = (
                range(1),
                Examples(first.tokens, torch.full_like(first.labels, UNLABELLED)),
            )
        size = self.split.at_once
        batches = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
        return loader(examples, batches, whole=self.plan.compile)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.make_optimizer(self.model)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": learning_rate_schedule(self.plan, optimizer, self.plan.max_steps),
                "interval": "step",
            },
        }

    def configure_callbacks(self) -> list[Callback]:
        return self.method_callbacks

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the fit may change, verified; see `checkpointed`.

        `micro_batches`: into how many a step was split, which Lightning's progress counts.
        """
        kept = self.checkpoint_state()
        check_finite(kept, self._stop)
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in kept
        }
        checkpoint["micro_batches"] = self.split.count
        if self.trainer.is_global_zero:
            write_fixed(checkpoint, self._fixed, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count the steps taken in micro-batches of this fit, into which it may split otherwise."""
        if self.trainer.is_global_zero:
            check_fixed(checkpoint, self._fixed)
        more = checkpoint["global_step"] * (self.split.count - checkpoint["micro_batches"])
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for name in counts:
                counts[name] += more

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The tensors that the fit may change, by name in this module's state."""
        return changing_tensors(self, supports=moves_supports(self.method_callbacks))
