"""A sparse matrix as one bit per weight and the kept values, in the order a kernel reads them.

Rows go in groups of 4, columns in tiles of 32.  Tile after tile, a group has 4 masks of 32 bits
(bit b: column b of the tile is stored), and in another tensor the stored values of row 0, then of
rows 1, 2 and 3.  So one product reads two streams from their beginnings to their ends.  Matrices
whose sides are no multiples are filled up with rows and columns of which nothing is stored.

float32 and bfloat16 values are the weight's own bits.  int8 is symmetric with a float32 scale per
row: w = scale * code, scale = max |w| / 127 of the row, code = round(w / scale).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsemend.engine.pages import copied_to_large_pages
from sparsemend.sparse.packing import pack, unpack

ROWS = 4
COLUMNS = 32
TILE = (ROWS, COLUMNS)
PADDING = 64  # values after the last: a kernel reads up to 64 bytes past what it uses
CODES = 127  # largest int8 code; -128 stays unused, so that a weight and its negative fare alike
VALUES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """A sparse (O, I) matrix; what comes from a file is checked by `check`, on the CPU.

    mask: int32 (ceil(O / 4), ceil(I / 32), 4).  values: the stored ones and PADDING zeros.
    scale: float32 (O,) of int8 values, else None.
    """

    mask: Tensor
    values: Tensor
    scale: Tensor | None
    shape: tuple[int, int]

    @cached_property
    def offsets(self) -> Tensor:
        """Index of the first value of every group, and the number of values: int64 (groups + 1)."""
        return group_offsets(self.mask)

    @property
    def stored(self) -> int:
        """The number of weights that are stored."""
        return self.values.numel() - PADDING

    @property
    def nbytes(self) -> int:
        scale = 0 if self.scale is None else self.scale.nbytes
        return self.mask.nbytes + self.values.nbytes + scale

    def check(self, name: str) -> None:
        """Raise ValueError where the parts contradict each other: a kernel would read elsewhere.

        name: of the linear, which the message begins with.
        """
        rows, columns = self.shape
        grid = (-(-rows // ROWS), -(-columns // COLUMNS), ROWS)
        if self.mask.dtype != torch.int32 or tuple(self.mask.shape) != grid:
            raise ValueError(
                f"{name}: the mask of a {rows} x {columns} weight is int32 {grid}, not "
                f"{self.mask.dtype} {tuple(self.mask.shape)}"
            )
        if self.values.dtype not in VALUES.values() or self.values.ndim != 1:
            raise ValueError(
                f"{name}: values are a vector of {', '.join(VALUES)}, not {self.values.dtype} "
                f"{tuple(self.values.shape)}"
            )
        if int(self.offsets[-1]) != self.stored:
            raise ValueError(
                f"{name}: the mask has {int(self.offsets[-1])} weights, and {self.stored} values "
                "are stored; the file is damaged"
            )
        _check_scale(name, self)
        if self._has_bits_outside():
            raise ValueError(f"{name}: the mask has bits beyond the {rows} x {columns} weight")

    def _has_bits_outside(self) -> bool:
        """Whether the mask stores something in the rows and columns that only fill it up."""
        rows, columns = (length % step for length, step in zip(self.shape, TILE, strict=True))
        last_rows = self.mask[-1, :, rows:] if rows else self.mask[:0]
        last_columns = self.mask[:, -1].numpy().view(np.uint32) >> columns if columns else ()
        return bool(last_rows.any()) or bool(np.any(last_columns))


def pack_weight(weight: Tensor, *, keep: Tensor | None, values: str) -> PackedWeight:
    """`weight` (O, I), float32 or bfloat16, with its values stored as `values` (a key of VALUES).

    keep: bool (O, I), True where a weight is stored, also where it is zero; None stores what is not
    zero, and a minus zero counts as zero then.  Raises what `check_weight` does.
    """
    check_weight(weight, keep=keep, values=values)
    keep = weight != 0 if keep is None else keep
    scale = None
    if values == "int8":
        weight, scale = quantise(weight)
    tiled_keep, tiled = _tiles(keep), _tiles(weight.to(VALUES[values]))
    bits = pack(tiled_keep).contiguous()
    stored = tiled[tiled_keep]
    return PackedWeight(
        mask=copied_to_large_pages(bits.view(torch.int32).squeeze(-1)),
        values=copied_to_large_pages(torch.cat([stored, stored.new_zeros(PADDING)])),
        scale=scale,
        shape=(weight.shape[0], weight.shape[1]),
    )


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 codes, float32 scale of every row); a row of zeros has scale 0."""
    wide = weight.float()
    scale = wide.abs().amax(1) / CODES
    codes = (wide / scale.masked_fill(scale == 0, 1).unsqueeze(1)).round()
    return codes.clamp(-CODES, CODES).to(torch.int8), scale


