"""The settings of PERP that have no effect (no torch)."""

from __future__ import annotations

from omegaconf import DictConfig


def without_effect(section: DictConfig) -> set[str]:
    """The rank where nothing of low rank trains, the scale where no LoRA does."""
    lora = {"lm_head", "mask_lora"} & set(section.trained)
    unread = set() if lora else {"alpha"}
    return unread if lora or "scale_lora" in section.trained else unread | {"rank"}
