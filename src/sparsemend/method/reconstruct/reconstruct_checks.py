"""The calibration windows that reconstruction trains on (no torch)."""

from __future__ import annotations

from omegaconf import DictConfig

from sparsemend.config.asked import Asked
from sparsemend.method.held_out import check_windows


def check(asked: Asked) -> None:
    """Raise ValueError unless the calibration windows leave a full batch for training."""
    samples = asked.cfg.data.get("calibration_samples")
    if isinstance(samples, int):
        check_windows(samples, asked.section.windows_per_step, asked.section.held_out)


def without_effect(section: DictConfig) -> set[str]:
    """The rank, where every kept weight trains."""
    return {"rank"} if section.form == "weights" else set()
