"""Refuse a GPU on a machine that shows no sign of one, without asking torch."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from omegaconf import DictConfig

# NVIDIA's driver, a Jetson's, Windows' under WSL, and AMD's, whose torch answers to `cuda` too
SIGNS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvhost-ctrl", "/dev/dxg", "/dev/kfd")
NO_DRIVER = f"this machine has no GPU driver (nvidia-smi and {SIGNS[0]} are missing)"


def check_device(cfg: DictConfig) -> None:
    """Raise ValueError where the accelerator is not that of this machine, as far as files say it.

    For a run that starts here: a job of a sweep may start on another machine.
    """
    accelerator = cfg.hardware.get("accelerator")
    if accelerator == "mps" and sys.platform != "darwin":
        raise ValueError(
            f"hardware.accelerator=mps is the GPU of a Mac, and this system is {sys.platform}; use "
            "hardware=cpu, or hardware=gpu"
        )
    if accelerator == "gpu" and not may_have_gpu():
        raise ValueError(f"hardware.accelerator=gpu, but {NO_DRIVER}; use hardware=cpu")


def may_have_gpu() -> bool:
    """Whether there is a sign of a GPU, or no way to tell without torch."""
    linux = sys.platform == "linux"
    return not linux or bool(shutil.which("nvidia-smi")) or any(Path(p).exists() for p in SIGNS)