def unpack_values(mask: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """The dense (O, I) matrix of the stored values, of their dtype, without their scales."""
    groups, tiles, _ = mask.shape
    keep = unpack(mask.unsqueeze(-1).view(torch.uint8), COLUMNS)
    dense = values.new_zeros(groups, tiles, ROWS, COLUMNS)
    dense[keep] = values[: values.numel() - PADDING]
    return _rows(dense)[: shape[0], : shape[1]].contiguous()


def unpack_weight(packed: PackedWeight) -> Tensor:
    """The dense (O, I) weight: float32 and bfloat16 bit by bit, int8 as float32 scale * code."""
    dense = unpack_values(packed.mask, packed.values, packed.shape)
    return dense if packed.scale is None else dense.float() * packed.scale.unsqueeze(1)


def keep_of(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """The support, bool (O, I)."""
    keep = unpack(mask.unsqueeze(-1).view(torch.uint8), COLUMNS)
    return _rows(keep)[: shape[0], : shape[1]]


def group_offsets(mask: Tensor) -> Tensor:
    """Index of the first value of every group, and the number of values: int64 (groups + 1)."""
    counts = np.bitwise_count(mask.cpu().numpy().view(np.uint32)).reshape(len(mask), -1)
    offsets = torch.zeros(len(mask) + 1, dtype=torch.int64)
    offsets[1:] = torch.from_numpy(counts.sum(1, dtype=np.int64)).cumsum(0)
    return offsets.to(mask.device)


def _tiles(matrix: Tensor) -> Tensor:
    """(O, I) -> (groups, tiles, ROWS, COLUMNS), filled up with zeros."""
    filled = F.pad(matrix, (0, -matrix.shape[1] % COLUMNS, 0, -matrix.shape[0] % ROWS))
    return filled.unflatten(1, (-1, COLUMNS)).unflatten(0, (-1, ROWS)).transpose(1, 2)


def _rows(tiled: Tensor) -> Tensor:
    """The inverse of `_tiles`, still filled up."""
    groups, tiles = tiled.shape[:2]
    return tiled.transpose(1, 2).reshape(groups * ROWS, tiles * COLUMNS)


def check_weight(weight: Tensor, *, keep: Tensor | None, values: str) -> None:
    """Raise ValueError unless a weight can be packed.

    It cannot where a weight is not finite, or not zero off `keep`, or would have to be rounded to
    bfloat16, or where its shape, its dtype or `keep` is none that is packed.
    """
    if weight.ndim != 2 or weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"a weight to pack is a float32 or bfloat16 matrix, not {weight.dtype} "
            f"{tuple(weight.shape)}; convert the model with model.bfloat16() or model.float()"
        )
    if values not in VALUES:
        raise ValueError(f"values={values} is not one of: {', '.join(VALUES)}")
    if not weight.numel():
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has nothing to pack")
    if broken := weight.numel() - int(weight.isfinite().count_nonzero()):
        raise ValueError(f"{broken} weights are not finite, and cannot be packed")
    if values == "bfloat16" and weight.dtype == torch.float32:
        rounded = weight.bfloat16()
        if not torch.equal(rounded.float(), weight):
            raise ValueError(
                "float32 weights would be rounded to bfloat16; pack float32 values, or convert the "
                "model with model.bfloat16() first"
            )
    if keep is None:
        return
    if keep.shape != weight.shape or keep.dtype != torch.bool:
        raise ValueError(
            f"keep must be bool of shape {tuple(weight.shape)}, got {keep.dtype} of shape "
            f"{tuple(keep.shape)}"
        )
    if outside := int(weight.masked_fill(keep, 0).count_nonzero()):
        raise ValueError(f"{outside} weights off the support are not zero")


def _check_scale(name: str, packed: PackedWeight) -> None:
    scale, rows = packed.scale, packed.shape[0]
    if (scale is not None) != (packed.values.dtype == torch.int8):
        raise ValueError(f"{name}: int8 values have a scale, and no others")
    if scale is not None and (scale.dtype != torch.float32 or tuple(scale.shape) != (rows,)):
        raise ValueError(
            f"{name}: the scale of {rows} rows is float32 ({rows},), not {scale.dtype} "
            f"{tuple(scale.shape)}"
        )
