"""Check how the windows of an optimizer step are shared out and split (no torch)."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from sparsemend.config.flags import says
from sparsemend.training.shares import check_shares


def check_steps(cfg: DictConfig) -> None:
    """Counts are counts, and every device gets an equal share of a step."""
    method, hardware = cfg.method, cfg.hardware
    micro_batch = hardware.get("micro_batch")
    if micro_batch is not None:
        _check_count("hardware.micro_batch", micro_batch, "hardware.micro_batch=null for all")
    if "windows_per_step" not in method:
        return
    windows, devices = method.windows_per_step, hardware.get("devices", 1)
    _check_count("method.windows_per_step", windows, "method.windows_per_step=8")
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        return  # of a user's own hardware, whose class says what it takes
    if says(method, "trains"):  # a fit of the whole model, which all devices share
        check_shares(windows, devices)


def _check_count(key: str, value: Any, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}={value} is not an integer of at least 1; set for example {remedy}")
