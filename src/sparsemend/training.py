"""The one Lightning module that wraps every trained method, and the two mask callbacks.

RepairModule knows nothing of adapters or masks: a method hands it trainable parameters and brings
its callbacks.  Batch k of a run is a function of (seed, k) alone, so a resumed run sees the data
an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Sampler, TensorDataset
from transformers import PreTrainedModel, get_scheduler

from sparsemend.files import replacing
from sparsemend.masks import sparse_linears
from sparsemend.optimizers import OPTIMIZERS, make_optimizer

VALIDATION_LOSS = "validation/loss"
CHOICES = {
    "optimizer": OPTIMIZERS,
    # *-true would round every buffer of the model too, the rotary frequencies among them
    "precision": ("32-true", "bf16-mixed", "16-mixed"),
    "schedule": (
        "constant",
        "constant_with_warmup",
        "cosine",
        "cosine_with_restarts",
        "linear",
        "polynomial",
    ),
}


class TrainerFactory(Protocol):
    """Makes a Trainer for this run's hardware and logger from the settings of one fit."""

    def __call__(self, *, callbacks: list[Callback], **settings: Any) -> Trainer: ...


@dataclass(kw_only=True)
class TrainingPlan:
    """Every knob of a fit; the values live in conf/training/default.yaml."""

    max_steps: int
    learning_rate: float
    batch_size: int
    accumulate: int
    optimizer: str
    weight_decay: float
    schedule: str
    warmup_fraction: float
    gradient_clip: float
    precision: str
    validate_every: int
    validation_windows: int
    patience: int
    keep_best: bool
    checkpoint_every: int
    activation_checkpointing: bool
    compile: bool

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "accumulate", "validate_every", "patience"):
            _check_at_least_one(name, getattr(self, name))
        for name in ("validation_windows", "checkpoint_every"):
            _check_at_least_one(name, getattr(self, name))
        if not self.learning_rate > 0:
            raise ValueError(f"method.learning_rate {self.learning_rate} is not above 0")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"method.warmup_fraction {self.warmup_fraction} is not in [0, 1]")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"method.{name} {value!r} is not one of: {', '.join(choices)}")


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"method.{name} {value} is below 1")


