"""The hardware of a run: device, threads, batching, and the Trainer for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger
from rich.console import Console

from sparsemend.training.module import TrainerFactory
from sparsemend.training.ranks import LeadingTrainer, Team


@dataclass(kw_only=True)
class Hardware:
    """One machine's resources as a run uses them.

    parallel: several devices train together, a process each.
    """

    parallel: ClassVar[bool] = False

    accelerator: str
    devices: int
    offload: bool
    stream: bool | str
    threads: int | None
    micro_batch: int | None
    evaluation_batch: int

    def prepare(self) -> torch.device:
        """Set the thread count and return the device; raises ValueError where it is missing."""
        self.check_devices()
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

    def check_devices(self) -> None:
        """Raise ValueError unless one device is asked for."""
        if self.devices != 1:
            raise ValueError(
                f"hardware.devices={self.devices}: one process uses one device; "
                f"use hardware=ddp hardware.devices={self.devices}"
            )

    def trainer_factory(self, loggers: list[Logger], out: Path) -> TrainerFactory:
        """Trainers on this hardware that log to `loggers` and write under `out`."""

        def make(*, callbacks: list[Callback], **settings: Any) -> Trainer:
            interactive = Console(stderr=True).is_terminal and "CI" not in os.environ
            bars: list[Callback] = [RichProgressBar(leave=False)] if interactive else []
            return self.trainer(
                out,
                logger=loggers,
                callbacks=callbacks + bars,
                enable_progress_bar=interactive,
                **settings,
            )

        return make

    def trainer(self, out: Path, **settings: Any) -> Trainer:
        """A Trainer on these devices that writes under `out`."""
        return Trainer(
            accelerator=self.accelerator,
            devices=1,
            default_root_dir=out,
            enable_model_summary=False,
            **settings,
        )


@dataclass(kw_only=True)
class DataParallel(Hardware):
    """Several devices of one machine that train together, a process each; rank 0 does all else.

    Each process takes an equal share of method.windows_per_step.
    """

    parallel: ClassVar[bool] = True

    def check_devices(self) -> None:
        """Raise ValueError unless that many devices exist."""
        if self.devices < 1:
            raise ValueError(f"hardware.devices={self.devices} is below 1")
        if self.accelerator == "gpu" and self.devices > torch.cuda.device_count():
            raise ValueError(
                f"hardware.devices={self.devices}, but torch sees {torch.cuda.device_count()} CUDA "
                "devices; lower hardware.devices, or use hardware.accelerator=cpu"
            )

    def trainer(self, out: Path, **settings: Any) -> Trainer:
        if self.devices == 1:
            return super().trainer(out, **settings)
        team = Team(accelerator=self.accelerator, world=self.devices, threads=self.share(), out=out)
        return LeadingTrainer(team, **settings)

    def share(self) -> int:
        """Threads of one process: as set here or in the environment, else an equal share."""
        threads = torch.get_num_threads()
        is_set = self.threads is not None or "OMP_NUM_THREADS" in os.environ
        return threads if is_set else max(1, threads // self.devices)
