"""The settings of PERP that have no effect (no torch)."""

from __future__ import annotations

from omegaconf import DictConfig


def without_effect(section: DictConfig) -> set[str]:
    """The rank, where no multipliers train."""
    return {"rank"} if section.adapter == "none" else set()