class RepairModule(LightningModule):
    """Next-token training of whatever parameters of `model` require gradients."""

    def __init__(
        self,
        model: PreTrainedModel,
        plan: TrainingPlan,
        method_callbacks: list[Callback],
        train: Tensor,
        validation: Tensor,
        *,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.method_callbacks = method_callbacks
        self.train_windows = train
        self.validation_windows = validation[: plan.validation_windows]
        self.seed = seed
        self.strict_loading = False  # checkpoints hold only what is trained

    def fit(
        self, make_trainer: TrainerFactory, *, out: Path, resume_from: Path | None
    ) -> dict[str, Any]:
        """Train, then (plan.keep_best) go back to the weights of the lowest validation loss."""
        best = ModelCheckpoint(
            dirpath=out / "checkpoints",
            filename="best",
            monitor=VALIDATION_LOSS,
            # left to itself Lightning reads validate_every=1 as "once per epoch"
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        last = LastCheckpoint(self.plan, out / "checkpoints" / "last.ckpt")
        stop = EarlyStopping(
            VALIDATION_LOSS, patience=self.plan.patience, check_on_train_epoch_end=False
        )
        trainer = make_trainer(
            callbacks=[best, last, stop],
            max_steps=self.plan.max_steps,
            max_epochs=1,
            precision=self.plan.precision,
            accumulate_grad_batches=self.plan.accumulate,
            gradient_clip_val=self.plan.gradient_clip or None,
            val_check_interval=min(self.plan.validate_every, self.plan.max_steps)
            * self.plan.accumulate,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        with self._prepared():
            trainer.fit(self, ckpt_path=resume_from, weights_only=False)
        if self.plan.keep_best and best.best_model_path:
            checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=False)
            self.load_state_dict(checkpoint["state_dict"], strict=False)
        score = best.best_model_score
        return {
            "steps": trainer.global_step,
            VALIDATION_LOSS: None if score is None else float(score),
        }

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Train mode, and what the plan asks of the model's forward, all undone at the end."""
        self.model.train()
        if self.plan.activation_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        if self.plan.compile:
            self.model.compile()
        try:
            yield
        finally:
            self.model._compiled_call_impl = None
            if self.plan.activation_checkpointing:
                self.model.activation_checkpointing_disable()

    def on_train_batch_start(self, batch: list[Tensor], batch_index: int) -> None:
        # dropout draws what it would draw in an uninterrupted run
        torch.manual_seed(self.seed * 1_000_003 + batch_index)

    def on_train_batch_end(self, outputs: Any, batch: list[Tensor], batch_index: int) -> None:
        # a stop that is asked for is preceded by a validation, the last of the plan's steps is not
        if self.global_step >= self.plan.max_steps:
            self.trainer.should_stop = True

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        loss = next_token_loss(self.model, batch[0])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        self.log(VALIDATION_LOSS, next_token_loss(self.model, batch[0]), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics.get(VALIDATION_LOSS)
        if loss is not None and not math.isfinite(float(loss)):
            raise FloatingPointError(
                f"validation loss is {float(loss)} at step {self.global_step}; "
                "lower method.learning_rate"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        batches = SteppedBatches(
            rows=self.train_windows.shape[0],
            batch_size=self.plan.batch_size,
            batches=self.plan.max_steps * self.plan.accumulate,
            seed=self.seed,
            module=self,
        )
        return DataLoader(TensorDataset(self.train_windows), batch_sampler=batches)

    def val_dataloader(self) -> DataLoader[Any]:
        data = TensorDataset(self.validation_windows)
        return DataLoader(data, batch_size=self.plan.batch_size)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(
            self.plan.optimizer,
            parameters,
            learning_rate=self.plan.learning_rate,
            weight_decay=self.plan.weight_decay,
        )
        scheduler = get_scheduler(
            self.plan.schedule,
            optimizer,
            num_warmup_steps=int(self.plan.warmup_fraction * self.plan.max_steps),
            num_training_steps=self.plan.max_steps,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_callbacks(self) -> list[Callback]:
        return self.method_callbacks

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trainable tensors and supports; the frozen base is in the model folder."""
        trained = {f"model.{n}" for n, p in self.model.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name in trained or name.endswith("packed_keep")
        }


class LastCheckpoint(Checkpoint):
    """last.ckpt every plan.checkpoint_every steps, after that step's validation if there is one.

    Lightning does not repeat on resume a validation that was due when the checkpoint was written,
    so it must not be written before it.
    """

    def __init__(self, plan: TrainingPlan, path: Path) -> None:
        self.plan, self.path = plan, path
        self._saved = 0

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
            with replacing(self.path) as partial:
                trainer.save_checkpoint(partial)
            self._saved = step


class SteppedBatches(Sampler[list[int]]):
    """Batches of row indices, each epoch a fresh permutation, starting at the module's step."""

    def __init__(
        self, *, rows: int, batch_size: int, batches: int, seed: int, module: RepairModule
    ) -> None:
        self.rows, self.batch_size, self.batches, self.seed = rows, batch_size, batches, seed
        self.module = module

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        position = self.module.global_step * self.module.plan.accumulate * self.batch_size
        for _ in range(self.batches - position // self.batch_size):
            yield [self._row(position + i) for i in range(self.batch_size)]
            position += self.batch_size

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, self.rows)
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(self.rows, generator=generator).tolist()
            self._epoch = epoch
        return self._order[offset]


class EnforceMasks(Callback):
    """Gradient times keep before the optimizer step, projection after it."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        for _, linear in sparse_linears(pl_module):
            if linear.weight.grad is not None:
                linear.weight.grad.masked_fill_(~linear.keep, 0)

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
    """Moves supports between optimizer steps, at most once per step (drop-and-grow)."""

    def __init__(self) -> None:
        self._seen = 0

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether supports move after optimizer step `step` (1-based)."""

    @abstractmethod
    def update(self, module: LightningModule, optimizer: Optimizer, step: int) -> None:
        """Move supports through `set_effective_` and reset what the optimizer knew of them."""

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
                self.update(pl_module, trainer.optimizers[0], step)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = state_dict["seen"]


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy over the T-1 next-token positions of `tokens` (B, T), in fp32."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
