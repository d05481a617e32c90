"""The file of masks that an already pruned checkpoint may name (no torch)."""

from __future__ import annotations

from pathlib import Path

from sparsemend.config.asked import Asked


def check(asked: Asked) -> None:
    """Raise FileNotFoundError where the file of masks is named and absent."""
    masks = asked.section.masks
    if masks is not None and not Path(masks).is_file():
        raise FileNotFoundError(
            f"pruner.masks={masks} does not exist; give a masks.safetensors, or null to read the "
            "support from the zeros"
        )
