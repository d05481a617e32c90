"""Packed linears on disk: safetensors with what they are in the metadata.  See README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsemend.engine.linear import PackedLinear
from sparsemend.engine.packed import PackedWeight
from sparsemend.errors import blame
from sparsemend.files import replacing
from sparsemend.names import PACKED_FORMAT

PARTS = ("mask", "values", "scale", "bias")


def save_packed(
    path: Path,
    linears: Mapping[str, PackedLinear],
    others: Mapping[str, Tensor],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write packed linears by name, and other tensors by theirs, atomically.

    notes: more metadata.  Raises ValueError where two tensors would have one name.
    """
    tensors = dict(others)
    for name, linear in linears.items():
        for part in PARTS:
            tensor = getattr(linear, part)
            if tensor is None:
                continue
            if f"{name}.{part}" in tensors:
                raise ValueError(f"two tensors of {path.name} would be called {name}.{part}")
            tensors[f"{name}.{part}"] = tensor
    shapes = {name: [m.out_features, m.in_features] for name, m in linears.items()}
    metadata = {**(notes or {}), "format": PACKED_FORMAT, "shapes": json.dumps(shapes)}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def load_packed(path: Path) -> tuple[dict[str, PackedLinear], dict[str, Tensor]]:
    """(packed linears by name, the other tensors); ValueError on another or a damaged file."""
    with blame(str(path), "give a file of packed weights"), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != PACKED_FORMAT:
            raise ValueError(
                f"{path} is not a {PACKED_FORMAT} file but {metadata.get('format')}; pack its "
                "weights anew"
            )
        shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    linears: dict[str, PackedLinear] = {}
    for name, (rows, columns) in shapes.items():
        parts = {part: tensors.pop(f"{name}.{part}", None) for part in PARTS}
        mask, values, scale, bias = (parts[part] for part in PARTS)
        if mask is None or values is None:
            raise ValueError(f"{path}: {name} has no mask or no values; the file is damaged")
        packed = PackedWeight(mask=mask, values=values, scale=scale, shape=(rows, columns))
        packed.check(f"{path}: {name}")
        if bias is not None and (bias.shape != (rows,) or not bias.is_floating_point()):
            raise ValueError(
                f"{path}: {name} has a bias of {bias.dtype} {tuple(bias.shape)} for {rows} rows; "
                "the file is damaged"
            )
        linears[name] = PackedLinear(packed, bias)
    return linears, tensors
