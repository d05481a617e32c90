"""The hardware of a run: device, threads, batching, and the Trainer for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger
from rich.console import Console

from sparsemend.training.checkpoint_file import CheckpointFile
from sparsemend.training.module import TrainerFactory
from sparsemend.training.numerics import set_numerics, with_half
from sparsemend.training.ranks import LeadingTrainer, Place, Team


@dataclass(kw_only=True)
class Hardware:
    """One machine's resources as a run uses them.

    parallel: several devices train together, a process each.
    deterministic: whether equal inputs give equal bits; `auto`: on a GPU, where it has a price; a
        CPU gives them by itself.
    """

    parallel: ClassVar[bool] = False

    accelerator: str
    devices: int
    offload: bool
    stream: bool | str
    states: str
    threads: int | None
    micro_batch: int | None
    activation_checkpointing: bool
    evaluation_batch: int
    evaluation_states: int
    deterministic: bool | Literal["auto"]

    def prepare(self) -> torch.device:
        """Set the thread count and return the device; raises ValueError where it is missing."""
        self.check_devices()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.on_gpu and not torch.cuda.is_available():
            raise ValueError(
                "hardware=gpu but torch sees no CUDA device; use hardware=cpu, or install a "
                "CUDA build of torch"
            )
        if self.accelerator == "mps" and not torch.backends.mps.is_available():
            raise ValueError(
                "hardware=mps but torch sees no Apple GPU; use hardware=cpu, or a Mac with Apple "
                "silicon"
            )
        set_numerics(gpu=self.on_gpu, deterministic=self.is_deterministic)
        return torch.device("cuda", 0) if self.on_gpu else torch.device(self.accelerator)

    @property
    def on_gpu(self) -> bool:
        return self.accelerator == "gpu"

    @property
    def is_deterministic(self) -> bool:
        """Whether equal inputs give equal bits."""
        return self.on_gpu if self.deterministic == "auto" else self.deterministic

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
        fixed = {
            "accelerator": self.accelerator,
            "devices": 1,
            # Lightning's own choice inside a SLURM job would requeue it and leave checkpoints here
            "plugins": [Place(0), CheckpointFile()],
            "default_root_dir": out,
            "enable_model_summary": False,
        }
        return Trainer(**with_half(self.accelerator, {**settings, **fixed}))


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
        team = Team(
            accelerator=self.accelerator,
            world=self.devices,
            threads=self.share(),
            deterministic=self.is_deterministic,
            out=out,
        )
        return LeadingTrainer(team, **settings)

    def share(self) -> int:
        """Threads of one process: as set here or in the environment, else an equal share."""
        threads = torch.get_num_threads()
        is_set = self.threads is not None or "OMP_NUM_THREADS" in os.environ
        return threads if is_set else max(1, threads // self.devices)
