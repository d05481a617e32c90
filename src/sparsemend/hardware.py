"""Where a run computes: device, threads, batching, and the Trainer for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger
from rich.console import Console

from sparsemend.training import TrainerFactory


@dataclass(kw_only=True)
class Hardware:
    """One machine's resources as a run uses them."""

    accelerator: str
    devices: int
    offload: bool
    threads: int | None
    walk_batch: int
    evaluation_batch: int

    def prepare(self) -> torch.device:
        """Set the thread count and return the device; raises ValueError when it is not there."""
        if self.devices != 1:
            raise ValueError(f"hardware.devices={self.devices}: only one device is supported yet")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.accelerator == "gpu":
            if not torch.cuda.is_available():
                raise ValueError(
                    "hardware=gpu but torch sees no CUDA device; use hardware=cpu, or install a "
                    "CUDA build of torch"
                )
            # the papers' scripts prune in full fp32
            torch.backends.cuda.matmul.allow_tf32 = False
            return torch.device("cuda", 0)
        return torch.device("cpu")

    def trainer_factory(self, logger: Logger, out: Path) -> TrainerFactory:
        """Trainers on this hardware that log to `logger` and write under `out`."""

        def make(*, callbacks: list[Callback], **settings: Any) -> Trainer:
            interactive = Console(stderr=True).is_terminal and "CI" not in os.environ
            bars: list[Callback] = [RichProgressBar(leave=False)] if interactive else []
            return Trainer(
                accelerator=self.accelerator,
                devices=self.devices,
                logger=logger,
                callbacks=callbacks + bars,
                default_root_dir=out,
                enable_progress_bar=interactive,
                enable_model_summary=False,
                **settings,
            )

        return make
