"""Refuse to stream what needs the whole model in memory."""

from __future__ import annotations

from omegaconf import DictConfig

from sparsemend.config.streaming import obstacle


def check_streaming(cfg: DictConfig) -> None:
    """Raise ValueError where hardware.stream=true and something chosen cannot work by block."""
    if cfg.hardware.get("stream") is True and (reason := obstacle(cfg)) is not None:
        raise ValueError(f"hardware.stream=true: {reason}; set hardware.stream=false")
