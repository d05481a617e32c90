"""Read the supports of masks.safetensors where they lie: numpy alone, no bit is unpacked.

A tensor per linear, or per stack of experts, named like the saved weight without a final `.weight`:
the weight's shape with its inputs moved to the end, one bit per weight, lowest bit first.  The
metadata say the weights' shapes (`shapes`), which axis runs over the inputs where that is not the
last one (`input_axis`), and which linears stay dense on purpose (`stays_dense`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemend.checkpoint.headers import TensorHeader, parse_json, read_header, read_metadata
from sparsemend.names import MASKS_FORMAT

Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class Mask:
    """A packed support: the tensor's shape with its inputs moved to the end, then a bit each.

    shape: of the saved tensor; inputs_last: whether its inputs are its last axis, else the one
    before; packed: (..., O, ceil(I / 8)), lowest bit first.
    """

    shape: tuple[int, ...]
    packed: Bits
    inputs_last: bool = True


@dataclass(frozen=True)
class Masks:
    """A masks file: the support of tensors by name, and the names that stay dense on purpose."""

    by_name: Mapping[str, Mask]
    stays_dense: tuple[str, ...] | None  # None: written before there was such a list


def read_masks(path: Path) -> Masks:
    """The supports of a masks file, packed as they lie in it.

    Raises ValueError on another file, and where names, shapes and bits do not fit each other.
    """
    headers, metadata = read_header(path), read_metadata(path)
    if metadata.get("format") != MASKS_FORMAT:
        raise ValueError(f"{path} is not a {MASKS_FORMAT} file")
    shapes, axes = _table_of(path, metadata, "shapes"), _table_of(path, metadata, "input_axis")
    if shapes.keys() != headers.keys() or not axes.keys() <= shapes.keys():
        odd = sorted((shapes.keys() ^ headers.keys()) | (axes.keys() - shapes.keys()))[0]
        raise ValueError(f"{path} is damaged: its shapes and its masks differ in {odd!r}")
    masks = {}
    for name, header in headers.items():
        shape = _shape(path, name, shapes[name])
        inputs_last = _last_axis(path, name, shape, axes.get(name, -1))
        masks[name] = Mask(shape, _bits_of(path, name, header, shape, inputs_last), inputs_last)
    listed = metadata.get("stays_dense")
    return Masks(masks, None if listed is None else _names(path, listed))


def _table_of(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    table = parse_json(path, metadata.get(key, "{}"), f"is damaged: its {key} are no JSON")
    if not isinstance(table, dict):
        raise ValueError(f"{path} is damaged: its {key} are not a JSON object")
    return table


def _names(path: Path, text: str) -> tuple[str, ...]:
    names = parse_json(path, text, "is damaged: its stays_dense is no JSON")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is damaged: its stays_dense is not a list of names")
    return tuple(names)


def _shape(path: Path, name: str, shape: Any) -> tuple[int, ...]:
    sizes = shape if isinstance(shape, list) else []
    if len(sizes) < 2 or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"{path} is damaged: {shape!r} is no shape of {name}")
    return tuple(sizes)


def _last_axis(path: Path, name: str, shape: tuple[int, ...], axis: Any) -> bool:
    """Whether the axis of inputs is the last one; ValueError unless it is one of the last two."""
    dimensions = len(shape)
    if type(axis) is not int or axis not in (-1, -2, dimensions - 1, dimensions - 2):
        raise ValueError(
            f"{path} has input axis {axis!r} for {name} of shape {shape}; it is one of the last two"
        )
    return axis in (-1, dimensions - 1)


def _bits_of(
    path: Path, name: str, header: TensorHeader, shape: tuple[int, ...], inputs_last: bool
) -> Bits:
    """A memory map of the bits of one mask."""
    outputs, inputs = shape[-2:] if inputs_last else (shape[-1], shape[-2])
    expected = (*shape[:-2], outputs, -(-inputs // 8))
    if header.dtype != "U8" or header.shape != expected:
        raise ValueError(
            f"{path} is damaged: the mask of {name} is {header.dtype} {header.shape}, not U8 "
            f"{expected}, a bit for each weight of {shape}"
        )
    if not math.prod(expected):
        return np.zeros(expected, np.uint8)  # no file maps to no byte
    return np.memmap(path, np.uint8, "r", offset=header.begin, shape=expected)
