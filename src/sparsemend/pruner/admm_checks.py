"""The pruner that may choose ADMM's support (no torch)."""

from __future__ import annotations

from omegaconf import DictConfig

from sparsemend.config.asked import Asked
from sparsemend.config.flags import says
from sparsemend.config.members import member_name


def check(asked: Asked) -> None:
    """Raise ValueError where `mask` is no pruner that chooses a support of the dense weights."""
    mask = asked.section.mask
    if mask is None:
        return
    target = str(mask.get("_target_"))
    if target == asked.section._target_ or says(mask, "reads_support") or not says(mask, "prunes"):
        raise ValueError(
            f"{asked.key}.mask={member_name(target)} chooses no support for ADMM's weight update; "
            f"choose another: pruner@{asked.key}.mask=wanda, or null for the support of its own "
            "iterations"
        )


def without_effect(section: DictConfig) -> set[str]:
    """What moves the support, where another pruner chooses it."""
    return set() if section.mask is None else {"mask_iterations", "ramp", "group"}
