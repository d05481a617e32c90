"""The file of masks that an already pruned checkpoint may name, or else its zeros (no torch)."""

from __future__ import annotations

from pathlib import Path

from sparsemend.checkpoint.supports import holds_zeros
from sparsemend.config.asked import Asked
from sparsemend.config.locations import resolve_path
from sparsemend.names import MASKS


def check(asked: Asked) -> None:
    """Raise an error where the file of masks is named and absent, or local weights have no zero."""
    masks = asked.section.masks
    folder = Path(resolve_path(asked.model.path))
    if masks is not None and not Path(masks).is_file():
        raise FileNotFoundError(
            f"pruner.masks={masks} does not exist; give a masks.safetensors, or null to read the "
            "support from the zeros"
        )
    unmasked = masks is None and not (folder / MASKS).is_file()
    if unmasked and asked.model.tensors is not None and not holds_zeros(folder):
        raise ValueError(
            f"pruner=existing reads the zeros of a pruned model, and {folder} has none; choose a "
            "pruner to prune it"
        )
