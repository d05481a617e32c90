"""Supports on disk: masks.safetensors holds the packed bits and the shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsemend.files import replacing
from sparsemend.names import MASKS_FORMAT
from sparsemend.sparse.packing import pack, unpack


def save_masks(masks: Mapping[str, Tensor], path: Path) -> None:
    """Write supports {linear name: bool (O, I)} packed, atomically, with their shapes."""
    shapes = {name: list(keep.shape) for name, keep in masks.items()}
    metadata = {"format": MASKS_FORMAT, "shapes": json.dumps(shapes)}
    packed = {name: pack(keep).cpu().contiguous() for name, keep in masks.items()}
    with replacing(path) as partial:
        save_file(packed, partial, metadata=metadata)


def load_masks(path: Path) -> dict[str, Tensor]:
    """Read what `save_masks` wrote; raises ValueError when the file is of another format."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != MASKS_FORMAT:
            raise ValueError(f"{path} is not a {MASKS_FORMAT} file")
        shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
        return {name: unpack(file.get_tensor(name), shape[1]) for name, shape in shapes.items()}
