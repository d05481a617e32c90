"""The member of conf/hardware that runs on the pretended device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from support.pretended_device import FAR

from sparsemend.hardware import Hardware
from sparsemend.training.checkpoint_file import CheckpointFile
from sparsemend.training.ranks import Place

PRETENDED = "hardware._target_=support.pretended_hardware.PretendedHardware"


class FarAccelerator(CPUAccelerator):
    """Lightning's accelerator, which refuses any device but its own."""

    def setup_device(self, device: torch.device) -> None:
        assert device == FAR


@dataclass(kw_only=True)
class PretendedHardware(Hardware):
    """One pretended device."""

    def prepare(self) -> torch.device:
        super().prepare()
        return FAR

    def trainer(self, out: Path, **settings: Any) -> Trainer:
        strategy = SingleDeviceStrategy(device=FAR, accelerator=FarAccelerator())
        return Trainer(
            strategy=strategy,
            plugins=[Place(0), CheckpointFile()],
            default_root_dir=out,
            enable_model_summary=False,
            **settings,
        )
