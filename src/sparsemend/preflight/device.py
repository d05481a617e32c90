"""Refuse a GPU on a machine that shows no sign of one, without asking torch."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from omegaconf import DictConfig

# NVIDIA's driver, a Jetson's, Windows' under WSL, and AMD's, whose torch answers to `cuda` too
SIGNS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvhost-ctrl", "/dev/dxg", "/dev/kfd")


def check_device(cfg: DictConfig) -> None:
    """Raise ValueError where hardware.accelerator=gpu and this machine, on Linux, has no driver.

    For a run that starts here: a job of a sweep may start on another machine.
    """
    if cfg.hardware.get("accelerator") == "gpu" and not may_have_gpu():
        raise ValueError(
            "hardware.accelerator=gpu, but this machine has no GPU driver (nvidia-smi and "
            f"{SIGNS[0]} are missing); use hardware=cpu"
        )


def may_have_gpu() -> bool:
    """Whether there is a sign of a GPU, or no way to tell without torch."""
    linux = sys.platform == "linux"
    return not linux or bool(shutil.which("nvidia-smi")) or any(Path(p).exists() for p in SIGNS)
