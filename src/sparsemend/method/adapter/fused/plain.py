"""keep * (base W + s B A) by torch's own operators: what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemend.sparse.linear import zero_off_
from sparsemend.sparse.packing import unpack

STRIP_ROWS = 128  # 64 to 512 rows of 1024 inputs take the same time; all 1024 take twice that


def form_in_strips(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    packed_keep: Tensor | None,
    *,
    base: float,
    dtype: torch.dtype,
) -> Tensor:
    """keep * (base W + B A), (O, I), summed in the dtype of a and b and rounded once to `dtype`.

    On a CPU a strip of rows stays in cache from the product to the mask.
    """
    rows = weight.shape[0]
    strip = STRIP_ROWS if weight.device.type == "cpu" else rows
    formed = torch.empty_like(weight, dtype=dtype, memory_format=torch.contiguous_format)
    for start in range(0, rows, strip):
        part = slice(start, start + strip)
        merged = b[part] @ a
        if base:
            merged += weight[part]
        formed[part] = zero_off_(merged, support_rows(weight, packed_keep, part))
    return formed


def form_narrow(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    packed_keep: Tensor | None,
    *,
    scale: float,
    base: float,
) -> Tensor:
    """keep * (base W + scale B A) in the dtype of all three, by one product that adds and rounds.

    Half of float32's precision: a product and then a sum would round twice.
    """
    merged = torch.addmm(weight, b, a, beta=base, alpha=scale)
    return zero_off_(merged, support_rows(weight, packed_keep, slice(None)))


def support_rows(weight: Tensor, packed_keep: Tensor | None, part: slice) -> Tensor:
    """The support of some output rows, bool; read from W != 0 where none is packed."""
    if packed_keep is None:
        return weight[part] != 0
    return unpack(packed_keep[part], weight.shape[1])
